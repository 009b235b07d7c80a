"""What the Serve application is built from: `serve run deploy.ray.app:build target=… drafter=…`, or a YAML's `args`.

On a command line every value is text and nothing nests, so a dot in a name means a level: `verifiers.max_replicas=2`,
`pools.edge.resources.edge=1`. Whatever a role's own command takes can be given as `options`, by the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from deploy.model_free import is_model_free
from paceline.drain import DRAIN_S
from paceline.rpc import is_loopback

DRAFTERS = "drafters"  # the name of the pool that `drafter` makes
COORDINATOR, VERIFIERS = "coordinator", "verifiers"
THIS_NODE = "node"  # as host: the address of the node that a replica runs on
# What the application itself says to a role's process.
_OURS = {"advertise", "coordinator", "coordinators-file", "host", "insecure", "model", "tokenizer", "api-keys"}
_OURS |= {"ranks-socket", "tensor-parallel-size", "tls-cert", "tls-key", "tls-ca", "drain-s", "log-level"}

Value = bool | int | float | str


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Replicas(_Strict):
    """What each replica of a deployment asks of the cluster, and what its process is started with."""

    num_cpus: float = Field(default=1.0, ge=0)
    num_gpus: float = Field(default=0.0, ge=0)  # a share of one GPU for small drafters
    resources: dict[str, float] = {}  # custom ones, such as drafter_cpu or edge
    options: dict[str, Value] = {}  # of the role's own command, without the dashes

    @field_validator("options")
    @classmethod
    def _not_ours(cls, options: dict[str, Value]) -> dict[str, Value]:
        for name in options:
            if name.replace("_", "-") in _OURS:
                raise ValueError(f"{name} is set by the application itself; give it as the application's argument")
        return options

    @property
    def bundle(self) -> dict[str, float]:
        """What one actor of it asks for, as a placement group's bundle."""
        named = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}
        return {name: amount for name, amount in named.items() if amount}

    @property
    def actor_options(self) -> dict[str, Any]:
        return {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, "resources": self.resources}


class Pool(Replicas):
    """Of equal bounds: a fixed number of replicas."""

    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(default=1, ge=1)
    initial_replicas: int | None = Field(default=None, ge=0)
    upscale_delay_s: float = Field(default=2.0, ge=0)  # loading a model costs more than a short burst is worth
    downscale_delay_s: float = Field(default=60.0, ge=0)

    @model_validator(mode="after")
    def _in_order(self) -> Pool:
        if self.min_replicas > self.max_replicas:
            fix = f"min_replicas={self.min_replicas} is over max_replicas={self.max_replicas}; raise max_replicas"
            raise ValueError(fix)
        return self

    @property
    def is_fixed(self) -> bool:
        return self.min_replicas == self.max_replicas


class DrafterPool(Pool):
    """Drafters of one model on one kind of hardware. `min_replicas: 0` lets them all go while nobody wants drafts."""

    model: str  # a folder, ORG/NAME, prompt-lookup or suffix
    requests_per_replica: float = Field(
        default=8.0, gt=0
    )  # that want drafts; more of them are one too many for a drafter
    max_stall_share: float = Field(
        default=0.4, gt=0, le=1
    )  # tokens decoded for want of a draft; over it one more is tried
    share: float | None = Field(default=None, gt=0, le=1)  # of all requests; None = the pools of drafters share alike


class VerifierPool(Pool):
    """Verifiers of the target: a placement group each, with an actor a rank, all on one node."""

    tensor_parallel_size: int = Field(default=1, ge=1, le=64)
    max_kv_used: float = Field(default=0.8, gt=0, le=1)  # over these one more is wanted
    max_load: float = Field(default=0.8, gt=0, le=1)  # of the places for requests
    max_step_ms: float | None = Field(default=None, gt=0)

    @field_validator("min_replicas")
    @classmethod
    def _never_zero(cls, min_replicas: int) -> int:
        if not min_replicas:
            raise ValueError("must be at least 1: without a verifier nothing is served")
        return min_replicas


