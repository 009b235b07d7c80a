"""What Serve is told of the application; no cluster is needed to build it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray.serve", reason="ray is not installed; pip install 'paceline[ray]'")

from deploy.ray.app import build

GIVEN: dict[str, Any] = {"target": "big", "pools.edge.model": "tiny", "pools.gpu.model": "small"}


def deployments(**more: Any) -> dict[str, Any]:
    """Of a built application, by name."""
    bound: Any = build(GIVEN | {name.replace("__", "."): value for name, value in more.items()})
    found = {
        argument._bound_deployment.name: argument._bound_deployment for argument in bound._bound_deployment.init_args
    }
    return found | {bound._bound_deployment.name: bound._bound_deployment}


def test_every_pool_is_a_deployment_and_the_coordinator_is_the_ingress() -> None:
    assert list(deployments()) == ["verifiers", "edge", "gpu", "coordinator"]


def test_a_verifier_of_several_ranks_is_a_placement_group_on_one_node() -> None:
    group = deployments(verifiers__tensor_parallel_size=4, verifiers__num_gpus=1, verifiers__resources__fast=1)[
        "verifiers"
    ]
    replica = group._replica_config
    assert replica.placement_group_bundles == [{"CPU": 1.0, "GPU": 1.0, "fast": 1.0}] * 4
    assert replica.placement_group_strategy == "STRICT_PACK"
    assert replica.ray_actor_options["num_gpus"] == 1
    assert deployments()["verifiers"]._replica_config.placement_group_bundles is None


def test_drafters_ask_for_parts_of_a_gpu_or_for_resources_of_the_clusters_own() -> None:
    made = deployments(pools__gpu__num_gpus=0.25, pools__edge__resources__edge=1)
    assert made["gpu"]._replica_config.ray_actor_options["num_gpus"] == 0.25
    assert made["edge"]._replica_config.ray_actor_options["resources"] == {"edge": 1.0}


def test_each_pool_has_a_policy_of_its_own_with_its_own_aims() -> None:
    made = deployments(
        verifiers__max_replicas=2, pools__edge__min_replicas=0, pools__edge__max_replicas=3, pools__edge__share=0.2
    )
    drafters = made["edge"]._deployment_config.autoscaling_config
    assert (drafters.min_replicas, drafters.max_replicas) == (0, 3)
    assert drafters.policy.policy_function.endswith("policies:DrafterPolicy")
    assert drafters.policy.policy_kwargs["share"] == 0.2
    assert made["verifiers"]._deployment_config.autoscaling_config.policy.policy_function.endswith("VerifierPolicy")
    assert made["gpu"]._deployment_config.autoscaling_config is None, "equal bounds are a fixed number"


def test_a_change_of_one_pool_is_none_of_the_others() -> None:
    """What Serve compares: a replica keeps its process if its configuration is the same, and its code."""
    before, after = deployments(), deployments(pools__edge__model="other", pools__edge__requests_per_replica=2)
    changed = [name for name in before if config(before[name]) != config(after[name])]
    assert changed == ["edge"]
    aims = deployments(pools__edge__requests_per_replica=2)
    assert config(aims["edge"]) == config(before["edge"]), "what only the policy reads restarts nobody"


def test_a_coordinator_with_a_port_of_its_own_goes_before_the_next_one_comes() -> None:
    def surge(**options: Any) -> Any:
        return deployments(**options)["coordinator"]._deployment_config.max_surge_percent

    assert surge() == 100
    assert surge(coordinator__options__port="off") == 100
    assert surge(coordinator__options__grpc_port=50051) == 0
    assert surge(coordinator__options__port="8000") == 0


def config(deployment: Any) -> Any:
    return deployment._deployment_config.user_config, deployment._version, deployment._replica_config.ray_actor_options


def test_folders_are_whole_paths_since_replicas_work_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "big").mkdir()
    made = deployments()
    assert made["verifiers"]._deployment_config.user_config["target"] == str(tmp_path / "big")
    assert made["edge"]._deployment_config.user_config["pools"]["edge"]["model"] == "tiny", "not here: a hub's, perhaps"


def test_what_serve_build_writes_down_holds_every_setting() -> None:
    """Serve leaves out of the file what it was not told by a public call."""
    from ray.serve.deployment import deployment_to_schema

    written = {name: deployment_to_schema(it) for name, it in deployments(pools__edge__max_replicas=3).items()}
    edge = written["edge"].model_dump(exclude_unset=True)
    assert edge["user_config"]["pools"]["edge"]["model"] == "tiny"
    assert edge["autoscaling_config"]["max_replicas"] == 3
    assert edge["ray_actor_options"]["num_cpus"] == 1
    assert written["coordinator"].max_surge_percent == 100
