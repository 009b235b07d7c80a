"""The border between the house's dataclasses and protobuf, in both directions.

Rules. Nothing past this file sees a protobuf message of the worker streams. `…_from_wire` checks every bound
that the `.proto` comments state and raises `InvalidInput` naming the field; for a peer's reply it raises
`PeerFault`, because there the caller is not to blame. `…_to_wire` trusts its argument: a value that does not
fit is a bug on our side.

One table a message: the fields that need more than a copy, and how their values cross (`paceline.fields`). Token
ids cross as little-endian uint32 `bytes`, which code twenty times faster than repeated fields.

Deliberately absent: what the ids and counts of `Rows` say. The coordinator passes them on unread, and
`paceline.rows` checks them where they are used.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from paceline.cache_use import CacheUse
from paceline.errors import InvalidInput
from paceline.fields import (
    EnumField,
    Field,
    Message,
    OneOf,
    integer,
    matching,
    milliseconds,
    same,
    string,
    tokens,
)
from paceline.length_policy import LengthPolicy
from paceline.sampling_checks import MAX_TOP_LOGPROBS
from paceline.types import (
    MAX_BRANCHES,
    MAX_ROW_BITS,
    MAX_SEED,
    MIN_ROW_BITS,
    Blame,
    Branch,
    Close,
    Commit,
    Decode,
    Draft,
    DrafterAsk,
    DrafterReply,
    DraftPlan,
    Fault,
    Mode,
    OpenDraft,
    OpenVerify,
    Pass,
    Role,
    Rows,
    Rule,
    SamplingParams,
    Source,
    StepCost,
    TopLogprobs,
    Verdict,
    VerifierAsk,
    VerifierReply,
    Verify,
    WorkerInfo,
)
from paceline.wire import common_pb2, drafter_pb2, verifier_pb2

MAX_REQUEST_ID = 128  # characters
MAX_DRAFT_TOKENS = 64
MAX_WINDOW = 64
MAX_ROW_WIDTH = 1024
MAX_FAULT_MESSAGE = 1000
MAX_NAME = 1024  # of a model or a device
MAX_POLICIES, MAX_POLICY_NAME = 64, 64  # that a drafter offers
DTYPES = ("float32", "bfloat16")


def sources_to_wire(sources: Iterable[Source]) -> list[Any]:
    """The numbers of a `repeated Source`."""
    return _SOURCE.all_to_wire(sources)


def sources_from_wire(field: str, numbers: Iterable[int]) -> tuple[Source, ...]:
    """Raises `InvalidInput` for a number that is none of `Source`."""
    return _SOURCE.all_from_wire(field, numbers)


def length_policy_to_wire(policy: LengthPolicy) -> Any:
    return common_pb2.LengthPolicy(name=policy.name, parameters=dict(policy.parameters))


def length_policy_from_wire(wire: Any) -> LengthPolicy:
    """Absent parameters take their defaults. Raises `InvalidInput`."""
    return LengthPolicy.of(wire.name, dict(wire.parameters))


def _check_rows(name: str, rows: Rows) -> None:
    size = len(rows.counts)
    if not size or size % rows.row_bytes:
        fix = f"must be a positive number of rows of {rows.width} counts of {rows.bits} bits"
        raise InvalidInput(f"{name}.counts", f"{size} bytes", fix)
    want = 4 * rows.width * rows.num_rows
    if len(rows.ids) != want:
        raise InvalidInput(f"{name}.ids", f"{len(rows.ids)} bytes", f"must be {want}, one uint32 a count")


def _check_draft(name: str, draft: Draft) -> None:
    if draft.rows and draft.rows.num_rows != len(draft.token_ids):
        fix = f"must be one a token, and there are {len(draft.token_ids)} tokens"
        raise InvalidInput(f"{name}.rows", f"{draft.rows.num_rows} rows", fix)


def _check_branch(name: str, branch: Branch) -> None:
    if branch.draft.start < 1:
        raise InvalidInput(
            f"{name}.draft.start", branch.draft.start, "must be at least 1: its outcome stands before it"
        )


def _check_verdict(name: str, verdict: Verdict) -> None:
    if len(verdict.sources) != len(verdict.token_ids):
        fix = f"must be one a token, and there are {len(verdict.token_ids)} tokens"
        raise InvalidInput(f"{name}.sources", f"{len(verdict.sources)} sources", fix)
    if verdict.logprobs and len(verdict.logprobs) != len(verdict.token_ids):
        fix = f"must be none or one a token, and there are {len(verdict.token_ids)} tokens"
        raise InvalidInput(f"{name}.logprobs", f"{len(verdict.logprobs)} logprobs", fix)
    if verdict.top_logprobs and len(verdict.top_logprobs) != len(verdict.token_ids):
        fix = f"must be none or one a token, and there are {len(verdict.token_ids)} tokens"
        raise InvalidInput(f"{name}.top_logprobs", f"{len(verdict.top_logprobs)} of them", fix)


def _check_top(name: str, top: TopLogprobs) -> None:
    if not len(top.token_ids) == len(top.logprobs) <= MAX_TOP_LOGPROBS:
        fix = f"must have one logprob a token, and at most {MAX_TOP_LOGPROBS} of them"
        raise InvalidInput(name, f"{len(top.token_ids)} tokens, {len(top.logprobs)} logprobs", fix)


def _check_cache(name: str, cache: CacheUse) -> None:
    if cache.num_used_tokens > cache.num_tokens or cache.num_found_tokens > cache.num_queried_tokens:
        raise InvalidInput(name, cache, "more is used, or found, than there is")


def _policies(name: str, policies: Iterable[str]) -> tuple[str, ...]:
    """Names that we do not know are a newer drafter's, and lawful."""
    names = tuple(policies)
    if len(names) > MAX_POLICIES or any(not 1 <= len(policy) <= MAX_POLICY_NAME for policy in names):
        fix = f"must be at most {MAX_POLICIES} names of 1 to {MAX_POLICY_NAME} characters"
        raise InvalidInput(name, f"{len(names)} names", fix)
    return names


