"""What can happen to the coordinator's core. A failed worker or a late draft is an event, never an exception."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.errors import PacelineError
from paceline.length_policy import LengthPolicy
from paceline.types import (
    Blame,
    Branch,
    Draft,
    DrafterReply,
    Fault,
    FinishReason,
    Mode,
    Pass,
    Rule,
    SamplingParams,
    Tokens,
    Verdict,
    VerifierReply,
    WorkerInfo,
)


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """One generation, checked and tokenized, with every choice left open resolved or `None` for *auto*."""

    request_id: str
    token_ids: Tokens  # the prompt, at least one token
    max_tokens: int
    sampling: SamplingParams
    seed: int  # of the verifier's coins; equals sampling.seed where one was given
    draft_seed: int  # of the drafter's noise, unrelated to `seed`: a drafter must not see the verifier's coins
    stop_token_ids: Tokens = ()  # output ends with the first of these
    mode: Mode | None = None
    rule: Rule | None = None
    policy: LengthPolicy | None = None
    max_draft_length: int | None = None  # tokens; whatever else chooses a draft's length
    window: int | None = None  # drafts unverified at a time in a mode that streams
    resumed: Tokens = ()  # output that the client has already, from another coordinator; at most max_tokens
    client: str = ""  # whose it is, for the queue's turns
    num_siblings: int = 1  # outputs of the same prompt, in the same call, this one included
    sibling_of: str = ""  # the first of them; empty = itself
    call_id: str = ""  # the first request of the call that it came in, maybe for another prompt; empty = itself

    @property
    def end(self) -> int:
        """The absolute position at which the output is long enough."""
        return len(self.token_ids) + self.max_tokens


@dataclass(frozen=True, slots=True)
class Arrived:
    spec: RequestSpec


@dataclass(frozen=True, slots=True)
class Ended:
    """The shell has ended the request: its client left, or a stop string appeared in the text."""

    request_id: str
    reason: FinishReason
    error: PacelineError | None = None  # it ends badly, with this


@dataclass(frozen=True, slots=True)
class Drafted:
    worker: str
    draft: Draft


@dataclass(frozen=True, slots=True)
class Branched:
    """A draft for an outcome that has not happened yet."""

    worker: str
    branch: Branch


@dataclass(frozen=True, slots=True)
class Passed:
    """The drafter has nothing to draft before the next commit."""

    worker: str
    passed: Pass


@dataclass(frozen=True, slots=True)
class Verified:
    worker: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Faulted:
    """A worker refused a request."""

    worker: str
    request_id: str
    message: str
    blame: Blame = Blame.WORKER


@dataclass(frozen=True, slots=True)
class WorkerUp:
    """A worker's stream is open. Its id is new: a worker that comes back comes back as another."""

    worker: str
    info: WorkerInfo
    is_trusted: bool = False  # of a drafter: its rows are believed; the coordinator's opinion, never its own word
    rtt_s: float | None = None  # of a call to it that needs no model


@dataclass(frozen=True, slots=True)
class WorkerRenewed:
    """A worker has renewed its lease, and says how it is now."""

    worker: str
    info: WorkerInfo
    rtt_s: float | None = None  # as last measured


@dataclass(frozen=True, slots=True)
class WorkerSuspected:
    """A worker has not renewed its lease in time, and may be gone."""

    worker: str


@dataclass(frozen=True, slots=True)
class WorkerDown:
    worker: str


@dataclass(frozen=True, slots=True)
class WorkerDraining:
    """A worker wants to go: it gets nothing new, and what it has moves as soon as there is room elsewhere."""

    worker: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; the shell sends one by `next_deadline_s()`."""


WorkerEvent = WorkerUp | WorkerRenewed | WorkerSuspected | WorkerDraining | WorkerDown
Event = Arrived | Ended | Drafted | Branched | Passed | Verified | Faulted | WorkerEvent | Tick


def request_id_of(event: Event) -> str | None:
    """The request that an event is about; None if it is about a worker, or the time."""
    match event:
        case Arrived(spec):
            return spec.request_id
        case Drafted(_, draft):
            return draft.request_id
        case Branched(_, branch):
            return branch.request_id
        case Passed(_, passed):
            return passed.request_id
        case Verified(_, verdict):
            return verdict.request_id
        case Ended(request_id) | Faulted(_, request_id):
            return request_id
    return None


def event_of(worker: str, reply: DrafterReply | VerifierReply) -> Event:
    """What a worker's reply is to the core."""
    match reply:
        case Draft():
            return Drafted(worker, reply)
        case Branch():
            return Branched(worker, reply)
        case Pass():
            return Passed(worker, reply)
        case Verdict():
            return Verified(worker, reply)
        case Fault():
            return Faulted(worker, reply.request_id, reply.message, reply.blame)
