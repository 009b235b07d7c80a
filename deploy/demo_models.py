"""The demo pair, and the target's expanded copy, made once and kept."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from pathlib import Path

from deploy.roles import THREADS
from paceline.errors import Unavailable

ROOT = Path(__file__).resolve().parent.parent
TARGET, DRAFTER = ROOT / "models" / "demo-target", ROOT / "models" / "demo-drafter"


def default_cache() -> Path:
    """A folder that is ours to fill: `.demo` in the checkout, or the user's cache if that cannot be written."""
    if os.access(ROOT, os.W_OK):
        return ROOT / ".demo"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "paceline"


def expanded_folder(target: Path, size: str, cache: Path) -> Path:
    """Where the copy of `target` with `size` parameters is kept; another target or size has another place."""
    digest = hashlib.sha256()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        digest.update((target / name).read_bytes())
    return cache / f"{target.name}-{size.lower()}-{digest.hexdigest()[:12]}"


async def expand(target: Path, size: str, folder: Path) -> None:
    """Write the copy, in a process of its own: this one needs no torch. Raises Unavailable."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "models.expand", str(target), str(folder), "--parameters", size),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | THREADS,
        cwd=ROOT,
    )
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        lines = output.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise Unavailable(f"the demo target could not be expanded: {lines[-1]}")
