"""Token ids to text, piece by piece, ended before the first stop string.

Theory. Text grows by tokens, but a token is not always text: a character may be spread over several tokens, and a
decoder may join a token to the one before it (a leading space, for one). So each step decodes a *window*: a few
tokens whose text is known, for context, then the pending ones. The pending ones become text when the window's text
does not end in U+FFFD, which stands for a character that is not whole.

What became readable is *held* while it may be the beginning of a stop string. The first stop string is the one
that is complete first, and of several the longest, however the text is cut into tokens or drafts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

CONTEXT_TOKENS = 16  # of the prompt: enough that some of them are text, after a template's special tokens
# A character has at most 4 bytes, so tokens that are still no text after this many are no text at all. They are
# let go, since decoding a window that only grows takes quadratic time.
MAX_PENDING_TOKENS = 64


class Decodes(Protocol):
    def decode(self, token_ids: Sequence[int]) -> str: ...


@dataclass(frozen=True, slots=True)
class Piece:
    """What one push made readable."""

    text: str
    lengths: tuple[int, ...]  # characters of `text` that each token let go, held ones included; they sum to its length
    stopped: bool  # a stop string is complete; it and what follows is not in the text

    @property
    def num_tokens(self) -> int:
        """Tokens of the push that were needed, the one that completed the stop string included."""
        return len(self.lengths)


class TextStream:
    """The text of one request's output."""

    def __init__(
        self, tokenizer: Decodes, prompt_ids: Sequence[int] = (), stop: Sequence[str] = (), min_tokens: int = 0
    ) -> None:
        """A stop string that is complete with the first `min_tokens` tokens is text like any other."""
        self._tokenizer = tokenizer
        self._num_free = min_tokens
        self._stop = tuple(filter(None, stop))
        self._known = list(prompt_ids[-CONTEXT_TOKENS:])
        self._known_text = tokenizer.decode(self._known) if self._known else ""
        self._pending: list[int] = []
        self._held = ""  # readable, but perhaps the beginning of a stop string
        self._free = 0  # characters of it in which no stop string may end
        self.stopped = False
        self.stop_string: str | None = None  # the one that has ended the text

    def push(self, token_ids: Sequence[int]) -> Piece:
        """Take the next tokens. After the stop string, and after `finish`, there is no text."""
        texts: list[str] = []
        for token_id in token_ids:
            if self.stopped:
                break
            texts.append(self._release(self._decode(token_id), is_free=self._num_free > 0))
            self._num_free -= 1
        return Piece("".join(texts), tuple(map(len, texts)), self.stopped)

    def finish(self) -> str:
        """What was held, at the end of the request; it belongs to the last token."""
        if self.stopped:
            return ""
        rest = self._release(self._window_text(), is_free=self._num_free >= 0)  # it is the last token's text
        if not self.stopped:
            rest, self._held = rest + self._held, ""
        self.stopped = True
        return rest

    def _decode(self, token_id: int) -> str:
        """What this token made readable."""
        self._pending.append(token_id)
        text = self._window_text()
        if text.endswith("\N{REPLACEMENT CHARACTER}") and len(self._pending) < MAX_PENDING_TOKENS:
            return ""
        if text:
            self._known, self._pending = self._pending, []
            self._known_text = self._tokenizer.decode(self._known)
        else:
            self._pending.pop()  # a special token: no text, and no context for the next one either
        return text

    def _window_text(self) -> str:
        """The text of the pending tokens."""
        return self._tokenizer.decode(self._known + self._pending)[len(self._known_text) :]

    def _release(self, text: str, *, is_free: bool) -> str:
        """Hold `text`, and let go what cannot belong to a stop string any more."""
        self._held += text
        if is_free:
            self._free = len(self._held)
        ends = [(at + len(stop), at, stop) for stop in self._stop if (at := self._find(stop)) >= 0]
        if ends:
            self.stopped = True
            _, at, self.stop_string = min(ends)
        else:
            at = len(self._held) - self._num_suspicious()
        released, self._held = self._held[:at], self._held[at:]
        self._free = max(0, self._free - at)
        return released

    def _find(self, stop: str) -> int:
        """Where in the held text the first `stop` begins that does not end too early; -1 if there is none."""
        return self._held.find(stop, max(0, self._free - len(stop) + 1))

    def _num_suspicious(self) -> int:
        """The length of the longest end of the held text with which a stop string begins."""
        longest = max(map(len, self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            end = self._held[-length:]
            if any(stop.startswith(end) for stop in self._stop):
                return length
        return 0
