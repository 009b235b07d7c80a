"""What the core wants done. The shell carries commands out in order and reports what comes of them as events."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.core.metrics import RequestMetrics
from paceline.errors import PacelineError
from paceline.types import DrafterAsk, FinishReason, Source, Tokens, TopLogprobs, VerifierAsk


@dataclass(frozen=True, slots=True)
class Ask:
    """Send `ask` on the stream of `worker`; if that stream is gone, a `WorkerDown` is on its way."""

    worker: str
    ask: VerifierAsk | DrafterAsk


@dataclass(frozen=True, slots=True)
class Emit:
    """Newly committed tokens for the client."""

    request_id: str
    token_ids: Tokens
    sources: tuple[Source, ...]
    logprobs: tuple[float, ...] = ()  # one a token where they were asked for, else none
    top_logprobs: tuple[TopLogprobs, ...] = ()  # likewise


@dataclass(frozen=True, slots=True)
class Finish:
    """The request has ended well; nothing more follows for it."""

    request_id: str
    reason: FinishReason
    metrics: RequestMetrics


@dataclass(frozen=True, slots=True)
class Fail:
    """The request has ended badly; nothing more follows for it."""

    request_id: str
    error: PacelineError


Command = Ask | Emit | Finish | Fail
