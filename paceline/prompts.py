"""Prompt files: one JSON value a line, in the shapes that common data sets have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from paceline.errors import InvalidInput

SHAPES = '{"prompt": TEXT}, {"question": TEXT}, {"turns": [TEXT, …]} or a bare "TEXT"'


def question(text: str) -> str:
    """The prompt that a question becomes: the demo models have learned from text written so."""
    return f"Question: {text}\nAnswer:"


def read_prompts(file: str) -> list[str]:
    """All prompts of a JSONL file; empty lines are passed over. Raises InvalidInput that names file and line."""
    prompts = list(_prompts(Path(file)))
    if not prompts:
        raise InvalidInput("--prompts", file, f"holds no prompt; write one JSON value a line: {SHAPES}")
    return prompts


def _prompts(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8") as lines:
            for i, line in enumerate(lines, 1):
                if line.strip():
                    yield _prompt(f"{file}:{i}", line)
    except OSError as error:
        raise InvalidInput("--prompts", str(file), f"cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InvalidInput("--prompts", str(file), f"is no UTF-8 text: {error.reason}") from None


def _prompt(where: str, line: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InvalidInput("--prompts", where, f"is no JSON ({error}); write one value a line: {SHAPES}") from None
    found = value
    if isinstance(value, dict):
        turns = value.get("turns")
        found = value.get("prompt", turns[0] if isinstance(turns, list) and turns else None)
        if found is None and isinstance(value.get("question"), str):
            found = question(value["question"])
    if not isinstance(found, str) or not found:
        raise InvalidInput("--prompts", where, f"holds no prompt; write one of {SHAPES}")
    return found
