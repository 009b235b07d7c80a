"""The border between the house's dataclasses and protobuf, in both directions.

Rules. Nothing past this file sees a protobuf message of the worker streams. `…_from_wire` checks every bound
that the `.proto` comments state and raises `InvalidInput` naming the field; for a peer's reply it raises
`PeerFault`, because there the caller is not to blame. `…_to_wire` trusts its argument: a value that does not
fit is a bug on our side.

One table a message: the fields that need more than a copy, and how their values cross. Token ids cross as
little-endian uint32 `bytes`, which code twenty times faster than repeated fields.

Deliberately absent: what the ids and counts of `Rows` say. The coordinator passes them on unread, and
`paceline.rows` checks them where they are used.
"""

from __future__ import annotations

import dataclasses
import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from operator import attrgetter
from typing import Any, Generic, NamedTuple, TypeVar

from paceline.errors import InvalidInput, PeerFault
from paceline.length_policy import LengthPolicy
from paceline.types import (
    MAX_SEED,
    Blame,
    Close,
    Commit,
    Decode,
    Draft,
    DrafterAsk,
    DrafterReply,
    Fault,
    Mode,
    OpenDraft,
    OpenVerify,
    Role,
    Rows,
    Rule,
    SamplingParams,
    Source,
    Tokens,
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
DTYPES = ("float32", "bfloat16")

T = TypeVar("T")
E = TypeVar("E", bound=Enum)


def tokens_to_wire(token_ids: Iterable[int]) -> bytes:
    """Little-endian uint32."""
    token_ids = tuple(token_ids)
    return struct.pack(f"<{len(token_ids)}I", *token_ids)


def tokens_from_wire(field: str, data: bytes, low: int = 0, high: int = 2**32) -> Tokens:
    """`low` to `high` token ids. Raises `InvalidInput`."""
    num, rest = divmod(len(data), 4)
    if rest:
        raise InvalidInput(field, f"{len(data)} bytes", "must be whole little-endian uint32, 4 bytes each")
    if not low <= num <= high:
        upper = f" to {high}" if high < 2**32 else " or more"
        raise InvalidInput(field, f"{num} tokens", f"must be {low}{upper} tokens")
    return struct.unpack(f"<{num}I", data)


class Field(NamedTuple):
    """How one field's value crosses: `to(value)` and `of(field_name, wire_value)`."""

    to: Callable[[Any], Any]
    of: Callable[[str, Any], Any]


def _same(value: Any) -> Any:
    return value


_COPY = Field(_same, lambda _, value: value)


class _Message(Generic[T]):
    """A dataclass and its protobuf twin, whose fields have the same names.

    `special` says how a field crosses; the others are copied, since protobuf itself bounds them. Fields whose
    default is None may be absent. `check(name, value)` sees the whole, for bounds across fields.
    """

    def __init__(
        self,
        name: str,
        kind: Callable[..., T],
        wire: Callable[..., Any],
        check: Callable[[str, T], None] | None = None,
        **special: Field,
    ) -> None:
        self._name, self._kind, self._wire, self._check = name, kind, wire, check
        self._to, self._of = [], []
        for field in dataclasses.fields(kind):  # type: ignore[arg-type]
            key, get = field.name, attrgetter(field.name)
            way = special.pop(key, _COPY)
            self._to.append((key, get, way.to))
            self._of.append((key, f"{name}.{key}", get, way.of, field.default is None))
        if special:
            raise TypeError(f"{name} has no field {', '.join(special)}")

    def to_wire(self, value: T) -> Any:
        values = ((key, to, get(value)) for key, get, to in self._to)
        return self._wire(**{key: to(plain) for key, to, plain in values if plain is not None})

    def from_wire(self, wire: Any) -> T:
        given = {
            key: None if is_optional and not wire.HasField(key) else of(label, get(wire))
            for key, label, get, of, is_optional in self._of
        }
        value = self._kind(**given)
        if self._check:
            self._check(self._name, value)
        return value

    @property
    def field(self) -> Field:
        """This message inside another."""
        return Field(self.to_wire, lambda _, wire: self.from_wire(wire))


class _Enum(Generic[E]):
    """A StrEnum and its protobuf twin, whose names carry the enum's name as a prefix; 0 is *unspecified*."""

    def __init__(self, field: str, kind: type[E], wire: Any) -> None:
        self._field = field
        self._to = {member: wire.Value(f"{field.upper()}_{member.name}") for member in kind}
        self._of = {number: member for member, number in self._to.items()}

    def to_wire(self, value: E | None) -> Any:
        return 0 if value is None else self._to[value]

    def from_wire(self, field: str, number: int) -> E:
        if number not in self._of:
            names = ", ".join(f"{number}={member.value}" for number, member in self._of.items())
            raise InvalidInput(field, number, f"must be one of {names}")
        return self._of[number]

    def or_none(self, number: int) -> E | None:
        """None for *unspecified*, which a client's request reads as auto."""
        return self.from_wire(self._field, number) if number else None

    @property
    def field(self) -> Field:
        return Field(self._to.__getitem__, self.from_wire)


def _integer(low: int, high: int) -> Field:
    def of(field: str, value: int) -> int:
        if not low <= value <= high:
            raise InvalidInput(field, value, f"must be from {low} to {high}")
        return value

    return Field(_same, of)


def _string(low: int, high: int, cut: bool = False) -> Field:
    def of(field: str, value: str) -> str:
        if not low <= len(value) <= high:
            raise InvalidInput(field, value, f"must be {low} to {high} characters")
        return value

    return Field((lambda value: value[:high]) if cut else _same, of)


def _matching(pattern: str, meaning: str) -> Field:
    def of(field: str, value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise InvalidInput(field, value, f"must be {meaning}")
        return value

    return Field(_same, of)


def _tokens(low: int = 0, high: int = 2**32) -> Field:
    return Field(tokens_to_wire, lambda field, data: tokens_from_wire(field, data, low, high))


def _milliseconds(field: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise InvalidInput(field, value, "must be a finite number of milliseconds, not negative")
    return value


def sources_to_wire(sources: Iterable[Source]) -> list[Any]:
    """The numbers of a `repeated Source`."""
    return [_SOURCE.to_wire(source) for source in sources]


def sources_from_wire(field: str, numbers: Iterable[int]) -> tuple[Source, ...]:
    """Raises `InvalidInput` for a number that is none of `Source`."""
    return tuple(_SOURCE.from_wire(field, number) for number in numbers)


def length_policy_to_wire(policy: LengthPolicy) -> Any:
    return common_pb2.LengthPolicy(name=policy.name, parameters=dict(policy.parameters))


def length_policy_from_wire(wire: Any) -> LengthPolicy:
    """Absent parameters take their defaults. Raises `InvalidInput`."""
    return LengthPolicy.of(wire.name, dict(wire.parameters))


def _check_rows(name: str, rows: Rows) -> None:
    size = len(rows.counts)
    if not size or size % (2 * rows.width):
        fix = f"must be a positive number of rows of {rows.width} uint16 counts"
        raise InvalidInput(f"{name}.counts", f"{size} bytes", fix)
    if len(rows.ids) != 2 * size:
        raise InvalidInput(f"{name}.ids", f"{len(rows.ids)} bytes", f"must be {2 * size}, one uint32 a count")


def _check_draft(name: str, draft: Draft) -> None:
    if draft.rows and draft.rows.num_rows != len(draft.token_ids):
        fix = f"must be one a token, and there are {len(draft.token_ids)} tokens"
        raise InvalidInput(f"{name}.rows", f"{draft.rows.num_rows} rows", fix)


def _check_verdict(name: str, verdict: Verdict) -> None:
    if len(verdict.sources) != len(verdict.token_ids):
        fix = f"must be one a token, and there are {len(verdict.token_ids)} tokens"
        raise InvalidInput(f"{name}.sources", f"{len(verdict.sources)} sources", fix)


_RULE = _Enum("rule", Rule, common_pb2.Rule)
_MODE = _Enum("mode", Mode, common_pb2.Mode)
_SOURCE = _Enum("source", Source, common_pb2.Source)
_ROLE = _Enum("role", Role, common_pb2.Role)
_BLAME = _Enum("blame", Blame, common_pb2.Blame)

_ID = _string(1, MAX_REQUEST_ID)
_IDS = Field(_same, lambda _, values: tuple(values))
_MS = Field(_same, _milliseconds)
_SEED = _integer(0, MAX_SEED)
_POSITIVE = _integer(1, 2**32 - 1)
_NAME = _string(1, MAX_NAME)
_HASH = _matching("([a-z0-9-]{1,32}:)?[0-9a-f]{64}", "a SHA-256 in 64 hexadecimal digits")

_SAMPLING = _Message("sampling", SamplingParams, common_pb2.SamplingParams)  # checks its own ranges
_ROWS = _Message("rows", Rows, common_pb2.Rows, _check_rows, width=_integer(1, MAX_ROW_WIDTH))
_DRAFT = _Message(
    "draft",
    Draft,
    drafter_pb2.Draft,
    _check_draft,
    request_id=_ID,
    token_ids=_tokens(1, MAX_DRAFT_TOKENS),
    rows=_ROWS.field,
    draft_ms=_MS,
)
_CLOSE = _Message("close", Close, common_pb2.Close, request_id=_ID)
_FAULT = _Message(
    "fault",
    Fault,
    common_pb2.Fault,
    request_id=_ID,
    message=_string(0, MAX_FAULT_MESSAGE, cut=True),
    blame=_BLAME.field,
)
_OPEN_VERIFY = _Message(
    "open",
    OpenVerify,
    verifier_pb2.OpenVerify,
    request_id=_ID,
    token_ids=_tokens(1),
    sampling=_SAMPLING.field,
    rule=_RULE.field,
    seed=_SEED,
)
_VERIFY = _Message("verify", Verify, verifier_pb2.Verify, draft=_DRAFT.field)
_DECODE = _Message("decode", Decode, verifier_pb2.Decode, request_id=_ID, num_tokens=_POSITIVE)
_VERDICT = _Message(
    "verdict",
    Verdict,
    verifier_pb2.Verdict,
    _check_verdict,
    request_id=_ID,
    token_ids=_tokens(),
    sources=Field(sources_to_wire, sources_from_wire),
    verify_ms=_MS,
    queue_ms=_MS,
)
_OPEN_DRAFT = _Message(
    "open",
    OpenDraft,
    drafter_pb2.OpenDraft,
    request_id=_ID,
    token_ids=_tokens(1),
    sampling=_SAMPLING.field,
    rule=_RULE.field,
    seed=_SEED,
    policy=Field(length_policy_to_wire, lambda _, wire: length_policy_from_wire(wire)),
    window=_integer(1, MAX_WINDOW),
    stop_token_ids=_IDS,
)
_COMMIT = _Message("commit", Commit, drafter_pb2.Commit, request_id=_ID, token_ids=_tokens())
_WORKER = _Message(
    "worker",
    WorkerInfo,
    common_pb2.WorkerInfo,
    role=_ROLE.field,
    address=_matching(r"\S{1,255}:[0-9]{1,5}", "HOST:PORT of the worker's gRPC server"),
    model=_NAME,
    model_hash=_HASH,
    tokenizer_hash=_HASH,
    vocab_size=_POSITIVE,
    max_model_len=_POSITIVE,
    max_num_seqs=_POSITIVE,
    eos_token_ids=_IDS,
    dtype=_matching("|".join(DTYPES), " or ".join(DTYPES)),
    device=_NAME,
)


class _OneOf(Generic[T]):
    """The envelope of a stream: exactly one of its messages."""

    def __init__(self, oneof: str, wire: Callable[..., Any], arms: Mapping[str, tuple[type, _Message[Any]]]):
        self._oneof, self._wire = oneof, wire
        self._to = {kind: (arm, message) for arm, (kind, message) in arms.items()}
        self._of = {arm: message for arm, (_, message) in arms.items()}

    def to_wire(self, value: T) -> Any:
        arm, message = self._to[type(value)]
        return self._wire(**{arm: message.to_wire(value)})

    def from_wire(self, wire: Any) -> T:
        arm = wire.WhichOneof(self._oneof)
        if arm is None:
            raise InvalidInput(self._oneof, None, f"must be one of {', '.join(self._of)}")
        value: T = self._of[arm].from_wire(getattr(wire, arm))
        return value

    def blaming_the_peer(self, wire: Any) -> T:
        """`from_wire`, for the answers that another process sends us."""
        try:
            return self.from_wire(wire)
        except InvalidInput as error:
            raise PeerFault(f"the peer's {self._oneof} is malformed: {error}") from error


_VERIFIER_ASK: _OneOf[VerifierAsk] = _OneOf(
    "ask",
    verifier_pb2.VerifierAsk,
    {
        "open": (OpenVerify, _OPEN_VERIFY),
        "verify": (Verify, _VERIFY),
        "decode": (Decode, _DECODE),
        "close": (Close, _CLOSE),
    },
)
_VERIFIER_REPLY: _OneOf[VerifierReply] = _OneOf(
    "reply", verifier_pb2.VerifierReply, {"verdict": (Verdict, _VERDICT), "fault": (Fault, _FAULT)}
)
_DRAFTER_ASK: _OneOf[DrafterAsk] = _OneOf(
    "ask",
    drafter_pb2.DrafterAsk,
    {"open": (OpenDraft, _OPEN_DRAFT), "commit": (Commit, _COMMIT), "close": (Close, _CLOSE)},
)
_DRAFTER_REPLY: _OneOf[DrafterReply] = _OneOf(
    "reply", drafter_pb2.DrafterReply, {"draft": (Draft, _DRAFT), "fault": (Fault, _FAULT)}
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

sampling_to_wire, sampling_from_wire = _SAMPLING.to_wire, _SAMPLING.from_wire
rows_to_wire, rows_from_wire = _ROWS.to_wire, _ROWS.from_wire
draft_to_wire, draft_from_wire = _DRAFT.to_wire, _DRAFT.from_wire
verdict_to_wire, verdict_from_wire = _VERDICT.to_wire, _VERDICT.from_wire
worker_info_to_wire, worker_info_from_wire = _WORKER.to_wire, _WORKER.from_wire
rule_to_wire, rule_from_wire = _RULE.to_wire, _RULE.or_none
mode_to_wire, mode_from_wire = _MODE.to_wire, _MODE.or_none
