"""A token's bytes, as they stand in the text.

To decode a token by itself does not tell them: a decoder drops a space before the first word, which every token is when
it comes alone, and makes U+FFFD of a part of a character. The vocabulary has both: `▁word` or `Ġword`, and `<0xE2>` or
the printable character that a byte-level vocabulary writes for that byte. The bytes of tokens one after another are the
bytes of their text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import tokenizers

_WHOLE_TEXT = ("Fuse", "Strip")  # steps that concern the text's ends, or nothing
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_letters() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level vocabularies (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_letters()


class Pieces:
    """The tokens of one tokenizer."""

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        self._inner = inner
        self._steps = _steps(inner.decoder)
        kinds = {step["type"] for step in self._steps}
        self._is_byte_level = "ByteLevel" in kinds
        self._has_bytes = "ByteFallback" in kinds
        self._replaces = [pair for step in self._steps if (pair := _replacement(step))]
        known = {"ByteLevel", "ByteFallback", "Metaspace", *_WHOLE_TEXT}
        self._is_known = bool(kinds) and all(
            step["type"] in known or _replacement(step) is not None for step in self._steps
        )

    def bytes_of(self, token_id: int) -> bytes:
        """Empty for an id that is no token. Of a decoder that is not known here, what it makes of the token alone."""
        piece = self._inner.id_to_token(token_id)
        if piece is None:
            return b""
        if not self._is_known:
            return self._inner.decode([token_id], skip_special_tokens=False).encode()
        if self._is_byte_level and all(letter in _BYTE_OF for letter in piece):
            return bytes(_BYTE_OF[letter] for letter in piece)
        if self._has_bytes and (byte := _BYTE.fullmatch(piece)):
            return bytes((int(byte[1], 16),))
        for old, new in self._replaces:
            piece = piece.replace(old, new)
        return piece.encode()


def _steps(decoder: Any) -> list[dict[str, Any]]:
    """What a decoder does, in order; empty without one."""
    if decoder is None:
        return []
    state: dict[str, Any] = json.loads(decoder.__getstate__())
    return list(state["decoders"]) if state["type"] == "Sequence" else [state]


def _replacement(step: Mapping[str, Any]) -> tuple[str, str] | None:
    """What a step replaces by what."""
    if step["type"] == "Metaspace":
        return step["replacement"], " "
    if step["type"] == "Replace" and "String" in step["pattern"]:
        return step["pattern"]["String"], step["content"]
    return None
