"""The nouns of the house: what passes between coordinator, drafter and verifier.

Standard library only. Token ids are `tuple[int, ...]` here and tensors inside the engines; `paceline.codec` is the
border to protobuf. Positions are absolute and 0-based: token `i` of a request is its prompt's token `i`, then its
output. Every message names its place by `(request_id, epoch, start)`, so any of them may be repeated, lost or
overtaken without harm (docs/protocol.md).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TypeVar

from paceline import sampling_checks
from paceline.cache_use import CacheUse
from paceline.errors import InvalidInput
from paceline.length_policy import LengthPolicy
from paceline.packed import MAX_ROW_BITS as MAX_ROW_BITS
from paceline.packed import MIN_ROW_BITS as MIN_ROW_BITS
from paceline.packed import Rows as Rows

Tokens = tuple[int, ...]

WIRE_VERSION = 1  # of what coordinators and workers say to each other; raised when an older side would misread it
MAX_SEED = sampling_checks.MAX_SEED
MAX_BRANCHES, MAX_BRANCH_TOKENS = 64, 512  # of a request, waiting for their outcome


class Mode(enum.StrEnum):
    """How drafting and verification overlap (design, section 6)."""

    OFF = "off"  # plain decoding by the verifier
    SEQUENTIAL = "sequential"  # draft, verify, draft, …: nothing overlaps
    PEARL = "pearl"  # drafts stream ahead while earlier ones are verified
    BRANCH = "branch"  # likewise, and drafts for the likeliest other outcomes beside them

    @property
    def streams(self) -> bool:
        """Whether drafting goes on while earlier drafts are verified."""
        return self in (Mode.PEARL, Mode.BRANCH)


class Rule(enum.StrEnum):
    """How a draft is judged (design, section 5)."""

    MATCH = "match"  # keep while the draft equals the target's own sample; exact for any drafter
    COUPLED = "coupled"  # match, with noise shared through the seed; output independent of the drafter
    TOKEN = "token"  # rejection sampling, Leviathan et al. 2023; exact if the draft rows are truthful
    BLOCK = "block"  # rejection sampling of a draft as a whole, Sun et al. 2025; keeps more; likewise

    @property
    def needs_rows(self) -> bool:
        """Whether a draft comes with the laws its tokens were drawn from, and an open one ends in a retained row."""
        return self in (Rule.TOKEN, Rule.BLOCK)


_Member = TypeVar("_Member", Mode, Rule)


def member(kind: type[_Member], field: str, value: str | None) -> _Member | None:
    """The one that a client names; None for "auto" and for what was not given. Raises `InvalidInput`."""
    if value is None or value == "auto":
        return None
    try:
        return kind(value)
    except ValueError:
        raise InvalidInput(field, value, f"must be auto, {', '.join(kind)}") from None


class Source(enum.StrEnum):
    """Where a committed token comes from (the first three are vLLM's words)."""

    __hash__ = str.__hash__  # of a token each; enum's own is a call of Python

    ACCEPTED = "accepted"  # drafted, and kept by the rule
    RECOVERED = "recovered"  # the target's own token in place of a rejected one
    BONUS = "bonus"  # the target's own token after a draft that was kept whole
    SELF_DECODED = "self_decoded"  # the target's own token where no draft was tested


class FinishReason(enum.StrEnum):
    """Why a request ended; the first two are what OpenAI's API calls them."""

    STOP = "stop"  # an end-of-sequence token or a stop string
    LENGTH = "length"  # max_tokens reached
    CANCELLED = "cancelled"  # the client left, or its deadline passed


class Blame(enum.StrEnum):
    """Whose fault a refusal is, and so what follows from it."""

    WORKER = "worker"  # its own: the request is tried on another
    CALLER = "caller"  # the request itself is wrong: another worker would refuse it too
    DRAFTER = "drafter"  # it sent a draft that no honest one sends: the request goes on without it
    FULL = "full"  # nobody's: a worker has no place now


class Role(enum.StrEnum):
    """What a worker does."""

    DRAFTER = "drafter"
    VERIFIER = "verifier"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """The target law's parameters; `paceline.sampling` says in which order they are applied."""

    temperature: float = 1.0  # 0 = greedy
    top_k: int = 0  # keep the k likeliest tokens; 0 = all
    top_p: float = 1.0  # then the smallest set of at least this mass
    seed: int | None = None  # None = drawn by the coordinator; a given seed makes the output reproducible
    min_p: float = 0.0  # then those at least this likely, relative to the likeliest; 0 = all
    repetition_penalty: float = 1.0  # divides the score of every token seen in prompt or output; 1 = off
    presence_penalty: float = 0.0  # off the score of every token in the output
    frequency_penalty: float = 0.0  # likewise, for each time it stands there
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, what is added to its score)
    min_tokens: int = 0  # none of stop_token_ids before so many output tokens
    stop_token_ids: Tokens = ()  # output ends with the first of these; the coordinator adds the model's own
    logprobs: bool = False  # say of each output token how likely the target's law had it
    top_logprobs: int = 0  # and of so many of the likeliest tokens at its place

    def __post_init__(self) -> None:
        sampling_checks.check(self)

    @property
    def has_penalty(self) -> bool:
        """Whether a row depends on which tokens stand before it."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return penalties != (1, 0, 0)

    @property
    def adjusts_logits(self) -> bool:
        """Whether anything is done to the logits that greedy sampling would notice."""
        return self.has_penalty or bool(self.logit_bias) or (self.min_tokens > 0 and bool(self.stop_token_ids))

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


@dataclass(frozen=True, slots=True)
class TopLogprobs:
    """The likeliest tokens at one place of the output, the likeliest first; what the law cuts off is left out."""

    token_ids: Tokens
    logprobs: tuple[float, ...]  # one a token: natural logarithms


@dataclass(frozen=True, slots=True)
class Draft:
    """A run of proposed tokens for positions `start`, `start + 1`, …

    `epoch` names the run of drafting it belongs to. An *open* draft says in advance that its successor will be
    drafted too, so that under rejection sampling no bonus is taken after it and the retained row judges the
    successor: timing never chooses between testing a draft and sampling afresh.
    """

    request_id: str
    epoch: int
    start: int
    token_ids: Tokens
    is_open: bool = False
    rows: Rows | None = None  # one per token under `token` and `block`; None under `match` and `coupled`
    draft_ms: float = 0.0  # time the drafter computed for it

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)

    @property
    def is_certain(self) -> bool:
        """Whether nothing was left to chance, by its rows: then it is a function of the tokens before it."""
        return self.rows is not None and self.rows.width == 1

    def drop(self, num_tokens: int) -> Draft:
        """The same draft without its first `num_tokens` tokens."""
        if not num_tokens:
            return self
        rows = self.rows.drop(num_tokens) if self.rows else None
        return replace(self, start=self.start + num_tokens, token_ids=self.token_ids[num_tokens:], rows=rows)


@dataclass(frozen=True, slots=True)
class Branch:
    """A draft for an outcome that has not happened yet: that `token_id` is committed right before it starts.

    Up to there it agrees with the chain of the run `draft.epoch`, which has another token in that place. If the
    outcome comes, that run is over, and the draft is the first one of the next.
    """

    token_id: int
    draft: Draft

    @property
    def request_id(self) -> str:
        return self.draft.request_id

    @property
    def position(self) -> int:
        """Where `token_id` stands."""
        return self.draft.start - 1


@dataclass(frozen=True, slots=True)
class Pass:
    """The drafter's turn, not taken: it has nothing to propose for `start` until more is committed.

    It tells what a wait would have told, so losing, repeating or ignoring it costs time and nothing else.
    """

    request_id: str
    epoch: int
    start: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verifier's answer: its committed tokens from `start` on, and where each came from.

    The verifier owns the log of committed tokens; a verdict is a piece of it. Applying one twice, or one that
    overlaps what is known, changes nothing.
    """

    request_id: str
    epoch: int
    start: int
    token_ids: Tokens
    sources: tuple[Source, ...]
    num_tested: int = 0  # drafted tokens that the rule looked at: those accepted, plus one if one was rejected
    num_drafts: int = 0  # drafts judged by this pass; several that were waiting are judged as one
    verify_ms: float = 0.0  # the forward pass that this verdict waited for; 0 if none was needed
    queue_ms: float = 0.0  # from the ask's arrival to that pass
    batch_tokens: int = 0  # tokens in that pass, over all its requests
    logprobs: tuple[float, ...] = ()  # one a token where they were asked for, else none
    top_logprobs: tuple[TopLogprobs, ...] = ()  # likewise


