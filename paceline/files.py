"""Files that are read again when they change."""

from __future__ import annotations

import os
from pathlib import Path


def stamp(*paths: str | Path) -> tuple[tuple[int, int, int] | None, ...]:
    """What changes when one of the files does: written anew, replaced, or gone."""
    return tuple(map(_stamp, paths))


def _stamp(path: str | Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino)
