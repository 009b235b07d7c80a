from paceline.wire import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GenerateRequest(_message.Message):
    __slots__ = ("prompt", "prompt_token_ids", "max_tokens", "sampling", "stop", "ignore_eos", "mode", "rule", "length_policy", "window", "request_id", "max_draft_length", "resume_token_ids")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    LENGTH_POLICY_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MAX_DRAFT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    max_tokens: int
    sampling: _common_pb2.SamplingParams
    stop: _containers.RepeatedScalarFieldContainer[str]
    ignore_eos: bool
    mode: _common_pb2.Mode
    rule: _common_pb2.Rule
    length_policy: _common_pb2.LengthPolicy
    window: int
    request_id: str
    max_draft_length: int
    resume_token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, prompt: _Optional[str] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., max_tokens: _Optional[int] = ..., sampling: _Optional[_Union[_common_pb2.SamplingParams, _Mapping]] = ..., stop: _Optional[_Iterable[str]] = ..., ignore_eos: _Optional[bool] = ..., mode: _Optional[_Union[_common_pb2.Mode, str]] = ..., rule: _Optional[_Union[_common_pb2.Rule, str]] = ..., length_policy: _Optional[_Union[_common_pb2.LengthPolicy, _Mapping]] = ..., window: _Optional[int] = ..., request_id: _Optional[str] = ..., max_draft_length: _Optional[int] = ..., resume_token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class GenerateReply(_message.Message):
    __slots__ = ("text", "token_ids", "sources", "text_lengths", "finish_reason", "metrics", "request_id", "logprobs", "top_logprobs")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    TEXT_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    sources: _containers.RepeatedScalarFieldContainer[_common_pb2.Source]
    text_lengths: _containers.RepeatedScalarFieldContainer[int]
    finish_reason: str
    metrics: RequestMetrics
    request_id: str
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    top_logprobs: _containers.RepeatedCompositeFieldContainer[_common_pb2.TopLogprobs]
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., sources: _Optional[_Iterable[_Union[_common_pb2.Source, str]]] = ..., text_lengths: _Optional[_Iterable[int]] = ..., finish_reason: _Optional[str] = ..., metrics: _Optional[_Union[RequestMetrics, _Mapping]] = ..., request_id: _Optional[str] = ..., logprobs: _Optional[_Iterable[float]] = ..., top_logprobs: _Optional[_Iterable[_Union[_common_pb2.TopLogprobs, _Mapping]]] = ...) -> None: ...

