"""The gRPC door: reads what clients ask for into `coordinator.service`, and writes what comes of it to them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from coordinator import telemetry
from coordinator.config import CoordinatorConfig
from coordinator.health import Health
from coordinator.recent import RecentRequests
from coordinator.server import Coordinator
from coordinator.service import GenerationRequest, Reply, Service
from coordinator.trust import is_trusted
from paceline import __version__, codec
from paceline.door import Door
from paceline.errors import InvalidInput, Overloaded, UnknownRequest
from paceline.holdings import told_on_signal
from paceline.open_files import allow_open_files
from paceline.rpc import Server, answering, run_until_signalled, start_server
from paceline.security import PeerRole, check_peer
from paceline.types import SamplingParams
from paceline.wire import coordinator_pb2 as pb
from paceline.wire import coordinator_pb2_grpc

if TYPE_CHECKING:
    from coordinator.http.server import HttpServer

GRACE_S = 1.0  # of gRPC's calls that still run; their requests have been cancelled by then
SHUTDOWN_S = 8.0  # after a drain: traces take 2 s, HTTP 2 s, gRPC 1 s; with the drain it is less than Kubernetes' 30 s
# Certificates are looked at in handshakes: one that has ended is of use for so long at most, for what comes anew.
MAX_CONNECTION_AGE_S = 3600.0

_CLIENT, _WORKER = (PeerRole.CLIENT,), (PeerRole.DRAFTER, PeerRole.VERIFIER)
WHO = {
    "Generate": _CLIENT,
    "Abort": _CLIENT,
    "GetModelInfo": _CLIENT,
    "GetServerInfo": _CLIENT,
    "ListTraces": _CLIENT,
    "GetTrace": _CLIENT,
    "Register": _WORKER,
}


class CoordinatorServicer:
    """See the top of the file."""

    def __init__(self, coordinator: Coordinator, door: Door) -> None:
        self._coordinator = coordinator
        self._service = Service(coordinator)
        self._door = door

    async def Generate(self, request: Any, context: Any) -> None:  # noqa: N802
        async with answering(context):
            asked = replace(_request_from_wire(request, self._door.client(context)), caller=_caller(context))
            spec = await self._service.admit(asked)
            request_id = spec.request_id
            async with self._service.generation(asked, spec) as generation:
                while reply := await generation.read():
                    await self._write(context, _reply_to_wire(reply, request_id))
                    request_id = ""

    async def _write(self, context: Any, message: Any) -> None:
        """Waits while the client does not read, but not for ever. Raises Overloaded then."""
        stall_s = self._coordinator.config.client_stall_s
        try:
            async with asyncio.timeout(stall_s):
                await context.write(message)
        except TimeoutError:
            raise Overloaded("seconds that replies wait for this client to read", stall_s, 1) from None

    async def Abort(self, request: Any, context: Any) -> Any:  # noqa: N802
        async with answering(context):
            if not self._coordinator.abort(request.request_id, self._door.client(context)):
                raise UnknownRequest(request.request_id)
            return pb.AbortReply()

    async def Register(self, request: Any, context: Any) -> Any:  # noqa: N802
        async with answering(context):
            config, info = self._coordinator.config, codec.worker_info_from_wire(request)
            if config.tls:
                check_peer(context, PeerRole(info.role))  # a drafter's certificate makes no verifier
            await self._coordinator.registry.admit(info, is_trusted=is_trusted(info, context, config))
            return pb.RegisterReply(lease_s=config.lease_s)

    async def GetModelInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        tokenizer = self._coordinator.tokenizer
        return pb.ModelInfo(
            model=self._coordinator.config.tokenizer,
            tokenizer_hash=tokenizer.hash,
            vocab_size=tokenizer.vocab_size,
            max_model_len=self._service.max_model_len,
            eos_token_ids=tokenizer.eos_token_ids,
            served_model_name=self._coordinator.config.model_name,
        )

    async def GetServerInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        demand = self._coordinator.demand
        pipeline, links, config = self._coordinator.pipeline, self._coordinator.links, self._coordinator.config
        infos = [links[worker.name].info if worker.name in links else worker.info for worker in pipeline.pools]
        return pb.ServerInfo(
            version=__version__,
            workers=[codec.worker_info_to_wire(info) for info in infos],
            num_requests_running=pipeline.num_running,
            num_requests_waiting=pipeline.num_waiting,
            num_requests_undrafted=pipeline.num_undrafted,
            num_requests_resting=demand.num_resting,
            num_requests_speculative=demand.num_speculative,
            stall_share=demand.stall_share,
            verify_ms=demand.verify_ms,
            max_waiting=pipeline.limits.max_waiting,
            is_draining=self._coordinator.is_draining,
            mode=config.mode or "",
            rule=config.rule or "",
            length_policy=str(config.policy or ""),
            window=config.window or 0,
        )

    async def ListTraces(self, request: Any, context: Any) -> Any:  # noqa: N802
        async with answering(context):
            client = self._door.client(context)
            return pb.TraceList(traces=[pb.TraceSummary(**one.summary()) for one in self._recent.of(client)])

    async def GetTrace(self, request: Any, context: Any) -> None:  # noqa: N802
        async with answering(context):
            recent = self._recent.get(request.request_id, self._door.client(context))
            for records in recent.records():  # a piece at a time: others' drafts and verdicts pass in between
                await self._write(context, pb.TraceChunk(records=records))

    @property
    def _recent(self) -> RecentRequests:
        return self._coordinator.recent


def _caller(context: Any) -> dict[str, str]:
    """The trace that a call belongs to, as its metadata say."""
    return {key: value for key, value in context.invocation_metadata() or () if key in telemetry.FIELDS}


def _request_from_wire(wire: Any, client: str) -> GenerationRequest:
    """Raises InvalidInput."""
    if wire.prompt and wire.prompt_token_ids:
        raise InvalidInput("prompt_token_ids", "…", "give either prompt or prompt_token_ids, not both")
    has_sampling, has_policy = wire.HasField("sampling"), wire.HasField("length_policy")
    return GenerationRequest(
        prompt=tuple(wire.prompt_token_ids) or wire.prompt,
        max_tokens=wire.max_tokens,
        sampling=codec.sampling_from_wire(wire.sampling) if has_sampling else SamplingParams(temperature=0),
        stop=tuple(wire.stop),
        ignore_eos=wire.ignore_eos,
        mode=codec.mode_from_wire(wire.mode),
        rule=codec.rule_from_wire(wire.rule),
        policy=codec.length_policy_from_wire(wire.length_policy) if has_policy else None,
        max_draft_length=wire.max_draft_length or None,
        window=wire.window,
        request_id=wire.request_id,
        client=client,
        resumed=tuple(wire.resume_token_ids),
    )


def _reply_to_wire(reply: Reply, request_id: str) -> Any:
    figures = reply.metrics.figures() if reply.metrics else {}
    return pb.GenerateReply(
        text=reply.text,
        token_ids=reply.token_ids,
        sources=codec.sources_to_wire(reply.sources),
        text_lengths=reply.text_lengths,
        logprobs=reply.logprobs,
        top_logprobs=codec.top_logprobs_to_wire(reply.top_logprobs),
        finish_reason=reply.finish_reason or "",
        metrics=pb.RequestMetrics(**figures) if reply.finish_reason else None,
        request_id=request_id,
    )


class CoordinatorServer:
    """A coordinator with its gRPC server, and its HTTP server if one is configured: `start`, then `stop`."""

    def __init__(self, config: CoordinatorConfig) -> None:
        self.coordinator = Coordinator(config)
        self.port = 0
        self.http: HttpServer | None = None
        self._server: Server | None = None

    async def start(self) -> None:
        """Bind and serve. Raises InvalidInput for a host or a port that will not do."""
        config = self.coordinator.config
        if traces := telemetry.start(config, self.coordinator.now_s()):
            self.coordinator.telemetry = traces
            self.coordinator.observers.append(traces)
        door = Door(WHO, has_tls=config.tls is not None, keys=self.coordinator.keys)
        servicer = CoordinatorServicer(self.coordinator, door)

        def add(server: Any) -> None:
            coordinator_pb2_grpc.add_CoordinatorServicer_to_server(servicer, server)

        name = pb.DESCRIPTOR.services_by_name["Coordinator"].full_name
        self._server, self.port = await start_server(
            ((name, add),),
            config.host,
            config.grpc_port,
            insecure=config.insecure,
            tls=config.tls,
            door=door,
            has_reflection=config.reflection,
            is_ready=False,
            max_connection_age_s=MAX_CONNECTION_AGE_S,
        )
        self.coordinator.observers.append(Health(self.coordinator, self._server.say_serving))
        if config.port is not None:
            from coordinator.http.server import HttpServer  # late: who serves gRPC alone need not wait for FastAPI

            try:
                self.http = HttpServer(self.coordinator, self.coordinator.keys)
                await self.http.start()
            except InvalidInput:
                await self._server.stop()
                raise

    async def drain(self) -> None:
        """Take no new requests, let those that run end, then `stop`."""
        if self._server:
            await self._server.drain()
        await self.coordinator.drain(self.coordinator.config.drain_s)
        await self.stop()

    async def stop(self) -> None:
        await self.coordinator.close()
        if self.coordinator.telemetry:
            await self.coordinator.telemetry.close()
        if self.http:
            await self.http.stop()
        if self._server:
            await self._server.stop(grace_s=GRACE_S)


async def serve_coordinator(config: CoordinatorConfig, *, as_json: bool = False) -> int:
    """Serve until a signal; the process's exit code. `as_json`: how the line that says that it is ready is written."""
    allow_open_files()
    server = CoordinatorServer(config)
    await server.start()
    where, url = f"{config.host}:{server.port}", server.http.url if server.http else None
    told = {"ready": "coordinator", "grpc": where, "http": url, "tokenizer": config.tokenizer}
    line = f"paceline coordinator ready on {where} (tokenizer {config.tokenizer}){f', HTTP on {url}' if url else ''}"
    print(json.dumps(told) if as_json else line, flush=True)
    with told_on_signal("coordinator", lambda: server.coordinator.held):
        return await run_until_signalled(server.drain, within_s=config.drain_s + SHUTDOWN_S)
