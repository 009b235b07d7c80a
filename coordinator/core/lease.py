"""Whose turn it is to try a drafter out.

Requests that begin together would all try it at once, and their drafts come in one pass that takes many times its
usual time. So one tries, and the others do without until something is known.
"""

from __future__ import annotations

_LONGEST_S = 2.0  # without a word of the holder: it has ended, or is stuck


class Lease:
    """See the top of the file."""

    def __init__(self) -> None:
        self._holder: object = None
        self._heard_s: float | None = None  # of the holder; None = not since somebody asked

    def take(self, who: object, now_s: float | None = None) -> bool:
        """Whether it is `who`'s turn. `now_s`: None before the first word, where no time is at hand."""
        if self._holder not in (None, who) and not self._is_over(now_s):
            return False
        self._holder, self._heard_s = who, now_s
        return True

    def is_free(self, who: object, now_s: float) -> bool:
        return self._holder in (None, who) or self._is_over(now_s)

    def give_back(self, who: object) -> None:
        if self._holder is who:
            self._holder = None

    def _is_over(self, now_s: float | None) -> bool:
        if now_s is None:
            return False
        if self._heard_s is None:
            self._heard_s = now_s
        return now_s - self._heard_s > _LONGEST_S