class RequestMetrics(_message.Message):
    __slots__ = ("mode", "rule", "length_policy", "window", "num_prompt_tokens", "num_generated_tokens", "num_drafts", "num_received_drafts", "num_draft_tokens", "num_judged_tokens", "num_tested_tokens", "num_accepted_tokens", "num_recovered_tokens", "num_bonus_tokens", "num_self_decoded_tokens", "num_wasted_tokens", "num_stale_drafts", "num_target_passes", "fallbacks", "mean_accepted_length", "draft_ms", "verify_ms", "overlap_share", "queue_ms", "ttft_ms", "e2e_ms", "coordinator_ms", "wire_ms", "num_branches", "num_branch_tokens", "branch_draft_ms", "num_branch_hits", "num_branch_misses", "num_wasted_branch_tokens", "tokens_by_mode")
    class FallbacksEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class TokensByModeEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    MODE_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    LENGTH_POLICY_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_DRAFTS_FIELD_NUMBER: _ClassVar[int]
    NUM_RECEIVED_DRAFTS_FIELD_NUMBER: _ClassVar[int]
    NUM_DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_JUDGED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_TESTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_RECOVERED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_BONUS_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_SELF_DECODED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_WASTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_STALE_DRAFTS_FIELD_NUMBER: _ClassVar[int]
    NUM_TARGET_PASSES_FIELD_NUMBER: _ClassVar[int]
    FALLBACKS_FIELD_NUMBER: _ClassVar[int]
    MEAN_ACCEPTED_LENGTH_FIELD_NUMBER: _ClassVar[int]
    DRAFT_MS_FIELD_NUMBER: _ClassVar[int]
    VERIFY_MS_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_SHARE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    E2E_MS_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_MS_FIELD_NUMBER: _ClassVar[int]
    WIRE_MS_FIELD_NUMBER: _ClassVar[int]
    NUM_BRANCHES_FIELD_NUMBER: _ClassVar[int]
    NUM_BRANCH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BRANCH_DRAFT_MS_FIELD_NUMBER: _ClassVar[int]
    NUM_BRANCH_HITS_FIELD_NUMBER: _ClassVar[int]
    NUM_BRANCH_MISSES_FIELD_NUMBER: _ClassVar[int]
    NUM_WASTED_BRANCH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_BY_MODE_FIELD_NUMBER: _ClassVar[int]
    mode: str
    rule: str
    length_policy: str
    window: int
    num_prompt_tokens: int
    num_generated_tokens: int
    num_drafts: int
    num_received_drafts: int
    num_draft_tokens: int
    num_judged_tokens: int
    num_tested_tokens: int
    num_accepted_tokens: int
    num_recovered_tokens: int
    num_bonus_tokens: int
    num_self_decoded_tokens: int
    num_wasted_tokens: int
    num_stale_drafts: int
    num_target_passes: int
    fallbacks: _containers.ScalarMap[str, int]
    mean_accepted_length: float
    draft_ms: float
    verify_ms: float
    overlap_share: float
    queue_ms: float
    ttft_ms: float
    e2e_ms: float
    coordinator_ms: float
    wire_ms: float
    num_branches: int
    num_branch_tokens: int
    branch_draft_ms: float
    num_branch_hits: int
    num_branch_misses: int
    num_wasted_branch_tokens: int
    tokens_by_mode: _containers.ScalarMap[str, int]
    def __init__(self, mode: _Optional[str] = ..., rule: _Optional[str] = ..., length_policy: _Optional[str] = ..., window: _Optional[int] = ..., num_prompt_tokens: _Optional[int] = ..., num_generated_tokens: _Optional[int] = ..., num_drafts: _Optional[int] = ..., num_received_drafts: _Optional[int] = ..., num_draft_tokens: _Optional[int] = ..., num_judged_tokens: _Optional[int] = ..., num_tested_tokens: _Optional[int] = ..., num_accepted_tokens: _Optional[int] = ..., num_recovered_tokens: _Optional[int] = ..., num_bonus_tokens: _Optional[int] = ..., num_self_decoded_tokens: _Optional[int] = ..., num_wasted_tokens: _Optional[int] = ..., num_stale_drafts: _Optional[int] = ..., num_target_passes: _Optional[int] = ..., fallbacks: _Optional[_Mapping[str, int]] = ..., mean_accepted_length: _Optional[float] = ..., draft_ms: _Optional[float] = ..., verify_ms: _Optional[float] = ..., overlap_share: _Optional[float] = ..., queue_ms: _Optional[float] = ..., ttft_ms: _Optional[float] = ..., e2e_ms: _Optional[float] = ..., coordinator_ms: _Optional[float] = ..., wire_ms: _Optional[float] = ..., num_branches: _Optional[int] = ..., num_branch_tokens: _Optional[int] = ..., branch_draft_ms: _Optional[float] = ..., num_branch_hits: _Optional[int] = ..., num_branch_misses: _Optional[int] = ..., num_wasted_branch_tokens: _Optional[int] = ..., tokens_by_mode: _Optional[_Mapping[str, int]] = ...) -> None: ...

class AbortRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class AbortReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetModelInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ModelInfo(_message.Message):
    __slots__ = ("model", "tokenizer_hash", "vocab_size", "max_model_len", "eos_token_ids", "served_model_name")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_HASH_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SERVED_MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    model: str
    tokenizer_hash: str
    vocab_size: int
    max_model_len: int
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    served_model_name: str
    def __init__(self, model: _Optional[str] = ..., tokenizer_hash: _Optional[str] = ..., vocab_size: _Optional[int] = ..., max_model_len: _Optional[int] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., served_model_name: _Optional[str] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ServerInfo(_message.Message):
    __slots__ = ("version", "workers", "num_requests_running", "num_requests_waiting", "max_waiting", "is_draining", "mode", "rule", "length_policy", "window", "num_requests_undrafted", "num_requests_resting", "num_requests_speculative", "stall_share", "verify_ms")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    NUM_REQUESTS_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_REQUESTS_WAITING_FIELD_NUMBER: _ClassVar[int]
    MAX_WAITING_FIELD_NUMBER: _ClassVar[int]
    IS_DRAINING_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    LENGTH_POLICY_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    NUM_REQUESTS_UNDRAFTED_FIELD_NUMBER: _ClassVar[int]
    NUM_REQUESTS_RESTING_FIELD_NUMBER: _ClassVar[int]
    NUM_REQUESTS_SPECULATIVE_FIELD_NUMBER: _ClassVar[int]
    STALL_SHARE_FIELD_NUMBER: _ClassVar[int]
    VERIFY_MS_FIELD_NUMBER: _ClassVar[int]
    version: str
    workers: _containers.RepeatedCompositeFieldContainer[_common_pb2.WorkerInfo]
    num_requests_running: int
    num_requests_waiting: int
    max_waiting: int
    is_draining: bool
    mode: str
    rule: str
    length_policy: str
    window: int
    num_requests_undrafted: int
    num_requests_resting: int
    num_requests_speculative: int
    stall_share: float
    verify_ms: float
    def __init__(self, version: _Optional[str] = ..., workers: _Optional[_Iterable[_Union[_common_pb2.WorkerInfo, _Mapping]]] = ..., num_requests_running: _Optional[int] = ..., num_requests_waiting: _Optional[int] = ..., max_waiting: _Optional[int] = ..., is_draining: _Optional[bool] = ..., mode: _Optional[str] = ..., rule: _Optional[str] = ..., length_policy: _Optional[str] = ..., window: _Optional[int] = ..., num_requests_undrafted: _Optional[int] = ..., num_requests_resting: _Optional[int] = ..., num_requests_speculative: _Optional[int] = ..., stall_share: _Optional[float] = ..., verify_ms: _Optional[float] = ...) -> None: ...

class ListTracesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TraceList(_message.Message):
    __slots__ = ("traces",)
    TRACES_FIELD_NUMBER: _ClassVar[int]
    traces: _containers.RepeatedCompositeFieldContainer[TraceSummary]
    def __init__(self, traces: _Optional[_Iterable[_Union[TraceSummary, _Mapping]]] = ...) -> None: ...

class TraceSummary(_message.Message):
    __slots__ = ("request_id", "unix_s", "num_prompt_tokens", "num_generated_tokens", "mode", "finish_reason", "e2e_ms")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    UNIX_S_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    E2E_MS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    unix_s: float
    num_prompt_tokens: int
    num_generated_tokens: int
    mode: str
    finish_reason: str
    e2e_ms: float
    def __init__(self, request_id: _Optional[str] = ..., unix_s: _Optional[float] = ..., num_prompt_tokens: _Optional[int] = ..., num_generated_tokens: _Optional[int] = ..., mode: _Optional[str] = ..., finish_reason: _Optional[str] = ..., e2e_ms: _Optional[float] = ...) -> None: ...

class GetTraceRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class TraceChunk(_message.Message):
    __slots__ = ("records",)
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    records: bytes
    def __init__(self, records: _Optional[bytes] = ...) -> None: ...

class RegisterReply(_message.Message):
    __slots__ = ("lease_s",)
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    lease_s: float
    def __init__(self, lease_s: _Optional[float] = ...) -> None: ...
