"""Loading a tokenizer from a model's files."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from tokenizers import processors

from paceline.errors import InvalidInput
from paceline.tokenizer import Tokenizer, resolve, tokenizer_hash
from tests.paceline.test_text import byte_level


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inner = byte_level("hello")
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    inner.enable_truncation(3)
    inner.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, "config.json", {"max_position_embeddings": 64, "eos_token_id": 1})
    return tmp_path


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def test_text_comes_back_and_special_tokens_are_added_and_skipped(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    ids = tokenizer.encode("hello 😀!")
    assert ids[0] == 0
    assert len(ids) == 8
    assert tokenizer.decode(ids) == "hello 😀!"
    assert tokenizer.decode((*ids, 1)) == "hello 😀!"
    assert (tokenizer.max_model_len, tokenizer.eos_token_ids) == (64, (1,))
    assert tokenizer.vocab_size == 2 + 256 + 4


@pytest.mark.parametrize("is_encoded", [True, False])
def test_a_long_text_leaves_the_interpreter_to_other_threads(folder: Path, is_encoded: bool) -> None:
    """A thread was of no use: the library held the interpreter's lock, and the event loop stood still all the same."""
    tokenizer, done = Tokenizer.load(folder), threading.Event()
    text = "hello you " * 20_000
    token_ids = () if is_encoded else tokenizer.encode(text, add_special_tokens=False)

    def work() -> None:
        assert tokenizer.encode(text) if is_encoded else tokenizer.decode_long(token_ids) == text
        done.set()

    thread, interval_s = threading.Thread(target=work), sys.getswitchinterval()
    sys.setswitchinterval(60)  # nobody is interrupted: this thread goes on when that one lets go of the lock
    try:
        thread.start()
        assert not done.is_set()
    finally:
        sys.setswitchinterval(interval_s)
        thread.join()
    assert done.is_set()


@pytest.mark.parametrize(
    ("files", "eos_token_ids"),
    [
        ({"generation_config.json": {"eos_token_id": [1, 5]}}, (1, 5)),
        ({"generation_config.json": {}}, (1,)),
        ({"config.json": {"n_positions": 8}}, ()),
        ({"config.json": {"n_positions": 8}, "tokenizer_config.json": {"eos_token": "</s>"}}, (1,)),
        ({"config.json": {"n_positions": 8}, "tokenizer_config.json": {"eos_token": {"content": "</s>"}}}, (1,)),
        ({"config.json": {"text_config": {"max_position_embeddings": 8}, "eos_token_id": 0}}, (0,)),
    ],
)
def test_the_end_of_sequence_ids_come_from_the_first_file_that_names_any(
    folder: Path, files: dict[str, Any], eos_token_ids: tuple[int, ...]
) -> None:
    for name, content in files.items():
        write(folder, name, content)
    assert Tokenizer.load(folder).eos_token_ids == eos_token_ids


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer.json", None, "cannot be read"),
        ("tokenizer.json", "{", "is no JSON"),
        ("tokenizer.json", "[]", "JSON object"),
        ("tokenizer.json", {"model": {}}, "no vocabulary"),
        ("tokenizer.json", {"model": {"vocab": {"a": 0}, "type": "Unheard"}}, "is no tokenizer"),
        ("tokenizer.json", {"model": {"vocab": {"a": 0}}, "added_tokens": [{}]}, "is no tokenizer"),
        ("config.json", None, "cannot be read"),
        ("config.json", {}, "names no length"),
        ("config.json", {"max_position_embeddings": 8, "eos_token_id": "x"}, "eos_token_id"),
    ],
)
def test_a_missing_or_malformed_file_is_refused_by_name(folder: Path, name: str, content: Any, reason: str) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        write(folder, name, content)
    with pytest.raises(InvalidInput) as caught:
        Tokenizer.load(folder)
    assert name in str(caught.value) or len(str(folder)) > 60
    assert reason in str(caught.value)


def test_the_hash_is_of_the_meaning_and_not_of_the_file(folder: Path) -> None:
    before = tokenizer_hash(folder)
    assert before.startswith("sha256:")
    assert len(before) == 7 + 64
    parsed = json.loads((folder / "tokenizer.json").read_text())
    parsed["model"]["merges"] = [" ".join(merge) for merge in parsed["model"]["merges"]]
    parsed["truncation"] = None
    write(folder, "tokenizer.json", json.dumps(dict(reversed(parsed.items())), indent=3))
    assert tokenizer_hash(folder) == before == Tokenizer.load(folder).hash
    parsed["model"]["vocab"]["hello"], parsed["model"]["vocab"]["hell"] = 260, 261
    write(folder, "tokenizer.json", parsed)
    assert tokenizer_hash(folder) != before


def test_a_name_is_fetched_from_the_hub_and_a_path_is_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def snapshot(name: str, **_: object) -> str:
        asked.append(name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert Tokenizer.load("org/model-1.5").eos_token_ids == (1,)
    assert asked == ["org/model-1.5"]
    assert resolve(folder) == folder
    for path in ("/no/such/dir", "./missing", "missing"):
        with pytest.raises(InvalidInput, match="no such directory"):
            resolve(path)
    assert asked == ["org/model-1.5"]


def test_a_name_that_cannot_be_had_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(name: str, **_: object) -> str:
        raise OSError("404 Client Error\nlong story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(InvalidInput, match=r"'org/none'.*404 Client Error\)$"):
        resolve("org/none")


def test_torch_and_transformers_are_not_imported() -> None:
    code = (
        "import sys, paceline.tokenizer, paceline.text, paceline.client, paceline.worker\n"
        "print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stderr
