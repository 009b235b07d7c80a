"""The RayService: pods valid by Kubernetes' schema, application by Serve's and ours, nodes enough for it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import DEPLOY, flags_of

pytest.importorskip("ray.serve")

from deploy.ray.arguments import Arguments, Replicas

FILE = DEPLOY / "kuberay" / "rayservice.yaml"
KUBERNETES = "1.34"
# Fields of ray.io/v1 that are used; KubeRay refuses others.
CLUSTER = {
    "rayVersion",
    "enableInTreeAutoscaling",
    "autoscalerOptions",
    "authOptions",
    "headGroupSpec",
    "workerGroupSpecs",
}
GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(FILE.read_text()))


@pytest.fixture(scope="module")
def cluster(documents: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = documents[0]["spec"]["rayClusterConfig"]
    return found


@pytest.fixture(scope="module")
def config(documents: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(documents[0]["spec"]["serveConfigV2"])
    return found


@pytest.fixture(scope="module")
def arguments(config: dict[str, Any]) -> Arguments:
    return Arguments.model_validate(config["applications"][0]["args"])


def test_pods_and_services_are_valid(documents: list[dict[str, Any]], cluster: dict[str, Any]) -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    validate(documents[1], KUBERNETES, strict=True)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        template = group["template"]
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"} | template.get("metadata", {})}
        validate(pod | {"spec": template["spec"]}, KUBERNETES, strict=True)


def test_fields_are_kuberays(cluster: dict[str, Any]) -> None:
    assert set(cluster) <= CLUSTER
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert set(group) <= GROUP
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_the_application_is_valid(config: dict[str, Any]) -> None:
    from ray.serve.schema import ServeDeploySchema

    ServeDeploySchema.model_validate(config)


def test_options_exist(arguments: Arguments, capsys: pytest.CaptureFixture[str]) -> None:
    pools: list[tuple[str, Replicas]] = [("coordinator", arguments.coordinator), ("verifier", arguments.verifiers)]
    for role, pool in [*pools, *(("drafter", pool) for pool in arguments.drafters.values())]:
        assert {f"--{name}" for name in pool.options} <= flags_of(role, capsys)


def test_there_are_nodes_for_every_pool(cluster: dict[str, Any], arguments: Arguments) -> None:
    head, *groups = (offered(group) for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]))
    assert fits(arguments.coordinator.bundle, head)
    whole = {name: 4 * amount for name, amount in arguments.verifiers.bundle.items()}
    assert any(fits(whole, group) for group in groups), "all ranks on one node"
    for pool in arguments.drafters.values():
        able = [group for group in groups if fits(pool.bundle, group)]
        assert able
        assert not any(group.get("GPU") for group in able), "drafters stay off the verifiers' nodes"


def offered(group: dict[str, Any]) -> dict[str, float]:
    container = group["template"]["spec"]["containers"][0]
    parameters = group["rayStartParams"]
    cpus = parameters.get("num-cpus") or container["resources"]["requests"]["cpu"]
    found = {"CPU": float(cpus), "GPU": float(parameters.get("num-gpus", 0))}
    if text := parameters.get("resources"):
        found |= json.loads(json.loads(text))
    return found


def fits(bundle: dict[str, float], node: dict[str, float]) -> bool:
    return all(node.get(name, 0) >= amount for name, amount in bundle.items())


def test_traffic_is_authenticated_and_encrypted(cluster: dict[str, Any], arguments: Arguments) -> None:
    assert cluster["authOptions"] == {"mode": "token"}
    assert arguments.tls_cert
    assert not arguments.insecure
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        container = group["template"]["spec"]["containers"][0]
        env = {one["name"]: one.get("value") for one in container["env"]}
        assert env["RAY_USE_TLS"] == "1"
        assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {"/ray-tls", "/etc/paceline/tls"}
        assert "ray-ca" not in {mount["name"] for mount in container["volumeMounts"]}
