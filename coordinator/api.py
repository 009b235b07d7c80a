"""The gRPC door: checks what clients ask for, turns it into a request of the core, and streams what comes of it."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from coordinator.config import CoordinatorConfig
from coordinator.core.commands import Emit, Fail, Finish
from coordinator.core.events import Ended, RequestSpec
from coordinator.core.metrics import RequestMetrics
from coordinator.server import Coordinator
from coordinator.trust import is_trusted
from paceline import __version__, codec
from paceline.errors import InvalidInput, UnknownRequest
from paceline.rpc import Server, answering, run_until_signalled, start_server
from paceline.text import TextStream
from paceline.types import FinishReason, Role, SamplingParams, Source, Tokens
from paceline.wire import coordinator_pb2 as pb
from paceline.wire import coordinator_pb2_grpc

MAX_STOP_STRINGS, MAX_STOP_LENGTH = 16, 256
MAX_WINDOW = 64
MAX_REQUEST_ID = 128


class CoordinatorServicer:
    """See the top of the file."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async with answering(context):
            spec = self._spec(request)
            with self._coordinator.generation(spec) as queue:
                async for reply in self._replies(spec, tuple(request.stop), queue):
                    yield reply

    async def _replies(self, spec: RequestSpec, stop: Sequence[str], queue: Any) -> AsyncIterator[Any]:
        text = TextStream(self._coordinator.tokenizer, spec.token_ids, stop)
        request_id = spec.request_id
        while True:
            match await queue.get():
                case Emit(_, token_ids, sources, logprobs) if not text.stopped:
                    piece = text.push(token_ids)
                    count = piece.num_tokens
                    yield pb.GenerateReply(
                        text=piece.text,
                        token_ids=token_ids[:count],
                        sources=codec.sources_to_wire(sources[:count]),
                        text_lengths=piece.lengths,
                        logprobs=logprobs[:count],
                        request_id=request_id,
                    )
                    request_id = ""
                    if piece.stopped:
                        self._coordinator.feed(Ended(spec.request_id, FinishReason.STOP))
                case Finish(_, reason, metrics):
                    yield pb.GenerateReply(
                        text=text.finish(),
                        finish_reason=reason,
                        metrics=_metrics_to_wire(metrics),
                        request_id=request_id,
                    )
                    return
                case Fail(_, error):
                    raise error

    def _spec(self, request: Any) -> RequestSpec:
        """The request with every field checked and every default filled in. Raises InvalidInput."""
        config = self._coordinator.config
        if len(request.request_id) > MAX_REQUEST_ID:
            raise InvalidInput("request_id", request.request_id, f"has more than {MAX_REQUEST_ID} characters")
        _check_stop(request.stop)
        if request.window > MAX_WINDOW:
            raise InvalidInput("window", request.window, f"must be at most {MAX_WINDOW} drafts (0 = the server's)")
        sampling = SamplingParams(temperature=0)
        if request.HasField("sampling"):
            sampling = codec.sampling_from_wire(request.sampling)
        sampling = self._with_stops(sampling, request)
        policy = config.policy
        if request.HasField("length_policy"):
            policy = codec.length_policy_from_wire(request.length_policy)
        token_ids = self._prompt(request)
        self._check_length(token_ids, request.max_tokens)
        return RequestSpec(
            request_id=request.request_id or uuid.uuid4().hex,
            token_ids=token_ids,
            max_tokens=request.max_tokens,
            sampling=sampling,
            seed=secrets.randbits(63) if sampling.seed is None else sampling.seed,
            draft_seed=secrets.randbits(63),
            stop_token_ids=sampling.stop_token_ids,
            mode=codec.mode_from_wire(request.mode) or config.mode,
            rule=codec.rule_from_wire(request.rule) or config.rule,
            policy=policy,
            window=request.window or config.window,
        )

    def _with_stops(self, sampling: SamplingParams, request: Any) -> SamplingParams:
        """The law with all tokens that end the output: the request's own and the model's."""
        tokenizer = self._coordinator.tokenizer
        biased = [token_id for token_id, _ in sampling.logit_bias]
        for field, ids in (("logit_bias", biased), ("stop_token_ids", sampling.stop_token_ids)):
            if ids and max(ids) >= tokenizer.vocab_size:
                raise InvalidInput(field, max(ids), f"is not below the vocabulary's size {tokenizer.vocab_size}")
        if sampling.min_tokens > request.max_tokens:
            fix = f"must be at most max_tokens, which is {request.max_tokens}"
            raise InvalidInput("min_tokens", sampling.min_tokens, fix)
        eos_token_ids = () if request.ignore_eos else tokenizer.eos_token_ids
        return replace(sampling, stop_token_ids=tuple(dict.fromkeys((*eos_token_ids, *sampling.stop_token_ids))))

    def _prompt(self, request: Any) -> Tokens:
        tokenizer = self._coordinator.tokenizer
        if request.prompt and request.prompt_token_ids:
            raise InvalidInput("prompt_token_ids", "…", "give either prompt or prompt_token_ids, not both")
        token_ids = tuple(request.prompt_token_ids) or tokenizer.encode(request.prompt)
        if not token_ids:
            raise InvalidInput("prompt", request.prompt, "is empty; give at least one token")
        if max(token_ids) >= tokenizer.vocab_size:
            fix = f"is not below the vocabulary's size {tokenizer.vocab_size}"
            raise InvalidInput("prompt_token_ids", max(token_ids), fix)
        return token_ids

    def _check_length(self, token_ids: Tokens, max_tokens: int) -> None:
        if max_tokens < 1:
            raise InvalidInput("max_tokens", max_tokens, "must be at least 1")
        max_model_len = self._max_model_len()
        what = f"the prompt has {len(token_ids)} tokens and the context {max_model_len}"
        if len(token_ids) >= max_model_len:
            raise InvalidInput(
                "prompt", f"{len(token_ids)} tokens", f"{what}: shorten it to {max_model_len - 1} at most"
            )
        if len(token_ids) + max_tokens > max_model_len:
            fix = f"{what}: ask for at most {max_model_len - len(token_ids)}, or shorten the prompt"
            raise InvalidInput("max_tokens", max_tokens, fix)

    def _max_model_len(self) -> int:
        links = self._coordinator.links.values()
        lengths = [link.info.max_model_len for link in links if link.info.role is Role.VERIFIER]
        return min([*lengths, self._coordinator.tokenizer.max_model_len])

    async def Abort(self, request: Any, context: Any) -> Any:  # noqa: N802
        async with answering(context):
            if not self._coordinator.abort(request.request_id):
                raise UnknownRequest(request.request_id)
            return pb.AbortReply()

    async def Register(self, request: Any, context: Any) -> Any:  # noqa: N802
        async with answering(context):
            config, info = self._coordinator.config, codec.worker_info_from_wire(request)
            self._coordinator.register(info, is_trusted=is_trusted(info, context, config))
            return pb.RegisterReply(lease_s=config.lease_s)

    async def GetModelInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        tokenizer = self._coordinator.tokenizer
        return pb.ModelInfo(
            model=self._coordinator.config.tokenizer,
            tokenizer_hash=tokenizer.hash,
            vocab_size=tokenizer.vocab_size,
            max_model_len=self._max_model_len(),
            eos_token_ids=tokenizer.eos_token_ids,
        )

    async def GetServerInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        pipeline, links = self._coordinator.pipeline, self._coordinator.links
        infos = [links[worker.name].info if worker.name in links else worker.info for worker in pipeline.pools]
        return pb.ServerInfo(
            version=__version__,
            workers=[codec.worker_info_to_wire(info) for info in infos],
            num_requests_running=pipeline.num_running,
            num_requests_waiting=pipeline.num_waiting,
        )


