"""The Python client of a coordinator: `AsyncClient`, and `Client` for programs without an event loop.

    with Client("127.0.0.1:50051") as client:
        for chunk in client.generate("Once upon a time", max_tokens=64):
            print(chunk.text, end="")

Failures are `PacelineError`s with the server's own text. Leaving a stream early ends the request at the server.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypedDict, Unpack

import grpc

from paceline import codec
from paceline.errors import InvalidInput, PeerFault
from paceline.length_policy import LengthPolicy
from paceline.rpc import CHANNEL_OPTIONS, connect, error_of
from paceline.types import FinishReason, Mode, Rule, SamplingParams, Source, Tokens, WorkerInfo, member
from paceline.wire import coordinator_pb2, coordinator_pb2_grpc

Metrics = dict[str, Any]  # by the names of RequestMetrics in coordinator.proto; times in milliseconds
CALL_TIMEOUT_S = 10.0  # of the calls that only look something up


class Options(TypedDict, total=False):
    """How to generate. What is absent is the coordinator's choice, but for the first four."""

    max_tokens: int  # default 128
    temperature: float  # default 0, which is greedy
    top_p: float  # default 1, which is off
    top_k: int  # default 0, which is off
    seed: int | None  # makes the output reproducible
    min_p: float  # default 0, which is off
    repetition_penalty: float  # default 1, which is off
    presence_penalty: float  # default 0, which is off
    frequency_penalty: float  # likewise
    logit_bias: Mapping[int, float]  # token id: what is added to its score
    min_tokens: int  # no end of sequence before
    stop_token_ids: Sequence[int]  # output ends with the first of these
    logprobs: bool  # say of each token how likely the target's law had it
    stop: Sequence[str]  # output ends before the first of these
    ignore_eos: bool
    mode: Mode | str | None
    rule: Rule | str | None
    length_policy: LengthPolicy | str | None  # for example "svip:threshold_nats=0.6"
    window: int | None  # drafts unverified at a time
    request_id: str
    timeout_s: float | None  # then the request ends, and the call fails as unavailable


@dataclass(frozen=True, slots=True)
class Chunk:
    """What became known since the last chunk. Only the last one has a finish reason and metrics."""

    text: str
    token_ids: Tokens
    sources: tuple[Source, ...]  # one a token
    text_lengths: tuple[int, ...]  # characters of text that each token let go
    finish_reason: FinishReason | None
    metrics: Metrics | None
    request_id: str  # in the first chunk, else empty
    logprobs: tuple[float, ...] = ()  # one a token if asked for, else none


@dataclass(frozen=True, slots=True)
class Completion:
    """A request's whole output."""

    text: str
    token_ids: Tokens
    sources: tuple[Source, ...]
    finish_reason: FinishReason
    metrics: Metrics
    request_id: str
    logprobs: tuple[float, ...] = ()  # one a token if asked for, else none


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model that is served."""

    model: str
    tokenizer_hash: str
    vocab_size: int
    max_model_len: int
    eos_token_ids: Tokens


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The pools as they are now."""

    version: str
    workers: tuple[WorkerInfo, ...]
    num_requests_running: int
    num_requests_waiting: int


class AsyncClient:
    """A connection to one coordinator, for use in one event loop. It connects by itself, and again after a loss."""

    def __init__(self, address: str) -> None:
        self._channel = connect(address)
        self._stub = coordinator_pb2_grpc.CoordinatorStub(self._channel)

    async def generate(self, prompt: str | Sequence[int], **options: Unpack[Options]) -> AsyncIterator[Chunk]:
        """Chunks as they come. `prompt` is text or token ids."""
        call = self._stub.Generate(_request(prompt, options), timeout=options.get("timeout_s"))
        try:
            with _errors():
                async for reply in call:
                    yield _chunk(reply)
        finally:
            call.cancel()

    async def complete(self, prompt: str | Sequence[int], **options: Unpack[Options]) -> Completion:
        """The whole output at once."""
        return _join([chunk async for chunk in self.generate(prompt, **options)])

    async def abort(self, request_id: str) -> None:
        """End a running request. Raises `UnknownRequest`."""
        with _errors():
            await self._stub.Abort(coordinator_pb2.AbortRequest(request_id=request_id), timeout=CALL_TIMEOUT_S)

    async def model_info(self) -> ModelInfo:
        with _errors():
            wire = await self._stub.GetModelInfo(coordinator_pb2.GetModelInfoRequest(), timeout=CALL_TIMEOUT_S)
            return _model_info(wire)

    async def server_info(self) -> ServerInfo:
        with _errors():
            wire = await self._stub.GetServerInfo(coordinator_pb2.GetServerInfoRequest(), timeout=CALL_TIMEOUT_S)
            return _server_info(wire)

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Client:
    """As `AsyncClient`, for programs without an event loop; safe to use from several threads."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = coordinator_pb2_grpc.CoordinatorStub(self._channel)

    def generate(self, prompt: str | Sequence[int], **options: Unpack[Options]) -> Iterator[Chunk]:
        """Chunks as they come. `prompt` is text or token ids."""
        call = self._stub.Generate(_request(prompt, options), timeout=options.get("timeout_s"))
        try:
            with _errors():
                for reply in call:
                    yield _chunk(reply)
        finally:
            call.cancel()

    def complete(self, prompt: str | Sequence[int], **options: Unpack[Options]) -> Completion:
        """The whole output at once."""
        return _join(self.generate(prompt, **options))

    def abort(self, request_id: str) -> None:
        """End a running request. Raises `UnknownRequest`."""
        with _errors():
            self._stub.Abort(coordinator_pb2.AbortRequest(request_id=request_id), timeout=CALL_TIMEOUT_S)

    def model_info(self) -> ModelInfo:
        with _errors():
            wire = self._stub.GetModelInfo(coordinator_pb2.GetModelInfoRequest(), timeout=CALL_TIMEOUT_S)
            return _model_info(wire)

    def server_info(self) -> ServerInfo:
        with _errors():
            wire = self._stub.GetServerInfo(coordinator_pb2.GetServerInfoRequest(), timeout=CALL_TIMEOUT_S)
            return _server_info(wire)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Turns what gRPC raises into our errors; what the server sent malformed is its fault, not the caller's."""
    try:
        yield
    except grpc.RpcError as error:
        raise error_of(error) from None
    except InvalidInput as error:
        raise PeerFault(f"the coordinator's reply is malformed: {error}") from error


