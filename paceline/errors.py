"""Errors, split by blame.

Every error that a user can meet says three things: which field, which value, and what to do about it. The gRPC
status of each class is decided once, in `paceline.rpc`; the exit code of the command line once, in `deploy.cli`.
What happens every day (a stale draft, a lost worker) is an event of the core, never one of these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MAX_WORD = 64  # characters; nobody misspells at such length, and to compare what a stranger sends takes seconds


class PacelineError(Exception):
    """Base of every error this project raises on purpose; anything else is a bug."""


class InvalidInput(PacelineError):
    """The caller's input is wrong (INVALID_ARGUMENT, exit code 2)."""

    def __init__(self, field: str, value: object, fix: str) -> None:
        """`field` as the caller wrote it, the offending `value`, and the `fix` as an instruction."""
        super().__init__(f"{field}={_short(value)}: {fix}")
        self.field = field


class UsageError(InvalidInput):
    """A command line cannot be read; `text` says all that there is to say."""

    def __init__(self, text: str) -> None:
        Exception.__init__(self, text)
        self.field = "arguments"


class Unsupported(InvalidInput):
    """The input is lawful, but no exact way to serve it exists here (FAILED_PRECONDITION, exit code 2)."""


class Unhelpful(Unsupported):
    """A drafter that can help no verifier which is here now (FAILED_PRECONDITION); later it may be taken in."""

    def __init__(self, field: str, value: object, fix: str, retry_after_s: float) -> None:
        super().__init__(field, value, fix)
        self.retry_after_s = retry_after_s


class UnknownRequest(PacelineError):
    """A request id that nobody here holds (NOT_FOUND)."""

    def __init__(self, request_id: str) -> None:
        super().__init__(f"request_id={_short(request_id)}: no such request; it may have ended already")


class Unauthenticated(PacelineError):
    """The caller has not said who it is, or not with a key that is known here (UNAUTHENTICATED, exit code 2)."""


class Forbidden(PacelineError):
    """The caller is known, and this is not for its role (PERMISSION_DENIED, exit code 2)."""


class Overloaded(PacelineError):
    """A bounded queue or pool is full (RESOURCE_EXHAUSTED); the same call may succeed later."""

    def __init__(self, what: str, limit: float, retry_after_s: float) -> None:
        super().__init__(f"{what}: full at {limit}; try again in {retry_after_s:g} s")
        self.retry_after_s = retry_after_s


class Unavailable(PacelineError):
    """A part that the call needs is not there now (UNAVAILABLE)."""


class TimedOut(Unavailable):
    """The caller's own deadline has passed, or it gave the call up: asking again would be too late."""


class EngineLost(Unavailable):
    """What computes is gone for good, as a tensor parallel group that lost a rank: its process must start anew."""


class Internal(PacelineError):
    """A bug of ours has cost the caller this request (INTERNAL); the log says more."""


class PeerFault(PacelineError):
    """The other side of a connection broke the protocol; it costs that peer its request, nobody else."""


def _short(value: object, limit: int = 80) -> str:
    """Both ends of what is long: a path says most with its last part, a prompt with its first."""
    text = repr(value)
    half = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[:half]}…{text[-half:]}"


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """'did you mean X? ' for the nearest valid word, or nothing if none is near or the word is no word."""
    if len(word) > _MAX_WORD:
        return ""
    near = difflib.get_close_matches(word, list(valid), n=1, cutoff=0.4)
    return f"did you mean {near[0]}? " if near else ""
