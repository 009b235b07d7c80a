"""Prompts from JSONL files, in the forms the public sets use."""

from __future__ import annotations

import json
from pathlib import Path

from paceline.errors import InvalidInput


def read(file: str, limit: int | None = None) -> list[str]:
    """The first `limit` prompts of `file`: a "prompt", a GSM8K "question", or Spec-Bench "turns" (the first).

    A question becomes `Question: …\\nAnswer:`, the form the demo pair was trained on. Raises InvalidInput.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InvalidInput("prompts", file, f"cannot be read ({error.strerror}); give a JSONL file") from error
    prompts = [_prompt(file, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    return prompts[:limit]


def _prompt(file: str, number: int, line: str) -> str:
    try:
        row = json.loads(line)
        if "question" in row:
            return f"Question: {row['question']}\nAnswer:"
        return str(row["prompt"] if "prompt" in row else row["turns"][0])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        fix = 'must be a JSON object with "prompt", "question" or "turns"'
        raise InvalidInput(f"{file}:{number}", line, fix) from error
