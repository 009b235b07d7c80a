"""The keys that clients call with: `Authorization: Bearer KEY`, from a file that may change while we run.

One key a line, `NAME:KEY` or `KEY`; empty lines and lines that begin with # are skipped. The name stands in limits and
in the log, the key never does. Only hashes are kept, and a check compares with all of them, so that its time tells
nothing about any. A file that is changed is read again; one that has become unreadable or wrong changes nothing, and
the log says so.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path

from paceline.errors import InvalidInput
from paceline.files import stamp

log = logging.getLogger(__name__)

MIN_KEY_LENGTH, MAX_KEY_LENGTH = 16, 512  # characters; shorter ones can be guessed
MAX_KEYS = 10_000  # a check compares with each
LOOK_AGAIN_S = 1.0  # a change of the file is noticed within it
_LINE = re.compile(r"(?:([\w.@-]{1,64}):)?([!-9;-~]+)")  # a key has no blank and no colon


class ApiKeys:
    """See the top of the file."""

    def __init__(self, path: str | Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises `InvalidInput` for a file that cannot be read or holds no key, with the line."""
        self._path, self._clock = Path(path), clock
        self._stamp = stamp(self._path)
        self._looked_s = clock()
        self._names = _hashed(read_keys(self._path))

    def check(self, header: str | None) -> str | None:
        """The name that goes with an Authorization header; None if it carries no key that is known."""
        self._look_again()
        scheme, _, key = (header or "").strip().partition(" ")
        if scheme.lower() != "bearer" or len(key) > MAX_KEY_LENGTH:
            return None
        given = _hash(key.strip())
        found: str | None = None
        for digest, name in self._names:  # all of them, whatever was found: the time is the same
            if hmac.compare_digest(digest, given):
                found = name
        return found

    def _look_again(self) -> None:
        now_s = self._clock()
        if now_s - self._looked_s < LOOK_AGAIN_S:
            return
        self._looked_s = now_s
        now = stamp(self._path)
        if now == self._stamp:
            return
        self._stamp = now
        try:
            self._names = _hashed(read_keys(self._path))
        except InvalidInput as error:
            log.error("the former API keys stay in force: %s", error)
        else:
            log.warning("%s has changed: %d API keys are in force", self._path, len(self._names))


def read_keys(path: str | Path) -> dict[str, str]:
    """Keys by name. Raises `InvalidInput`, which names the line and never the key."""
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput("api-keys", str(path), f"cannot be read: {error}") from None
    keys: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or not MIN_KEY_LENGTH <= len(match[2]) <= MAX_KEY_LENGTH:
            fix = f"must be NAME:KEY or KEY, with a key of {MIN_KEY_LENGTH} to {MAX_KEY_LENGTH} characters, no blank"
            raise InvalidInput("api-keys", str(path), f"line {number} {fix} and no colon")
        name = match[1] or f"key-{_hash(match[2]).hex()[:8]}"
        if name in keys:
            raise InvalidInput("api-keys", str(path), f"line {number} has the name {name} a second time")
        keys[name] = match[2]
    if not 1 <= len(keys) <= MAX_KEYS:
        fix = f"must hold 1 to {MAX_KEYS} keys; make one with: openssl rand -hex 24"
        raise InvalidInput("api-keys", str(path), f"has {len(keys)} keys, and {fix}")
    return keys


def bearer(key: str | None) -> tuple[tuple[str, str], ...]:
    """The metadata of a call made with `key`; none without one. Raises `InvalidInput` for what no header carries."""
    if key is None:
        return ()
    if not _LINE.fullmatch(key) or ":" in key:
        raise InvalidInput("api_key", "…", "has blanks, colons or characters that are not ASCII")
    return (("authorization", f"Bearer {key}"),)


def _hashed(keys: dict[str, str]) -> tuple[tuple[bytes, str], ...]:
    return tuple((_hash(key), name) for name, key in keys.items())


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