def _check_stop(stop: Any) -> None:
    if len(stop) > MAX_STOP_STRINGS:
        raise InvalidInput("stop", len(stop), f"give at most {MAX_STOP_STRINGS} stop strings")
    for text in stop:
        if not 1 <= len(text) <= MAX_STOP_LENGTH:
            raise InvalidInput("stop", text, f"a stop string has 1 to {MAX_STOP_LENGTH} characters")


def _metrics_to_wire(metrics: RequestMetrics) -> Any:
    return pb.RequestMetrics(
        mode=metrics.mode,
        rule=metrics.rule,
        length_policy=metrics.length_policy,
        window=metrics.window,
        num_prompt_tokens=metrics.num_prompt_tokens,
        num_generated_tokens=metrics.num_generated_tokens,
        num_drafts=metrics.num_drafts,
        num_received_drafts=metrics.num_received_drafts,
        num_draft_tokens=metrics.num_draft_tokens,
        num_tested_tokens=metrics.num_tested_tokens,
        num_accepted_tokens=metrics.num_accepted_tokens,
        num_recovered_tokens=metrics.sources[Source.RECOVERED],
        num_bonus_tokens=metrics.sources[Source.BONUS],
        num_self_decoded_tokens=metrics.sources[Source.SELF_DECODED],
        num_wasted_tokens=metrics.num_wasted_tokens,
        num_stale_drafts=metrics.num_stale_drafts,
        num_target_passes=metrics.num_target_passes,
        fallbacks=metrics.fallbacks,
        mean_accepted_length=metrics.mean_accepted_length,
        draft_ms=metrics.draft_ms,
        verify_ms=metrics.verify_ms,
        overlap_share=metrics.overlap_share,
        queue_ms=metrics.queue_ms,
        ttft_ms=metrics.ttft_ms,
        e2e_ms=metrics.e2e_ms,
        coordinator_ms=metrics.coordinator_ms,
        wire_ms=metrics.wire_ms,
        tokens_by_mode=metrics.tokens_by_mode,
    )


class CoordinatorServer:
    """A coordinator and its gRPC server: `start`, then `stop`."""

    def __init__(self, config: CoordinatorConfig) -> None:
        self.coordinator = Coordinator(config)
        self.port = 0
        self._server: Server | None = None

    async def start(self) -> None:
        """Bind and serve. Raises InvalidInput for a host or a port that will not do."""
        servicer = CoordinatorServicer(self.coordinator)

        def add(server: Any) -> None:
            coordinator_pb2_grpc.add_CoordinatorServicer_to_server(servicer, server)

        name = pb.DESCRIPTOR.services_by_name["Coordinator"].full_name
        config = self.coordinator.config
        self._server, self.port = await start_server(
            ((name, add),), config.host, config.grpc_port, insecure=config.insecure
        )

    async def stop(self) -> None:
        await self.coordinator.close()
        if self._server:
            await self._server.stop(grace_s=1)


async def serve_coordinator(config: CoordinatorConfig) -> int:
    """Serve until a signal; the process's exit code."""
    server = CoordinatorServer(config)
    await server.start()
    print(f"paceline coordinator ready on {config.host}:{server.port} (tokenizer {config.tokenizer})", flush=True)
    return await run_until_signalled(server.stop)


def run(config: CoordinatorConfig) -> int:
    return asyncio.run(serve_coordinator(config))
