"""The codec: what goes in comes out, and nothing malformed gets past it."""

from __future__ import annotations

import dataclasses
import math
import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from paceline import codec, fields
from paceline.errors import InvalidInput, PeerFault
from paceline.length_policy import LengthPolicy
from paceline.types import (
    MAX_SEED,
    Blame,
    Branch,
    Close,
    Commit,
    Decode,
    Draft,
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
    Verify,
    WorkerInfo,
)
from paceline.wire import common_pb2, coordinator_pb2, drafter_pb2, verifier_pb2

ENVELOPES: dict[str, tuple[Any, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "verifier_ask": (verifier_pb2.VerifierAsk, codec.verifier_ask_to_wire, codec.verifier_ask_from_wire),
    "verifier_reply": (verifier_pb2.VerifierReply, codec.verifier_reply_to_wire, codec.verifier_reply_from_wire),
    "drafter_ask": (drafter_pb2.DrafterAsk, codec.drafter_ask_to_wire, codec.drafter_ask_from_wire),
    "drafter_reply": (drafter_pb2.DrafterReply, codec.drafter_reply_to_wire, codec.drafter_reply_from_wire),
}


class World:
    """Random lawful messages."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def request_id(self) -> str:
        return "".join(self.rng.choices("abc-é漢😀", k=self.rng.choice((1, 5, 128))))

    def ids(self, low: int, high: int) -> tuple[int, ...]:
        return tuple(self.rng.choice((0, 1, 2**32 - 1, self.rng.randrange(2**32))) for _ in range(self.num(low, high)))

    def num(self, low: int, high: int) -> int:
        return self.rng.choice((low, high, self.rng.randint(low, high)))

    def ms(self) -> float:
        return self.rng.randrange(2**20) / 64  # exact in 32 bits

    def sampling(self) -> SamplingParams:
        return SamplingParams(
            temperature=self.rng.choice((0.0, 0.5, 1.0, 100.0)),
            top_k=self.num(0, 2**31 - 1),
            top_p=self.rng.choice((1.0, 0.5)),
            seed=self.rng.choice((None, 0, MAX_SEED)),
            min_p=self.rng.choice((0.0, 0.25, 1.0)),
            repetition_penalty=self.rng.choice((0.01, 1.0, 1.3)),
            presence_penalty=self.rng.choice((-2.0, 0.0, 0.1)),
            frequency_penalty=self.rng.choice((0.0, 0.1, 2.0)),
            logit_bias=self.rng.choice(((), ((0, -100.0), (2**32 - 1, 0.1)))),
            min_tokens=self.num(0, 2**32 - 1),
            stop_token_ids=self.ids(0, 3),
            logprobs=True,
            top_logprobs=self.num(0, 20),
        )

    def rows(self, num: int) -> Rows:
        width = self.rng.choice((1, 2, 64))
        return Rows(width, self.rng.randbytes(4 * num * width), self.rng.randbytes(2 * num * width))

    def draft(self) -> Draft:
        ids = self.ids(1, 64)
        rows = self.rng.choice((None, self.rows(len(ids))))
        is_open = self.rng.random() < 0.5
        return Draft(self.request_id(), self.num(0, 9), self.num(0, 2**32 - 1), ids, is_open, rows, self.ms())

    def verdict(self) -> Verdict:
        ids = self.ids(0, 65)
        sources = tuple(self.rng.choices(list(Source), k=len(ids)))
        timings = (self.ms(), self.ms(), self.num(0, 999))
        logprobs = self.rng.choice(((), tuple(-self.ms() for _ in ids)))
        top = tuple(TopLogprobs(some, tuple(-self.ms() for _ in some)) for some in (self.ids(0, 20) for _ in logprobs))
        return Verdict(self.request_id(), 3, 4, ids, sources, self.num(0, 64), self.num(0, 9), *timings, logprobs, top)

    def open_verify(self) -> OpenVerify:
        rule = self.rng.choice(list(Rule))
        return OpenVerify(
            self.request_id(), self.ids(1, 300), self.sampling(), rule, self.num(0, MAX_SEED), 2, self.num(0, 9)
        )

    def open_draft(self) -> OpenDraft:
        policy = self.rng.choice((LengthPolicy(), LengthPolicy.parse("svip:threshold_nats=0.25")))
        return OpenDraft(
            self.request_id(),
            self.num(0, 9),
            self.ids(1, 300),
            self.sampling(),
            self.rng.choice(list(Rule)),
            self.num(0, MAX_SEED),
            policy,
            self.num(1, 64),
            self.num(0, 2**32 - 1),
            self.ids(0, 3),
            self.num(0, 300),
            self.num(0, 64),
        )

    def message(self, envelope: str) -> Any:
        close = Close(self.request_id())
        fault = Fault(self.request_id(), "no room", self.rng.choice(list(Blame)))
        choices: dict[str, tuple[Any, ...]] = {
            "verifier_ask": (
                self.open_verify(),
                Verify(self.draft(), self.rng.random() < 0.5),
                Decode(self.request_id(), 1, 2, self.num(1, 2**32 - 1)),
                close,
            ),
            "verifier_reply": (self.verdict(), fault),
            "drafter_ask": (self.open_draft(), Commit(self.request_id(), 1, 2, self.ids(0, 65)), close),
            "drafter_reply": (
                self.draft(),
                Branch(self.num(0, 2**32 - 1), dataclasses.replace(self.draft(), start=self.num(1, 2**32 - 1))),
                fault,
                Pass(self.request_id(), self.num(0, 9), self.num(0, 2**32 - 1)),
            ),
        }
        return self.rng.choice(choices[envelope])


def worker_info(**changes: Any) -> WorkerInfo:
    given: dict[str, Any] = {
        "role": Role.DRAFTER,
        "address": "127.0.0.1:50051",
        "incarnation": 2**64 - 1,
        "model": "tiny",
        "model_hash": "sha256-sampled:" + "a" * 64,
        "tokenizer_hash": "b" * 64,
        "vocab_size": 512,
        "max_model_len": 256,
        "max_num_seqs": 4,
        "eos_token_ids": (1, 2),
        "dtype": "float32",
        "device": "cpu",
        "cost": StepCost(10.0, 0.5, 0.25, 0.001),
        "policies": ("fixed", "one of a newer drafter"),
    }
    return WorkerInfo(**(given | changes))


@pytest.mark.parametrize("envelope", ENVELOPES)
def test_every_message_comes_back_as_it_was_sent(envelope: str) -> None:
    kind, to_wire, from_wire = ENVELOPES[envelope]
    for seed in range(150):
        message = World(seed).message(envelope)
        data = to_wire(message).SerializeToString()
        assert from_wire(kind.FromString(data)) == message, f"seed {seed}"


def test_a_worker_info_comes_back_as_it_was_sent() -> None:
    info = worker_info()
    assert codec.worker_info_from_wire(codec.worker_info_to_wire(info)) == info


def test_a_worker_without_a_model_has_no_tokenizer_and_no_dtype() -> None:
    info = worker_info(tokenizer_hash="", dtype="", vocab_size=2**32 - 1, eos_token_ids=())
    assert codec.worker_info_from_wire(codec.worker_info_to_wire(info)) == info


def test_token_ids_are_little_endian_uint32() -> None:
    assert fields.tokens_to_wire((1, 258)) == b"\x01\0\0\0\x02\x01\0\0"
    assert fields.tokens_from_wire("token_ids", b"\x01\0\0\0\x02\x01\0\0") == (1, 258)


def test_a_token_id_of_33_bits_is_a_bug_and_not_cut() -> None:
    with pytest.raises(struct.error):
        fields.tokens_to_wire((2**32,))


@pytest.mark.parametrize(
    ("kind", "to_wire", "from_wire"),
    [
        (Mode, codec.mode_to_wire, codec.mode_from_wire),
        (Rule, codec.rule_to_wire, codec.rule_from_wire),
    ],
)
def test_an_unspecified_mode_or_rule_is_none(kind: Any, to_wire: Any, from_wire: Any) -> None:
    assert from_wire(0) is None
    assert to_wire(None) == 0
    assert [from_wire(to_wire(member)) for member in kind] == list(kind)
    with pytest.raises(InvalidInput, match=kind.__name__.lower()):
        from_wire(77)


def test_a_long_fault_message_is_cut_where_it_is_sent() -> None:
    wire = codec.drafter_reply_to_wire(Fault("r", "x" * 5000))
    assert codec.drafter_reply_from_wire(wire) == Fault("r", "x" * 1000)


def test_absent_policy_parameters_take_their_defaults() -> None:
    wire = common_pb2.LengthPolicy(name="svip", parameters={"max_length": 8})
    assert codec.length_policy_from_wire(wire) == LengthPolicy.parse("svip:max_length=8")


def draft(**changes: Any) -> Any:
    return drafter_pb2.Draft(**({"request_id": "r", "token_ids": b"\0\0\0\0"} | changes))


def verdict(**changes: Any) -> Any:
    return verifier_pb2.Verdict(**({"request_id": "r"} | changes))


def rows(width: int, ids: int, counts: int) -> Any:
    return common_pb2.Rows(width=width, ids=bytes(ids), counts=bytes(counts))


def open_verify(**changes: Any) -> Any:
    given: dict[str, Any] = {"request_id": "r", "token_ids": b"\0\0\0\0", "rule": 1, "sampling": {"top_p": 1}}
    return {"open": verifier_pb2.OpenVerify(**(given | changes))}


def open_draft(**changes: Any) -> Any:
    given: dict[str, Any] = {
        "request_id": "r",
        "token_ids": b"\0\0\0\0",
        "rule": 1,
        "sampling": {"top_p": 1},
        "window": 1,
    }
    given["policy"] = {"name": "fixed"}
    return {"open": drafter_pb2.OpenDraft(**(given | changes))}


TOP = {"token_ids": [7], "logprobs": [-1.0]}
MALFORMED: list[tuple[str, dict[str, Any], str]] = [
    ("verifier_ask", {}, "ask"),
    ("drafter_ask", {}, "ask"),
    ("verifier_ask", {"close": common_pb2.Close(request_id="")}, "close.request_id"),
    ("verifier_ask", {"close": common_pb2.Close(request_id="x" * 129)}, "close.request_id"),
    ("verifier_ask", {"decode": verifier_pb2.Decode(request_id="r")}, "decode.num_tokens"),
    ("verifier_ask", {"verify": verifier_pb2.Verify()}, "draft.request_id"),
    ("verifier_ask", {"verify": {"draft": draft(token_ids=b"")}}, "draft.token_ids"),
    ("verifier_ask", {"verify": {"draft": draft(token_ids=bytes(4 * 65))}}, "draft.token_ids"),
    ("verifier_ask", {"verify": {"draft": draft(token_ids=b"123")}}, "draft.token_ids"),
    ("verifier_ask", {"verify": {"draft": draft(draft_ms=math.nan)}}, "draft.draft_ms"),
    ("verifier_ask", {"verify": {"draft": draft(draft_ms=-1)}}, "draft.draft_ms"),
    ("verifier_ask", {"verify": {"draft": draft(rows=rows(0, 4, 2))}}, "rows.width"),
    ("verifier_ask", {"verify": {"draft": draft(rows=rows(1025, 4100, 2050))}}, "rows.width"),
    ("verifier_ask", {"verify": {"draft": draft(rows=rows(2, 8, 3))}}, "rows.counts"),
    ("verifier_ask", {"verify": {"draft": draft(rows=rows(2, 0, 0))}}, "rows.counts"),
    ("verifier_ask", {"verify": {"draft": draft(rows=rows(2, 9, 4))}}, "rows.ids"),
    ("verifier_ask", {"verify": {"draft": draft(rows=rows(2, 16, 8))}}, "draft.rows"),
    ("verifier_ask", open_verify(token_ids=b""), "open.token_ids"),
    ("verifier_ask", open_verify(rule=0), "open.rule"),
    ("verifier_ask", open_verify(rule=9), "open.rule"),
    ("verifier_ask", open_verify(seed=2**63), "open.seed"),
    ("verifier_ask", open_verify(sampling={"top_p": 0}), "top_p"),
    ("verifier_ask", open_verify(sampling={"top_p": 1, "temperature": math.inf}), "temperature"),
    ("verifier_ask", open_verify(sampling={"top_p": 1, "seed": 2**63}), "seed"),
    ("verifier_ask", open_verify(sampling={"top_p": 1, "min_p": math.nan}), "min_p"),
    ("verifier_ask", open_verify(sampling={"top_p": 1, "repetition_penalty": -1}), "repetition_penalty"),
    ("verifier_ask", open_verify(sampling={"top_p": 1, "presence_penalty": 2.1}), "presence_penalty"),
    ("verifier_ask", open_verify(sampling={"top_p": 1, "frequency_penalty": math.nan}), "frequency_penalty"),
    ("verifier_ask", open_verify(sampling={"top_p": 1, "logit_bias": {3: 101}}), "logit_bias"),
    ("verifier_ask", open_verify(sampling={"top_p": 1, "logit_bias": dict.fromkeys(range(1025), 1)}), "logit_bias"),
    ("verifier_ask", open_verify(sampling={"top_p": 1, "stop_token_ids": range(257)}), "stop_token_ids"),
    ("drafter_ask", open_draft(window=65), "open.window"),
    ("drafter_ask", open_draft(seed=2**63), "open.seed"),
    ("drafter_ask", open_draft(policy={"name": "guess"}), "length_policy"),
    ("drafter_ask", open_draft(policy={"name": "fixed", "parameters": {"length": math.nan}}), "length_policy"),
    ("drafter_ask", {"commit": drafter_pb2.Commit(request_id="r", token_ids=b"12345")}, "commit.token_ids"),
    ("drafter_reply", {}, "reply"),
    ("drafter_reply", {"draft": draft(token_ids=b"")}, "draft.token_ids"),
    ("drafter_reply", {"fault": common_pb2.Fault(request_id="r", message="x" * 1001)}, "fault.message"),
    ("verifier_reply", {"verdict": verdict(sources=[1])}, "verdict.sources"),
    ("verifier_reply", {"verdict": verdict(logprobs=[-1.0, -1.0])}, "verdict.logprobs"),
    ("verifier_reply", {"verdict": verdict(top_logprobs=[TOP] * 2)}, "verdict.top_logprobs"),
    ("verifier_reply", {"verdict": verdict(top_logprobs=[{"token_ids": [1]}])}, "top_logprobs"),
    (
        "verifier_reply",
        {"verdict": verdict(top_logprobs=[{"token_ids": range(21), "logprobs": [-1.0] * 21}])},
        "top_logprobs",
    ),
    ("verifier_ask", open_verify(sampling={"top_p": 1, "logprobs": True, "top_logprobs": 21}), "top_logprobs"),
    (
        "verifier_reply",
        {"verdict": verdict(token_ids=bytes(4), sources=[5])},
        "verdict.sources",
    ),
    (
        "verifier_reply",
        {"verdict": verdict(verify_ms=math.inf)},
        "verdict.verify_ms",
    ),
]


@pytest.mark.parametrize(("envelope", "arms", "field"), MALFORMED)
def test_a_malformed_message_is_refused_by_the_name_of_its_field(
    envelope: str, arms: dict[str, Any], field: str
) -> None:
    kind, _, from_wire = ENVELOPES[envelope]
    error: type[Exception] = InvalidInput if envelope.endswith("ask") else PeerFault
    with pytest.raises(error) as caught:
        from_wire(kind(**arms))
    assert field in str(caught.value).replace(" fixed:length", "")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("address", "nowhere"),
        ("model", ""),
        ("model_hash", "abc"),
        ("tokenizer_hash", "Z" * 64),
        ("vocab_size", 0),
        ("max_model_len", 0),
        ("max_num_seqs", 0),
        ("dtype", "float8"),
        ("device", ""),
        ("policies", ("fixed", "")),
        ("policies", ("x" * 65,)),
        ("policies", ("fixed",) * 65),
    ],
)
def test_a_malformed_worker_info_is_refused_by_the_name_of_its_field(field: str, value: object) -> None:
    wire = codec.worker_info_to_wire(worker_info(**{field: value}))
    with pytest.raises(InvalidInput, match=f"worker.{field}"):
        codec.worker_info_from_wire(wire)


@pytest.mark.parametrize("ms", [1.1e7, 1.7e308, math.inf, math.nan, -1.0])
def test_costs_whose_sums_would_be_no_numbers_are_refused(ms: float) -> None:
    wire = codec.worker_info_to_wire(worker_info(cost=StepCost(1.0, ms, 0.0, 0.0)))
    with pytest.raises(InvalidInput, match="per_token_ms"):
        codec.worker_info_from_wire(wire)


def test_the_request_of_a_malformed_ask_is_found() -> None:
    bad = verifier_pb2.VerifierAsk(verify={"draft": draft(token_ids=b"1", request_id="mine")})
    assert codec.request_id_of(bad) == "mine"
    assert codec.request_id_of(verifier_pb2.VerifierAsk()) is None
    assert codec.request_id_of(verifier_pb2.VerifierAsk(close={"request_id": ""})) is None


def test_truncated_and_flipped_bytes_are_refused_or_lawful() -> None:
    rng = random.Random(0)
    num_refused = 0
    for seed in range(100):
        for envelope, (kind, to_wire, from_wire) in ENVELOPES.items():
            data = to_wire(World(seed).message(envelope)).SerializeToString()
            for _ in range(25):
                spoilt = bytearray(data[: rng.randint(0, len(data))] if rng.random() < 0.5 else data)
                for _ in range(rng.randint(0, 3) if spoilt else 0):
                    spoilt[rng.randrange(min(len(spoilt), 200))] ^= 1 << rng.randrange(8)
                try:
                    message = from_wire(kind.FromString(bytes(spoilt)))
                except (InvalidInput, PeerFault, DecodeError):
                    num_refused += 1
                    continue
                assert from_wire(to_wire(message)) == message
    assert 2_000 < num_refused < 10_000


def test_a_generate_request_may_leave_mode_and_rule_open() -> None:
    wire = coordinator_pb2.GenerateRequest()
    assert codec.mode_from_wire(wire.mode) is None
    assert codec.rule_from_wire(wire.rule) is None


def test_a_branch_whose_outcome_would_stand_before_everything_is_refused() -> None:
    branch = Branch(1, Draft("r", 0, 0, (2,)))
    with pytest.raises(PeerFault, match=r"branch\.draft\.start=0"):
        codec.drafter_reply_from_wire(codec.drafter_reply_to_wire(branch))
