"""What a coordinator is started with. Built once at the edge, passed down, never read from the environment later."""

from __future__ import annotations

from dataclasses import dataclass, field

from coordinator.core.limits import Limits
from coordinator.recent import DEFAULT_KEPT
from paceline.drain import DRAIN_S
from paceline.length_policy import LengthPolicy
from paceline.security import Tls
from paceline.trace import DEFAULT_MAX_BYTES
from paceline.types import Mode, Rule


@dataclass(frozen=True, slots=True)
class CoordinatorConfig:
    tokenizer: str  # folder or Hugging Face name: the target's
    revision: str | None = None  # of a Hugging Face name: branch, tag or commit; None = its main branch
    host: str = "127.0.0.1"
    grpc_port: int = 50051  # 0 = a free one
    port: int | None = None  # of HTTP; 0 = a free one, None = no HTTP
    served_model_name: str | None = None  # what HTTP clients call the model; None = `tokenizer`
    chat_template: str | None = None  # a Jinja file; None = the model's own, if it has one
    generation_config: str = "auto"  # whose sampling law HTTP requests have that name none; none, or a folder
    allowed_origins: tuple[str, ...] = ()  # of web pages that may call over HTTP
    insecure: bool = False  # allow a host that is not loopback without TLS
    tls: Tls | None = None  # for all that call here and for the workers; None = no encryption
    api_keys: str | None = None  # file of the keys that clients must show; None = anybody may call
    reflection: bool = False  # answer what methods there are even with TLS or keys
    mode: Mode | None = None  # for requests that name none; None = auto
    rule: Rule | None = None
    trust_drafters: bool = False  # believe every drafter's rows (coordinator/trust.py has who is believed without it)
    policy: LengthPolicy | None = None
    window: int | None = None  # drafts unverified at a time; None = what round trips and speeds call for
    lease_s: float = 10.0  # a worker that does not register again within it is dropped; ten missed turns of a busy CPU
    limits: Limits = field(default_factory=Limits)
    admit_any: bool = False  # take in drafters that can help no verifier which is here
    max_workers: int = 1024  # of each role registered at a time; each costs a stream and a task
    max_requests_per_key: int = 1024  # running and waiting; no bound where there are no keys
    client_stall_s: float = 30.0  # a client that does not read for so long is cut off; its tokens wait till then
    drain_s: float = DRAIN_S
    trace: str | None = None  # file to which every event of the core is appended; None = none
    max_trace_bytes: int = DEFAULT_MAX_BYTES
    num_traces: int = DEFAULT_KEPT  # ended requests whose steps are kept for `paceline trace`; 0 = none
    otlp_traces_endpoint: str | None = None  # OpenTelemetry's receiver; None = as OTEL_* variables say, or none

    @property
    def model_name(self) -> str:
        """What HTTP clients call the model."""
        return self.served_model_name or self.tokenizer