class Coordinators(Replicas):
    """One, unless clients know several addresses. It needs no GPU."""

    num_replicas: int = Field(default=1, ge=1)

    @property
    def has_own_port(self) -> bool:
        """Whether it is to be at a port that was chosen for it, where only one can be at a time."""
        ports = {name.replace("_", "-"): value for name, value in self.options.items()}
        return any(str(ports.get(name, 0)) not in ("0", "off") for name in ("grpc-port", "port"))


class Arguments(_Strict):
    """See the top of the file."""

    target: str
    drafter: str | None = None  # short for one pool of drafters of this model
    pools: dict[str, DrafterPool] = {}  # of drafters, by name
    verifiers: VerifierPool = VerifierPool()
    coordinator: Coordinators = Coordinators()
    name: str = "paceline"  # by which `paceline ray up` deploys it; Serve's own commands have one of theirs
    host: str = "127.0.0.1"  # what every process listens on; `node` = its node's address
    insecure: bool = False
    tls_cert: str | None = None  # on every node the same paths, with {role} in them
    tls_key: str | None = None
    tls_ca: str | None = None
    api_keys: str | None = None
    drain_s: float = Field(default=DRAIN_S, ge=0, le=3600)
    start_timeout_s: float = Field(default=1800.0, gt=0)  # of one process, its model's loading included
    log_level: str = "info"

    @model_validator(mode="before")
    @classmethod
    def _unfold(cls, given: Any) -> Any:
        return unfolded(given) if isinstance(given, Mapping) else given

    @model_validator(mode="after")
    def _check(self) -> Arguments:
        if self.host != THIS_NODE and not is_loopback(self.host):
            fix = f"replicas run on many nodes, so none of them can be bound to all; say {THIS_NODE}, or 127.0.0.1"
            raise ValueError(f"host={self.host!r}: {fix} where the cluster is one machine")
        if self.host == THIS_NODE and not (self.insecure or self.tls_cert):
            fix = (
                "give tls_cert, tls_key and tls_ca (`paceline certs` makes them), or insecure=true in a trusted network"
            )
            raise ValueError(f"host={self.host!r}: others could read and write this traffic; {fix}")
        for name in self.drafters:
            if name in (COORDINATOR, VERIFIERS) or not name.isidentifier():
                raise ValueError(f"pools.{name}: is no name for a pool; take letters, such as edge or small_gpu")
        return self

    @property
    def drafters(self) -> dict[str, DrafterPool]:
        """Every pool of drafters by its deployment's name."""
        own = self.pools.get(DRAFTERS)
        if self.drafter is None or own is not None:
            return self.pools
        return {DRAFTERS: DrafterPool(model=self.drafter), **self.pools}

    def share_of(self, pool: DrafterPool) -> float:
        """The share of all requests for which this pool is to have drafters."""
        return pool.share if pool.share is not None else 1 / len(self.drafters)


def unfolded(given: Mapping[str, Any]) -> dict[str, Any]:
    """Dots in names as levels: {"a.b": 1} → {"a": {"b": 1}}; `drafter` fills in the model of the pool that it names."""
    nested: dict[str, Any] = {}
    for name, value in given.items():
        *levels, last = name.split(".")
        at = nested
        for level in levels:
            at = at.setdefault(level, {})
        at[last] = {**at.get(last, {}), **value} if isinstance(value, Mapping) else value
    drafter, pools = nested.get("drafter"), nested.get("pools")
    if drafter is not None and isinstance(pools, dict) and isinstance(pools.get(DRAFTERS), dict):
        pools[DRAFTERS].setdefault("model", drafter)
    return nested


def flags(options: Mapping[str, Value]) -> tuple[str, ...]:
    """A role's options as its command takes them: {"dtype": "bfloat16"} → --dtype bfloat16."""
    words: list[str] = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if str(value).lower() in ("true", "false"):  # on a command line, `--set coordinator.options.admit-any=true`
            words.append(f"--{'' if str(value).lower() == 'true' else 'no-'}{flag}")
        else:
            words += [f"--{flag}", str(value)]
    return tuple(words)


def needs_device(model: str, pool: Replicas) -> bool:
    """Whether the process is to be told to use a GPU: it has one, and has not been told what to use."""
    return bool(pool.num_gpus) and not is_model_free(model) and "device" not in pool.options
