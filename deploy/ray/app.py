"""The Serve application: `serve run deploy.ray.app:build target=models/big drafter=models/small`.

A coordinator as the ingress, a pool of verifiers, and any number of pools of drafters, each a deployment that scales on
its own. What a deployment's processes are started with is its `user_config`, which Serve can change without touching
the others: a replica drains, and its process starts anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application

from deploy.local import STOP_S
from deploy.ray.arguments import COORDINATOR, VERIFIERS, Arguments, DrafterPool, Pool, VerifierPool
from deploy.ray.coordinator import CoordinatorReplica
from deploy.ray.worker import WorkerReplica
from paceline import __version__

HEALTH_PERIOD_S = 2.0
HEALTH_TIMEOUT_S = 10.0
LEAVE_S = 5.0  # beside draining and ending the process
_RESOURCES = ("num_cpus", "num_gpus", "resources")
# What every process is told.
_SHARED = {"target", "host", "insecure", "tls_cert", "tls_key", "tls_ca"}
_SHARED |= {"drain_s", "start_timeout_s", "log_level"}


def build(arguments: Arguments | dict[str, Any]) -> Application:
    """The application that `arguments` describe; Serve's commands give them as a dictionary. Raises ValueError."""
    arguments = resolved(Arguments.model_validate(arguments))
    pools: dict[str, Pool] = {VERIFIERS: arguments.verifiers, **arguments.drafters}
    deployments = [_workers(name, pool, arguments) for name, pool in pools.items()]
    options = _common(arguments) | {
        "name": COORDINATOR,
        "num_replicas": arguments.coordinator.num_replicas,
        "ray_actor_options": arguments.coordinator.actor_options,
        "user_config": _config(arguments, "api_keys") | {COORDINATOR: {"options": arguments.coordinator.options}},
        # The new one is there before the old one drains, unless both would want the same port.
        "max_surge_percent": 0 if arguments.coordinator.has_own_port else 100,
    }
    return _bound(CoordinatorReplica, options, *deployments)


def _bound(kind: type, options: dict[str, Any], *given: Any) -> Application:
    deployment: Any = serve.deployment(kind)
    deployment = deployment.options(**options)  # so said, `serve build` writes it down
    # A version of one's own is how Serve knows that the code is the same.
    application: Application = deployment.options(version=__version__, _internal=True).bind(*given)
    return application


def _workers(name: str, pool: Pool, arguments: Arguments) -> Application:
    options = _common(arguments) | {"name": name, "ray_actor_options": pool.actor_options}
    if isinstance(pool, VerifierPool) and pool.tensor_parallel_size > 1:
        options["placement_group_bundles"] = [pool.bundle] * pool.tensor_parallel_size
        options["placement_group_strategy"] = "STRICT_PACK"  # ranks share a host's memory and talk over its loopback
    if pool.is_fixed:
        options["num_replicas"] = pool.max_replicas
    else:
        options["autoscaling_config"] = _autoscaling(pool, arguments)
    # Only what these processes depend on, so that a change elsewhere leaves them alone.
    own = pool.model_dump(mode="json", include={"model", "options", "tensor_parallel_size", *_RESOURCES})
    key = {VERIFIERS: own} if isinstance(pool, VerifierPool) else {"pools": {name: own}}
    options["user_config"] = _config(arguments) | key
    return _bound(WorkerReplica, options, name)


def _common(arguments: Arguments) -> dict[str, Any]:
    return {
        "max_ongoing_requests": 100,
        "health_check_period_s": HEALTH_PERIOD_S,
        "health_check_timeout_s": HEALTH_TIMEOUT_S,
        "graceful_shutdown_wait_loop_s": 0.1,
        "graceful_shutdown_timeout_s": arguments.drain_s + STOP_S + LEAVE_S,
    }


def _config(arguments: Arguments, *names: str) -> dict[str, Any]:
    """What every process is told, and the named arguments."""
    return arguments.model_dump(mode="json", include={*_SHARED, *names})


def _autoscaling(pool: Pool, arguments: Arguments) -> dict[str, Any]:
    return {
        "min_replicas": pool.min_replicas,
        "max_replicas": pool.max_replicas,
        "initial_replicas": pool.initial_replicas,
        "upscale_delay_s": pool.upscale_delay_s,
        "downscale_delay_s": pool.downscale_delay_s,
        "policy": _policy(pool, arguments),
    }


def _policy(pool: Pool, arguments: Arguments) -> dict[str, Any]:
    if isinstance(pool, VerifierPool):
        kind = "VerifierPolicy"
        aims = {"max_kv_used": pool.max_kv_used, "max_load": pool.max_load, "max_step_ms": pool.max_step_ms}
    else:
        assert isinstance(pool, DrafterPool)
        kind = "DrafterPolicy"
        aims = {
            "requests_per_replica": pool.requests_per_replica,
            "max_stall_share": pool.max_stall_share,
            "share": arguments.share_of(pool),
        }
    return {
        "policy_function": f"deploy.ray.policies:{kind}",
        "policy_kwargs": aims,
    }


def resolved(arguments: Arguments) -> Arguments:
    """With whole paths in place of those from here: a replica's working directory is another one."""

    def whole(model: str) -> str:
        return str(Path(model).expanduser().resolve()) if Path(model).expanduser().is_dir() else model

    pools = {name: pool.model_copy(update={"model": whole(pool.model)}) for name, pool in arguments.drafters.items()}
    return arguments.model_copy(update={"target": whole(arguments.target), "drafter": None, "pools": pools})