_RULE = EnumField("rule", Rule, common_pb2.Rule)
_MODE = EnumField("mode", Mode, common_pb2.Mode)
_SOURCE = EnumField("source", Source, common_pb2.Source)
_ROLE = EnumField("role", Role, common_pb2.Role)
_BLAME = EnumField("blame", Blame, common_pb2.Blame)

_ID = string(1, MAX_REQUEST_ID)
_IDS = Field(same, lambda _, values: tuple(values))  # of any repeated number
_MS = Field(same, milliseconds)
_SEED = integer(0, MAX_SEED)
_BRANCHES = integer(0, MAX_BRANCHES)
_POSITIVE = integer(1, 2**32 - 1)
_NAME = string(1, MAX_NAME)
_POLICY = Field(length_policy_to_wire, lambda _, wire: length_policy_from_wire(wire))
_SHA256 = "([a-z0-9-]{1,32}:)?[0-9a-f]{64}"
_HASH = matching(_SHA256, "a SHA-256 in 64 hexadecimal digits")
_TOKENIZER_HASH = matching(f"({_SHA256})?", "a SHA-256 in 64 hexadecimal digits, or nothing: fits any tokenizer")

_SAMPLING = Message(  # checks its own ranges
    "sampling",
    SamplingParams,
    common_pb2.SamplingParams,
    repetition_penalty=Field(same, lambda _, value: value or 1.0),
    logit_bias=Field(dict, lambda _, biases: tuple(sorted(biases.items()))),
    stop_token_ids=_IDS,
)
_ROW_BITS = integer(MIN_ROW_BITS, MAX_ROW_BITS)
_ROWS = Message(
    "rows",
    Rows,
    common_pb2.Rows,
    _check_rows,
    width=integer(1, MAX_ROW_WIDTH),
    bits=Field(same, lambda field, value: _ROW_BITS.of(field, value or MAX_ROW_BITS)),
)
_DRAFT = Message(
    "draft",
    Draft,
    drafter_pb2.Draft,
    _check_draft,
    request_id=_ID,
    token_ids=tokens(1, MAX_DRAFT_TOKENS),
    rows=_ROWS.field,
    draft_ms=_MS,
)
_BRANCH = Message("branch", Branch, drafter_pb2.Branch, _check_branch, draft=_DRAFT.field)
_CLOSE = Message("close", Close, common_pb2.Close, request_id=_ID)
_PASS = Message("passed", Pass, drafter_pb2.Pass, request_id=_ID)
_FAULT = Message(
    "fault",
    Fault,
    common_pb2.Fault,
    request_id=_ID,
    message=string(0, MAX_FAULT_MESSAGE, cut=True),
    blame=_BLAME.field,
)
_OPEN_VERIFY = Message(
    "open",
    OpenVerify,
    verifier_pb2.OpenVerify,
    request_id=_ID,
    token_ids=tokens(1),
    sampling=_SAMPLING.field,
    rule=_RULE.field,
    seed=_SEED,
)
_VERIFY = Message("verify", Verify, verifier_pb2.Verify, draft=_DRAFT.field)
_DECODE = Message("decode", Decode, verifier_pb2.Decode, request_id=_ID, num_tokens=_POSITIVE)
_TOP = Message("top_logprobs", TopLogprobs, common_pb2.TopLogprobs, _check_top, token_ids=_IDS, logprobs=_IDS)
_TOPS = Field(
    lambda tops: [_TOP.to_wire(top) for top in tops], lambda _, wires: tuple(_TOP.from_wire(wire) for wire in wires)
)
_VERDICT = Message(
    "verdict",
    Verdict,
    verifier_pb2.Verdict,
    _check_verdict,
    request_id=_ID,
    token_ids=tokens(),
    sources=Field(sources_to_wire, sources_from_wire),
    logprobs=_IDS,
    top_logprobs=_TOPS,
    verify_ms=_MS,
    queue_ms=_MS,
)
_OPEN_DRAFT = Message(
    "open",
    OpenDraft,
    drafter_pb2.OpenDraft,
    request_id=_ID,
    token_ids=tokens(1),
    sampling=_SAMPLING.field,
    rule=_RULE.field,
    seed=_SEED,
    policy=_POLICY,
    window=integer(0, MAX_WINDOW),
    branches=_BRANCHES,
    stop_token_ids=_IDS,
)
_PLAN = Message(
    "plan", DraftPlan, drafter_pb2.DraftPlan, policy=_POLICY, window=integer(0, MAX_WINDOW), branches=_BRANCHES
)
_COMMIT = Message("commit", Commit, drafter_pb2.Commit, request_id=_ID, token_ids=tokens(), plan=_PLAN.field)
_COST = Message(
    "cost",
    StepCost,
    common_pb2.StepCost,
    base_ms=_MS,
    per_token_ms=_MS,
    per_seq_ms=_MS,
    per_context_token_ms=_MS,
)
_CACHE = Message("cache", CacheUse, common_pb2.CacheUse, _check_cache)
_WORKER = Message(
    "worker",
    WorkerInfo,
    common_pb2.WorkerInfo,
    role=_ROLE.field,
    address=matching(r"\S{1,255}:[0-9]{1,5}", "HOST:PORT of the worker's gRPC server"),
    model=_NAME,
    model_hash=_HASH,
    tokenizer_hash=_TOKENIZER_HASH,
    vocab_size=_POSITIVE,
    max_model_len=_POSITIVE,
    max_num_seqs=_POSITIVE,
    eos_token_ids=_IDS,
    dtype=matching("|".join(("", *DTYPES)), " or ".join((*DTYPES, "nothing (no weights)"))),
    device=_NAME,
    cost=_COST.field,
    cache=_CACHE.field,
    policies=Field(same, _policies),
)


