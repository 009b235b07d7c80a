"""Files: those that are read again when they change, and JSON of a model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from paceline.errors import InvalidInput


def stamp(*paths: str | Path) -> tuple[tuple[int, int, int] | None, ...]:
    """What changes when one of the files does: written anew, replaced, or gone."""
    return tuple(map(_stamp, paths))


def _stamp(path: str | Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def read_json(file: Path) -> dict[str, Any]:
    """The object in a model's file. Raises `InvalidInput`."""
    try:
        parsed = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput("model", str(file), f"cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise InvalidInput("model", str(file), f"is no JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise InvalidInput("model", str(file), "must hold a JSON object")
    return parsed