def _request(prompt: str | Sequence[int], options: Options) -> Any:
    """Raises `InvalidInput` for what can be told wrong here; the coordinator checks everything again."""
    sampling = SamplingParams(
        temperature=options.get("temperature", 0.0),
        top_k=options.get("top_k", 0),
        top_p=options.get("top_p", 1.0),
        seed=options.get("seed"),
        min_p=options.get("min_p", 0.0),
        repetition_penalty=options.get("repetition_penalty", 1.0),
        presence_penalty=options.get("presence_penalty", 0.0),
        frequency_penalty=options.get("frequency_penalty", 0.0),
        logit_bias=tuple(sorted(options.get("logit_bias", {}).items())),
        min_tokens=options.get("min_tokens", 0),
        stop_token_ids=tuple(options.get("stop_token_ids", ())),
        logprobs=options.get("logprobs", False),
    )
    policy = options.get("length_policy")
    if isinstance(policy, str):
        policy = LengthPolicy.parse(policy)
    stop = options.get("stop", ())
    try:
        return coordinator_pb2.GenerateRequest(
            prompt=prompt if isinstance(prompt, str) else "",
            prompt_token_ids=() if isinstance(prompt, str) else prompt,
            max_tokens=options.get("max_tokens", 128),
            sampling=codec.sampling_to_wire(sampling),
            stop=(stop,) if isinstance(stop, str) else stop,
            ignore_eos=options.get("ignore_eos", False),
            mode=codec.mode_to_wire(member(Mode, "mode", options.get("mode"))),
            rule=codec.rule_to_wire(member(Rule, "rule", options.get("rule"))),
            length_policy=codec.length_policy_to_wire(policy) if policy else None,
            window=options.get("window") or 0,
            request_id=options.get("request_id", ""),
        )
    except (TypeError, ValueError, UnicodeEncodeError) as error:
        raise InvalidInput("request", str(error), "a value is of the wrong type or out of range") from None


def _chunk(wire: Any) -> Chunk:
    try:
        reason = FinishReason(wire.finish_reason) if wire.finish_reason else None
    except ValueError:
        raise InvalidInput("finish_reason", wire.finish_reason, f"must be {', '.join(FinishReason)}") from None
    return Chunk(
        text=wire.text,
        token_ids=tuple(wire.token_ids),
        sources=codec.sources_from_wire("sources", wire.sources),
        text_lengths=tuple(wire.text_lengths),
        finish_reason=reason,
        metrics=_metrics(wire.metrics) if wire.HasField("metrics") else None,
        request_id=wire.request_id,
        logprobs=tuple(wire.logprobs),
    )


def _metrics(wire: Any) -> Metrics:
    metrics = {field.name: getattr(wire, field.name) for field in wire.DESCRIPTOR.fields}
    return metrics | {"fallbacks": dict(wire.fallbacks), "tokens_by_mode": dict(wire.tokens_by_mode)}


def _join(chunks: Iterable[Chunk]) -> Completion:
    chunks = list(chunks)
    reason = chunks[-1].finish_reason if chunks else None
    if reason is None:
        raise PeerFault("the coordinator ended the stream without a finish reason")
    return Completion(
        text="".join(chunk.text for chunk in chunks),
        token_ids=tuple(token_id for chunk in chunks for token_id in chunk.token_ids),
        sources=tuple(source for chunk in chunks for source in chunk.sources),
        finish_reason=reason,
        metrics=chunks[-1].metrics or {},
        request_id=chunks[0].request_id,
        logprobs=tuple(logprob for chunk in chunks for logprob in chunk.logprobs),
    )


def _model_info(wire: Any) -> ModelInfo:
    return ModelInfo(
        model=wire.model,
        tokenizer_hash=wire.tokenizer_hash,
        vocab_size=wire.vocab_size,
        max_model_len=wire.max_model_len,
        eos_token_ids=tuple(wire.eos_token_ids),
    )


def _server_info(wire: Any) -> ServerInfo:
    return ServerInfo(
        version=wire.version,
        workers=tuple(map(codec.worker_info_from_wire, wire.workers)),
        num_requests_running=wire.num_requests_running,
        num_requests_waiting=wire.num_requests_waiting,
    )
