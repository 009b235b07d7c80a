"""Messages become the prompt that the model knows, and a template reaches nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from paceline.chat_template import ChatTemplate
from paceline.errors import InvalidInput

USER = [{"role": "user", "content": "hi"}]
LINES = """{% for m in messages %}
  {%- if m.role == 'user' %}
    {{ bos_token + m.content | trim }}
  {% endif %}
{% endfor %}"""
DEMO = Path(__file__).parents[2] / "models/demo-target"


def write_config(folder: Path, **config: Any) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "source",
    [
        LINES,
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}",
        "{{ messages | tojson }}{{ {'a': '<é>'} | tojson(indent=2) }}{% if add_generation_prompt %}>{% endif %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ x }}",
    ],
)
def test_a_prompt_is_what_transformers_makes_of_the_same_template(source: str, tmp_path: Path) -> None:
    config = json.loads((DEMO / "tokenizer_config.json").read_text())
    write_config(tmp_path, **config | {"bos_token": "<|endoftext|>", "chat_template": source})
    (tmp_path / "tokenizer.json").write_bytes((DEMO / "tokenizer.json").read_bytes())
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ours = ChatTemplate.load(tmp_path)
    assert ours is not None
    messages = [*USER, {"role": "assistant", "content": " <b>é "}, *USER]
    for prompt in (True, False):
        want = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt, x="X")
        assert ours.render(messages, add_generation_prompt=prompt, more={"x": "X"}) == want


def test_a_template_is_found_where_models_keep_it(tmp_path: Path) -> None:
    assert ChatTemplate.load(tmp_path) is None
    assert ChatTemplate.load(write_config(tmp_path, eos_token="</s>")) is None
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d{{ eos_token }}"}]
    write_config(tmp_path, chat_template=named, eos_token={"content": "</s>"})
    assert rendered(tmp_path) == "d</s>"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert rendered(tmp_path) == "file"
    (tmp_path / "other.jinja").write_text("other")
    assert rendered(tmp_path, str(tmp_path / "other.jinja")) == "other"


def rendered(folder: Path, file: str | None = None) -> str:
    template = ChatTemplate.load(folder, file)
    assert template is not None
    return template.render(USER)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ self.__init__.__globals__ }}",
        "{% include 'x' %}",
        "{{ range(10 ** 9) }}",
        "{{ raise_exception('no') }}",
        "{{ messages[0].content + 1 }}",
        "{{ 1 // 0 }}",
        "{{ 'a'.encode('no such code') }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_what_a_template_may_not_or_cannot_do_is_the_requests_error(source: str) -> None:
    with pytest.raises(InvalidInput, match="the chat template says"):
        assert "subclass" not in ChatTemplate(source).render(USER)


def test_a_file_that_is_no_template_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is no Jinja template"):
        ChatTemplate("{% if %}")
    with pytest.raises(InvalidInput, match="cannot be read"):
        ChatTemplate.load(tmp_path, str(tmp_path / "missing"))


def test_the_demo_target_takes_questions_and_answers() -> None:
    template = ChatTemplate.load(DEMO)
    assert template is not None
    assert template.render(USER) == "Question: hi\nAnswer:"
    told = [*USER, {"role": "assistant", "content": "A"}, *USER]
    assert template.render(told) == "Question: hi\nAnswer: A\n\nQuestion: hi\nAnswer:"
    with pytest.raises(InvalidInput, match="no system messages"):
        template.render([{"role": "system", "content": "x"}])
