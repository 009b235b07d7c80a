from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Rule(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RULE_UNSPECIFIED: _ClassVar[Rule]
    RULE_MATCH: _ClassVar[Rule]
    RULE_COUPLED: _ClassVar[Rule]
    RULE_TOKEN: _ClassVar[Rule]
    RULE_BLOCK: _ClassVar[Rule]

class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODE_UNSPECIFIED: _ClassVar[Mode]
    MODE_OFF: _ClassVar[Mode]
    MODE_SEQUENTIAL: _ClassVar[Mode]
    MODE_PEARL: _ClassVar[Mode]
    MODE_BRANCH: _ClassVar[Mode]

class Source(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SOURCE_UNSPECIFIED: _ClassVar[Source]
    SOURCE_ACCEPTED: _ClassVar[Source]
    SOURCE_RECOVERED: _ClassVar[Source]
    SOURCE_BONUS: _ClassVar[Source]
    SOURCE_SELF_DECODED: _ClassVar[Source]

class Blame(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BLAME_UNSPECIFIED: _ClassVar[Blame]
    BLAME_WORKER: _ClassVar[Blame]
    BLAME_CALLER: _ClassVar[Blame]
    BLAME_DRAFTER: _ClassVar[Blame]
    BLAME_FULL: _ClassVar[Blame]

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_DRAFTER: _ClassVar[Role]
    ROLE_VERIFIER: _ClassVar[Role]
RULE_UNSPECIFIED: Rule
RULE_MATCH: Rule
RULE_COUPLED: Rule
RULE_TOKEN: Rule
RULE_BLOCK: Rule
MODE_UNSPECIFIED: Mode
MODE_OFF: Mode
MODE_SEQUENTIAL: Mode
MODE_PEARL: Mode
MODE_BRANCH: Mode
SOURCE_UNSPECIFIED: Source
SOURCE_ACCEPTED: Source
SOURCE_RECOVERED: Source
SOURCE_BONUS: Source
SOURCE_SELF_DECODED: Source
BLAME_UNSPECIFIED: Blame
BLAME_WORKER: Blame
BLAME_CALLER: Blame
BLAME_DRAFTER: Blame
BLAME_FULL: Blame
ROLE_UNSPECIFIED: Role
ROLE_DRAFTER: Role
ROLE_VERIFIER: Role

class SamplingParams(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "seed", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "min_tokens", "stop_token_ids", "logprobs", "top_logprobs")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    seed: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: _containers.ScalarMap[int, float]
    min_tokens: int
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: bool
    top_logprobs: int
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., min_tokens: _Optional[int] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[bool] = ..., top_logprobs: _Optional[int] = ...) -> None: ...

class TopLogprobs(_message.Message):
    __slots__ = ("token_ids", "logprobs")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class LengthPolicy(_message.Message):
    __slots__ = ("name", "parameters")
    class ParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    parameters: _containers.ScalarMap[str, float]
    def __init__(self, name: _Optional[str] = ..., parameters: _Optional[_Mapping[str, float]] = ...) -> None: ...

class Rows(_message.Message):
    __slots__ = ("width", "ids", "counts", "bits")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    BITS_FIELD_NUMBER: _ClassVar[int]
    width: int
    ids: bytes
    counts: bytes
    bits: int
    def __init__(self, width: _Optional[int] = ..., ids: _Optional[bytes] = ..., counts: _Optional[bytes] = ..., bits: _Optional[int] = ...) -> None: ...

class Close(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class Fault(_message.Message):
    __slots__ = ("request_id", "message", "blame")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    BLAME_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    message: str
    blame: Blame
    def __init__(self, request_id: _Optional[str] = ..., message: _Optional[str] = ..., blame: _Optional[_Union[Blame, str]] = ...) -> None: ...

class WorkerInfo(_message.Message):
    __slots__ = ("role", "address", "incarnation", "model", "model_hash", "tokenizer_hash", "vocab_size", "max_model_len", "max_num_seqs", "eos_token_ids", "dtype", "device", "cost", "policies", "num_requests", "is_draining", "wire_version", "cache")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_HASH_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_SEQS_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    NUM_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    IS_DRAINING_FIELD_NUMBER: _ClassVar[int]
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    role: Role
    address: str
    incarnation: int
    model: str
    model_hash: str
    tokenizer_hash: str
    vocab_size: int
    max_model_len: int
    max_num_seqs: int
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    dtype: str
    device: str
    cost: StepCost
    policies: _containers.RepeatedScalarFieldContainer[str]
    num_requests: int
    is_draining: bool
    wire_version: int
    cache: CacheUse
    def __init__(self, role: _Optional[_Union[Role, str]] = ..., address: _Optional[str] = ..., incarnation: _Optional[int] = ..., model: _Optional[str] = ..., model_hash: _Optional[str] = ..., tokenizer_hash: _Optional[str] = ..., vocab_size: _Optional[int] = ..., max_model_len: _Optional[int] = ..., max_num_seqs: _Optional[int] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., dtype: _Optional[str] = ..., device: _Optional[str] = ..., cost: _Optional[_Union[StepCost, _Mapping]] = ..., policies: _Optional[_Iterable[str]] = ..., num_requests: _Optional[int] = ..., is_draining: _Optional[bool] = ..., wire_version: _Optional[int] = ..., cache: _Optional[_Union[CacheUse, _Mapping]] = ...) -> None: ...

class CacheUse(_message.Message):
    __slots__ = ("num_tokens", "num_used_tokens", "num_queried_tokens", "num_found_tokens", "num_preemptions", "block_size")
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_USED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_QUERIED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_FOUND_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    num_tokens: int
    num_used_tokens: int
    num_queried_tokens: int
    num_found_tokens: int
    num_preemptions: int
    block_size: int
    def __init__(self, num_tokens: _Optional[int] = ..., num_used_tokens: _Optional[int] = ..., num_queried_tokens: _Optional[int] = ..., num_found_tokens: _Optional[int] = ..., num_preemptions: _Optional[int] = ..., block_size: _Optional[int] = ...) -> None: ...

class StepCost(_message.Message):
    __slots__ = ("base_ms", "per_token_ms", "per_seq_ms", "per_context_token_ms")
    BASE_MS_FIELD_NUMBER: _ClassVar[int]
    PER_TOKEN_MS_FIELD_NUMBER: _ClassVar[int]
    PER_SEQ_MS_FIELD_NUMBER: _ClassVar[int]
    PER_CONTEXT_TOKEN_MS_FIELD_NUMBER: _ClassVar[int]
    base_ms: float
    per_token_ms: float
    per_seq_ms: float
    per_context_token_ms: float
    def __init__(self, base_ms: _Optional[float] = ..., per_token_ms: _Optional[float] = ..., per_seq_ms: _Optional[float] = ..., per_context_token_ms: _Optional[float] = ...) -> None: ...
