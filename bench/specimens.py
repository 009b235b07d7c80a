"""One good message of every kind that a socket or a file brings in, and what reads it.

A decoder may answer bytes with a value, or with one of `REFUSALS`. Whatever else it does is a bug.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgpack
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from paceline import codec, rows, trace
from paceline.engine.plan import Chunk, StepPlan, build
from paceline.errors import PacelineError
from paceline.fields import MAX_MS
from paceline.length_policy import LengthPolicy
from paceline.types import (
    Blame,
    Branch,
    Close,
    Commit,
    Decode,
    Draft,
    DraftPlan,
    Fault,
    OpenDraft,
    OpenVerify,
    Pass,
    Role,
    Rule,
    SamplingParams,
    Source,
    StepCost,
    Verdict,
    Verify,
    WorkerInfo,
)
from paceline.wire import common_pb2, coordinator_pb2, drafter_pb2, verifier_pb2

REFUSALS = (PacelineError, DecodeError)
VOCAB_SIZE = 300

_POLICY = LengthPolicy.parse("svip:threshold_nats=0.25")
_SAMPLING = SamplingParams(0.7, 5, 0.9, 3, 0.1, 1.1, 0.5, 0.5, ((7, 1.0),), 2, (1, 2), logprobs=True)
_KEPT = rows.truncate(torch.softmax(torch.arange(3 * 40.0).reshape(3, 40) % 7, -1), width=8, bits=12)
_ROWS = rows.pack(_KEPT.ids, _KEPT.counts, bits=12)
_DRAFT = Draft("r", 2, 9, tuple(_KEPT.ids[:, 0].tolist()), True, _ROWS, 1.5)
_WORKER = WorkerInfo(
    *(Role.DRAFTER, "127.0.0.1:1", 7, "toy", "a" * 64, "b" * 64, VOCAB_SIZE, 512, 4, (0,), "float32", "cpu"),
    cost=StepCost(1, 2, 3, MAX_MS),
    policies=("fixed", "svip"),
)
_VERDICT = Verdict("r", 2, 9, (4, 5), (Source.ACCEPTED, Source.BONUS), 2, 1, 3.0, 1.0, 9, (-0.5, -0.25))


@dataclass(frozen=True, slots=True)
class Decoder:
    """What reads a kind of message, and good ones to begin with."""

    good: Sequence[bytes]
    decode: Callable[[bytes], object]


def _protobuf(message: Any, from_wire: Callable[[Any], object], *good: Any) -> Decoder:
    return Decoder([each.SerializeToString() for each in good], lambda data: from_wire(message.FromString(data)))


def _drafted_rows(wire: Any) -> object:
    """As the verifier reads a draft: first the codec, then its rows."""
    draft = codec.draft_from_wire(wire)
    return rows.read(draft.rows, VOCAB_SIZE, token_ids=draft.token_ids) if draft.rows else None


def decoders() -> Mapping[str, Decoder]:
    """Every decoder by name."""
    ask, draft_ask = codec.verifier_ask_to_wire, codec.drafter_ask_to_wire
    reply, draft_reply = codec.verifier_reply_to_wire, codec.drafter_reply_to_wire
    open_verify = OpenVerify("r", (1, 2, 3), _SAMPLING, Rule.BLOCK, 5, 4, 2)
    open_draft = OpenDraft("r", 1, (1, 2, 3), _SAMPLING, Rule.TOKEN, 5, _POLICY, 4, 99, (0,), 2)
    return {
        "verifier ask": _protobuf(
            verifier_pb2.VerifierAsk,
            codec.verifier_ask_from_wire,
            *(ask(each) for each in (open_verify, Verify(_DRAFT, True), Decode("r", 1, 5, 9), Close("r"))),
        ),
        "verifier reply": _protobuf(
            verifier_pb2.VerifierReply,
            codec.verifier_reply_from_wire,
            *(reply(_VERDICT), reply(Fault("r", "no", Blame.DRAFTER))),
        ),
        "drafter ask": _protobuf(
            drafter_pb2.DrafterAsk,
            codec.drafter_ask_from_wire,
            *(draft_ask(open_draft), draft_ask(Commit("r", 1, 5, (6, 7), DraftPlan(_POLICY, 2)))),
            draft_ask(Close("r")),
        ),
        "drafter reply": _protobuf(
            drafter_pb2.DrafterReply,
            codec.drafter_reply_from_wire,
            *(draft_reply(_DRAFT), draft_reply(replace(_DRAFT, rows=None))),
            *(draft_reply(Pass("r", 1, 9)), draft_reply(Branch(7, _DRAFT)), draft_reply(Fault("r", "no"))),
        ),
        "draft rows": _protobuf(drafter_pb2.Draft, _drafted_rows, codec.draft_to_wire(_DRAFT)),
        "worker": _protobuf(common_pb2.WorkerInfo, codec.worker_info_from_wire, codec.worker_info_to_wire(_WORKER)),
        "sampling": _protobuf(common_pb2.SamplingParams, codec.sampling_from_wire, codec.sampling_to_wire(_SAMPLING)),
        "length policy": Decoder([str(_POLICY).encode()], lambda data: LengthPolicy.parse(data.decode("latin-1"))),
        "step plan": Decoder(
            [build([Chunk("a", 3, (5, 6), 1), Chunk("b", 0, (1,), 1)], [(0,), (1,)]).pack()], StepPlan.unpack
        ),
        "trace": Decoder([_trace()], lambda data: list(trace.read_stream(io.BytesIO(data), "trace"))),
    }


def _trace() -> bytes:
    opened = {"unix_s": 1.0, "clock_s": 2.0, "version": "1", "settings": {"a": 1}}
    records = (
        [trace.FORMAT, trace.VERSION, opened],
        [3.5, {"is": "Tick"}, [{"is": "Close", "request_id": "r"}]],
        [trace.STOPPED],
    )
    return b"".join(msgpack.packb(record) for record in records)


def _generate(**given: Any) -> bytes:
    data: bytes = coordinator_pb2.GenerateRequest(max_tokens=3, **given).SerializeToString()
    return data


# What the coordinator's methods may be asked, by name; and the workers' streams, by role.
UNARY: Mapping[str, Sequence[bytes]] = {
    "Generate": (
        _generate(prompt="hi", stop=["x"], request_id="r", resume_token_ids=[1]),
        _generate(prompt_token_ids=[1, 2], sampling=codec.sampling_to_wire(_SAMPLING), window=2),
    ),
    "Abort": (coordinator_pb2.AbortRequest(request_id="r").SerializeToString(),),
    "GetModelInfo": (b"",),
    "GetServerInfo": (b"",),
    "ListTraces": (b"",),
    "GetTrace": (coordinator_pb2.GetTraceRequest(request_id="r").SerializeToString(),),
    "Register": (codec.worker_info_to_wire(_WORKER).SerializeToString(),),
}
STREAMS: Mapping[Role, str] = {Role.VERIFIER: "verifier ask", Role.DRAFTER: "drafter ask"}
# Escapes stand where JSON can hold what no other wire, header or log can: one bit, and it is half of a character.
HTTP: Mapping[str, bytes] = {
    "/v1/completions": rb'{"model":"m","prompt":"h\ud83d\ude00","max_tokens":3,"n":1,"logprobs":1,'
    rb'"stop":["\ud83d\ude00"],"seed":1,"request_id":"r\u0031","user":"\ud83d\ude00","logit_bias":{"7":1.5},'
    rb'"speculative":{"mode":"off","rule":"match","length_policy":"svip:threshold_nats=0.6","max_length":4,"window":2}}',
    "/v1/chat/completions": rb'{"model":"m","messages":[{"role":"user","content":"\ud83d\ude00"}],"max_tokens":3,'
    rb'"stream":false,"request_id":"r\u0031","chat_template_kwargs":{"tools":[],"date":"\u0031"}}',
    "/tokenize": rb'{"prompt":"h\ud83d\ude00","add_special_tokens":true}',
    "/detokenize": b'{"tokens":[1,2,3]}',
    "/paceline/generate": rb'{"prompt":"h\ud83d\ude00","max_tokens":3,"request_id":"r\u0031"}',
    "/abort_request": b'{"request_id":"r"}',
}
# Paths without a body, whose last part is the caller's.
HTTP_PATHS: Mapping[str, bytes] = {"/paceline/traces/": b"cmpl-r", "/v1/models?": b"limit=3"}
