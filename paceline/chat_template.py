"""A model's chat template: messages to the prompt that the model was trained on.

Templates are Jinja programs that come with the model, in the dialect of Hugging Face. They are run in Jinja's
immutable sandbox: a template computes a text from the messages, and reaches nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from paceline.errors import InvalidInput

# Tokens that templates call by name, as tokenizer_config.json has them.
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


class _Generation(Extension):
    """`{% generation %}` marks what to train on; for a prompt it means nothing."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own way to name them

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A template, compiled. Immutable; safe to share between tasks."""

    def __init__(self, source: str, tokens: Mapping[str, str] | None = None) -> None:
        """`tokens` are what the template may call by name. Raises InvalidInput for what is no Jinja."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise InvalidInput("chat_template", source, f"is no Jinja template: {error}") from None
        self._tokens = dict(tokens or {})

    @classmethod
    def load(cls, folder: Path, file: str | None = None) -> ChatTemplate | None:
        """From `file`, or from a model's folder; None if the model has none. Raises InvalidInput."""
        config = _config(folder)
        tokens = {name: _content(config.get(name)) for name in _NAMED_TOKENS if config.get(name)}
        if file is not None:
            return cls(_read(Path(file)), tokens)
        if (folder / "chat_template.jinja").is_file():
            return cls(_read(folder / "chat_template.jinja"), tokens)
        source = config.get("chat_template")
        if isinstance(source, list):  # several by name
            source = {entry.get("name"): entry.get("template") for entry in source}.get("default")
        return cls(source, tokens) if isinstance(source, str) else None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        more: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt. `more` is what the template takes besides. Raises InvalidInput if it will not have them."""
        given = {**self._tokens, **(more or {}), "messages": messages, "add_generation_prompt": add_generation_prompt}
        try:
            return self._template.render(given)
        except Exception as error:  # a program that is not ours, on values that a client chose
            reason = str(error) or type(error).__name__
            raise InvalidInput("messages", f"{len(messages)} of them", f"the chat template says: {reason}") from None


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    """Plain JSON; Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return {}
    try:
        parsed = json.loads(_read(file))
    except ValueError as error:
        raise InvalidInput("model", str(file), f"is no JSON: {error}") from None
    return parsed if isinstance(parsed, dict) else {}


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput("chat_template", str(file), f"cannot be read: {error}") from None


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)