_VERIFIER_ASK: OneOf[VerifierAsk] = OneOf(
    "ask",
    verifier_pb2.VerifierAsk,
    {
        "open": (OpenVerify, _OPEN_VERIFY),
        "verify": (Verify, _VERIFY),
        "decode": (Decode, _DECODE),
        "close": (Close, _CLOSE),
    },
)
_VERIFIER_REPLY: OneOf[VerifierReply] = OneOf(
    "reply", verifier_pb2.VerifierReply, {"verdict": (Verdict, _VERDICT), "fault": (Fault, _FAULT)}
)
_DRAFTER_ASK: OneOf[DrafterAsk] = OneOf(
    "ask",
    drafter_pb2.DrafterAsk,
    {"open": (OpenDraft, _OPEN_DRAFT), "commit": (Commit, _COMMIT), "close": (Close, _CLOSE)},
)
_DRAFTER_REPLY: OneOf[DrafterReply] = OneOf(
    "reply",
    drafter_pb2.DrafterReply,
    {"draft": (Draft, _DRAFT), "fault": (Fault, _FAULT), "passed": (Pass, _PASS), "branch": (Branch, _BRANCH)},
)


def request_id_of(wire_ask: Any) -> str | None:
    """The request that a malformed ask was about, if that much of it is well formed."""
    arm = wire_ask.WhichOneof("ask")
    if arm is None:
        return None
    message = wire_ask.verify.draft if arm == "verify" else getattr(wire_ask, arm)
    request_id: str = message.request_id
    return request_id if 1 <= len(request_id) <= MAX_REQUEST_ID else None


verifier_ask_to_wire, verifier_ask_from_wire = _VERIFIER_ASK.to_wire, _VERIFIER_ASK.from_wire
verifier_reply_to_wire, verifier_reply_from_wire = _VERIFIER_REPLY.to_wire, _VERIFIER_REPLY.blaming_the_peer
drafter_ask_to_wire, drafter_ask_from_wire = _DRAFTER_ASK.to_wire, _DRAFTER_ASK.from_wire
drafter_reply_to_wire, drafter_reply_from_wire = _DRAFTER_REPLY.to_wire, _DRAFTER_REPLY.blaming_the_peer

top_logprobs_to_wire, top_logprobs_from_wire = _TOPS.to, _TOPS.of
sampling_to_wire, sampling_from_wire = _SAMPLING.to_wire, _SAMPLING.from_wire
rows_to_wire, rows_from_wire = _ROWS.to_wire, _ROWS.from_wire
draft_to_wire, draft_from_wire = _DRAFT.to_wire, _DRAFT.from_wire
verdict_to_wire, verdict_from_wire = _VERDICT.to_wire, _VERDICT.from_wire
worker_info_to_wire, worker_info_from_wire = _WORKER.to_wire, _WORKER.from_wire
rule_to_wire, rule_from_wire = _RULE.to_wire, _RULE.or_none
mode_to_wire, mode_from_wire = _MODE.to_wire, _MODE.or_none