# What a coordinator asks of a verifier. One bidi stream per (coordinator, worker), requests multiplexed by id.


@dataclass(frozen=True, slots=True)
class OpenVerify:
    """Take a request: prefill `token_ids`, then decode `num_decode` tokens unless a draft comes first."""

    request_id: str
    token_ids: Tokens  # the prompt, and on a move whatever was committed already
    sampling: SamplingParams
    rule: Rule
    seed: int  # of the verifier's coins; under `coupled` the shared one
    num_decode: int = 1
    num_prompt_tokens: int = 0  # how many of token_ids are the prompt; 0 = all


@dataclass(frozen=True, slots=True)
class Verify:
    """Judge a draft. `preverify`: after a rejection forward the recovered token at once (PEARL's pre-verify)."""

    draft: Draft
    preverify: bool = False

    @property
    def request_id(self) -> str:
        return self.draft.request_id


@dataclass(frozen=True, slots=True)
class Decode:
    """Decode until position `start + num_tokens`, one verdict a token; a draft that arrives ends the run."""

    request_id: str
    epoch: int
    start: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Close:
    """Forget a request and free all it holds. Closing an unknown request is not an error."""

    request_id: str


# What a coordinator asks of a drafter (and `Close`).


@dataclass(frozen=True, slots=True)
class OpenDraft:
    """Take a request and draft after `token_ids`; for a request known already: resynchronise and send again."""

    request_id: str
    epoch: int
    token_ids: Tokens
    sampling: SamplingParams
    rule: Rule
    seed: int  # of the draft noise; under `coupled` the shared one
    policy: LengthPolicy
    window: int  # drafts that may be unverified at a time; 1 = closed drafts, one at a time; 0 = none for now
    end: int  # absolute position at which drafting stops (prompt + max_tokens)
    stop_token_ids: Tokens = ()  # nothing is drafted after one of these
    num_prompt_tokens: int = 0  # how many of token_ids are the prompt; 0 = all
    branches: int = 0  # that may wait for their outcome at a time


