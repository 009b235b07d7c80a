"""Where a benchmark's tables and figures go: `--json FILE` keeps the figures, and `-` for FILE is standard output."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from paceline.errors import InvalidInput


def console(file: str | None, width: int) -> Console:
    """For tables; they make room on standard output where the figures go there."""
    return Console(width=width, stderr=file == "-")


def save(file: Path | str | None, figures: Any, option: str = "--json", *, appends: bool = False) -> None:
    """Write the figures as JSON, if that is wanted; `appends`: as one more line. Raises InvalidInput if that fails."""
    if not file:
        return
    text = json.dumps(figures, indent=None if appends else 1) + "\n"
    if str(file) == "-":
        sys.stdout.write(text)
        return
    try:
        with open(file, "a" if appends else "w") as it:
            it.write(text)
    except OSError as error:
        raise InvalidInput(option, str(file), f"cannot be written: {error.strerror}") from None
