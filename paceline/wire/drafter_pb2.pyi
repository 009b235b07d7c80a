from paceline.wire import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DrafterAsk(_message.Message):
    __slots__ = ("open", "commit", "close")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    open: OpenDraft
    commit: Commit
    close: _common_pb2.Close
    def __init__(self, open: _Optional[_Union[OpenDraft, _Mapping]] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ..., close: _Optional[_Union[_common_pb2.Close, _Mapping]] = ...) -> None: ...

class DrafterReply(_message.Message):
    __slots__ = ("draft", "fault", "passed", "branch")
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    BRANCH_FIELD_NUMBER: _ClassVar[int]
    draft: Draft
    fault: _common_pb2.Fault
    passed: Pass
    branch: Branch
    def __init__(self, draft: _Optional[_Union[Draft, _Mapping]] = ..., fault: _Optional[_Union[_common_pb2.Fault, _Mapping]] = ..., passed: _Optional[_Union[Pass, _Mapping]] = ..., branch: _Optional[_Union[Branch, _Mapping]] = ...) -> None: ...

class OpenDraft(_message.Message):
    __slots__ = ("request_id", "epoch", "token_ids", "sampling", "rule", "seed", "policy", "window", "end", "stop_token_ids", "num_prompt_tokens", "branches")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BRANCHES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    epoch: int
    token_ids: bytes
    sampling: _common_pb2.SamplingParams
    rule: _common_pb2.Rule
    seed: int
    policy: _common_pb2.LengthPolicy
    window: int
    end: int
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    num_prompt_tokens: int
    branches: int
    def __init__(self, request_id: _Optional[str] = ..., epoch: _Optional[int] = ..., token_ids: _Optional[bytes] = ..., sampling: _Optional[_Union[_common_pb2.SamplingParams, _Mapping]] = ..., rule: _Optional[_Union[_common_pb2.Rule, str]] = ..., seed: _Optional[int] = ..., policy: _Optional[_Union[_common_pb2.LengthPolicy, _Mapping]] = ..., window: _Optional[int] = ..., end: _Optional[int] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., num_prompt_tokens: _Optional[int] = ..., branches: _Optional[int] = ...) -> None: ...

class Commit(_message.Message):
    __slots__ = ("request_id", "epoch", "start", "token_ids", "plan")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    epoch: int
    start: int
    token_ids: bytes
    plan: DraftPlan
    def __init__(self, request_id: _Optional[str] = ..., epoch: _Optional[int] = ..., start: _Optional[int] = ..., token_ids: _Optional[bytes] = ..., plan: _Optional[_Union[DraftPlan, _Mapping]] = ...) -> None: ...

class DraftPlan(_message.Message):
    __slots__ = ("policy", "window", "branches")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    BRANCHES_FIELD_NUMBER: _ClassVar[int]
    policy: _common_pb2.LengthPolicy
    window: int
    branches: int
    def __init__(self, policy: _Optional[_Union[_common_pb2.LengthPolicy, _Mapping]] = ..., window: _Optional[int] = ..., branches: _Optional[int] = ...) -> None: ...

class Draft(_message.Message):
    __slots__ = ("request_id", "epoch", "start", "token_ids", "is_open", "rows", "draft_ms")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    IS_OPEN_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_MS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    epoch: int
    start: int
    token_ids: bytes
    is_open: bool
    rows: _common_pb2.Rows
    draft_ms: float
    def __init__(self, request_id: _Optional[str] = ..., epoch: _Optional[int] = ..., start: _Optional[int] = ..., token_ids: _Optional[bytes] = ..., is_open: _Optional[bool] = ..., rows: _Optional[_Union[_common_pb2.Rows, _Mapping]] = ..., draft_ms: _Optional[float] = ...) -> None: ...

class Branch(_message.Message):
    __slots__ = ("token_id", "draft")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    draft: Draft
    def __init__(self, token_id: _Optional[int] = ..., draft: _Optional[_Union[Draft, _Mapping]] = ...) -> None: ...

class Pass(_message.Message):
    __slots__ = ("request_id", "epoch", "start")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    epoch: int
    start: int
    def __init__(self, request_id: _Optional[str] = ..., epoch: _Optional[int] = ..., start: _Optional[int] = ...) -> None: ...