@dataclass(frozen=True, slots=True)
class DraftPlan:
    """How to draft from now on. A window of 0: draft nothing until told otherwise, and keep what is cached."""

    policy: LengthPolicy
    window: int
    branches: int = 0


@dataclass(frozen=True, slots=True)
class Commit:
    """The committed tokens from `start` on. A run that disagrees starts anew after them, as `epoch`."""

    request_id: str
    epoch: int
    start: int
    token_ids: Tokens
    plan: DraftPlan | None = None  # None = as before


@dataclass(frozen=True, slots=True)
class Fault:
    """A worker's refusal: this request cannot go on there. The worker serves the others on."""

    request_id: str
    message: str
    blame: Blame = Blame.WORKER


@dataclass(frozen=True, slots=True)
class StepCost:
    """A worker's own estimate of what a forward pass takes (`paceline.engine.cost`); no part is negative."""

    base_ms: float
    per_token_ms: float
    per_seq_ms: float
    per_context_token_ms: float  # and sequence: for reading what is cached

    def ms(self, num_tokens: int, num_seqs: int, context: float) -> float:
        """A pass over `num_tokens` in all, of `num_seqs` requests with `context` cached tokens each on average."""
        read_ms = self.per_context_token_ms * num_seqs * context
        return self.base_ms + self.per_token_ms * num_tokens + self.per_seq_ms * num_seqs + read_ms


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a worker says of itself when it registers."""

    role: Role
    address: str  # HOST:PORT of its gRPC server
    incarnation: int  # drawn at its start; fences off an earlier process at the same address
    model: str  # the name or path it was started with
    model_hash: str
    tokenizer_hash: str  # empty for a drafter that drafts in any vocabulary
    vocab_size: int
    max_model_len: int
    max_num_seqs: int  # requests it takes at a time
    eos_token_ids: Tokens
    dtype: str  # empty where there are no weights
    device: str
    cost: StepCost | None = None  # as measured so far; renewed with the lease
    num_requests: int = 0  # held now, of all coordinators; likewise
    is_draining: bool = False  # going away: it wants nothing new, and to be rid of what it has
    policies: tuple[str, ...] = ()  # of a drafter: the length policies it offers; empty = it has not said
    wire_version: int = WIRE_VERSION  # 0 = older than the field
    cache: CacheUse | None = None  # now; renewed with the lease

    def renewed(self, said: WorkerInfo) -> WorkerInfo:
        """The same worker as it says that it is now. What it is was checked when it came, and does not change."""
        cost, num_requests, cache = said.cost or self.cost, said.num_requests, said.cache
        return replace(self, cost=cost, num_requests=num_requests, is_draining=said.is_draining, cache=cache)

    def offers(self, policy: LengthPolicy) -> bool:
        """Whether to ask this drafter for drafts under `policy`; one that has not said may still refuse it."""
        return not self.policies or policy.name in self.policies


VerifierAsk = OpenVerify | Verify | Decode | Close
VerifierReply = Verdict | Fault
DrafterAsk = OpenDraft | Commit | Close
DrafterReply = Draft | Branch | Pass | Fault
