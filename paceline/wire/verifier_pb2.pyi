from paceline.wire import common_pb2 as _common_pb2
from paceline.wire import drafter_pb2 as _drafter_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class VerifierAsk(_message.Message):
    __slots__ = ("open", "verify", "decode", "close")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    open: OpenVerify
    verify: Verify
    decode: Decode
    close: _common_pb2.Close
    def __init__(self, open: _Optional[_Union[OpenVerify, _Mapping]] = ..., verify: _Optional[_Union[Verify, _Mapping]] = ..., decode: _Optional[_Union[Decode, _Mapping]] = ..., close: _Optional[_Union[_common_pb2.Close, _Mapping]] = ...) -> None: ...

class VerifierReply(_message.Message):
    __slots__ = ("verdict", "fault")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    verdict: Verdict
    fault: _common_pb2.Fault
    def __init__(self, verdict: _Optional[_Union[Verdict, _Mapping]] = ..., fault: _Optional[_Union[_common_pb2.Fault, _Mapping]] = ...) -> None: ...

class OpenVerify(_message.Message):
    __slots__ = ("request_id", "token_ids", "sampling", "rule", "seed", "num_decode", "num_prompt_tokens")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    NUM_DECODE_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    token_ids: bytes
    sampling: _common_pb2.SamplingParams
    rule: _common_pb2.Rule
    seed: int
    num_decode: int
    num_prompt_tokens: int
    def __init__(self, request_id: _Optional[str] = ..., token_ids: _Optional[bytes] = ..., sampling: _Optional[_Union[_common_pb2.SamplingParams, _Mapping]] = ..., rule: _Optional[_Union[_common_pb2.Rule, str]] = ..., seed: _Optional[int] = ..., num_decode: _Optional[int] = ..., num_prompt_tokens: _Optional[int] = ...) -> None: ...

class Verify(_message.Message):
    __slots__ = ("draft", "preverify")
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    PREVERIFY_FIELD_NUMBER: _ClassVar[int]
    draft: _drafter_pb2.Draft
    preverify: bool
    def __init__(self, draft: _Optional[_Union[_drafter_pb2.Draft, _Mapping]] = ..., preverify: _Optional[bool] = ...) -> None: ...

class Decode(_message.Message):
    __slots__ = ("request_id", "epoch", "start", "num_tokens")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    epoch: int
    start: int
    num_tokens: int
    def __init__(self, request_id: _Optional[str] = ..., epoch: _Optional[int] = ..., start: _Optional[int] = ..., num_tokens: _Optional[int] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("request_id", "epoch", "start", "token_ids", "sources", "num_tested", "num_drafts", "verify_ms", "queue_ms", "batch_tokens", "logprobs", "top_logprobs")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    NUM_TESTED_FIELD_NUMBER: _ClassVar[int]
    NUM_DRAFTS_FIELD_NUMBER: _ClassVar[int]
    VERIFY_MS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    BATCH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    epoch: int
    start: int
    token_ids: bytes
    sources: _containers.RepeatedScalarFieldContainer[_common_pb2.Source]
    num_tested: int
    num_drafts: int
    verify_ms: float
    queue_ms: float
    batch_tokens: int
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    top_logprobs: _containers.RepeatedCompositeFieldContainer[_common_pb2.TopLogprobs]
    def __init__(self, request_id: _Optional[str] = ..., epoch: _Optional[int] = ..., start: _Optional[int] = ..., token_ids: _Optional[bytes] = ..., sources: _Optional[_Iterable[_Union[_common_pb2.Source, str]]] = ..., num_tested: _Optional[int] = ..., num_drafts: _Optional[int] = ..., verify_ms: _Optional[float] = ..., queue_ms: _Optional[float] = ..., batch_tokens: _Optional[int] = ..., logprobs: _Optional[_Iterable[float]] = ..., top_logprobs: _Optional[_Iterable[_Union[_common_pb2.TopLogprobs, _Mapping]]] = ...) -> None: ...
