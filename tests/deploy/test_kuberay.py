"""The RayService: pods valid by Kubernetes' schema, application by Serve's and ours, nodes enough for it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
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
    for group in groups(cluster):
        template = group["template"]
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"} | template.get("metadata", {})}
        validate(pod | {"spec": template["spec"]}, KUBERNETES, strict=True)


def test_fields_are_kuberays(cluster: dict[str, Any]) -> None:
    assert set(cluster) <= CLUSTER
    for group in groups(cluster):
        assert set(group) <= GROUP
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_a_worker_node_is_ready_without_serves_proxy(cluster: dict[str, Any], config: dict[str, Any]) -> None:
    """KubeRay has worker nodes that bring no readiness probe asked for Serve's proxy, which is off: none was ready."""
    from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
    from ray.dashboard.http_server_agent import PUBLIC_EXACT_PATHS

    assert config["proxy_location"] == "Disabled"
    for group in cluster["workerGroupSpecs"]:
        asked = group["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]
        assert asked["port"] == DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
        assert asked["path"] in PUBLIC_EXACT_PATHS, "a probe has no token"


def test_the_application_is_valid(config: dict[str, Any]) -> None:
    from ray.serve.schema import ServeDeploySchema

    ServeDeploySchema.model_validate(config)


def test_options_exist(arguments: Arguments, capsys: pytest.CaptureFixture[str]) -> None:
    pools: list[tuple[str, Replicas]] = [("coordinator", arguments.coordinator), ("verifier", arguments.verifiers)]
    for role, pool in [*pools, *(("drafter", pool) for pool in arguments.drafters.values())]:
        assert {f"--{name}" for name in pool.options} <= flags_of(role, capsys)


def test_there_are_nodes_for_every_pool(cluster: dict[str, Any], arguments: Arguments) -> None:
    head, *workers = map(offered, groups(cluster))
    assert fits(arguments.coordinator.bundle, head)
    whole = {name: 4 * amount for name, amount in arguments.verifiers.bundle.items()}
    assert any(fits(whole, worker) for worker in workers), "all ranks on one node"
    for pool in arguments.drafters.values():
        able = [worker for worker in workers if fits(pool.bundle, worker)]
        assert able
        assert not any(worker.get("GPU") for worker in able), "drafters stay off the verifiers' nodes"


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
    autoscaler = cluster["autoscalerOptions"]  # beside the head, in a container that KubeRay makes
    containers = [group["template"]["spec"]["containers"][0] for group in groups(cluster)]
    for container in (autoscaler, *containers):
        env = {one["name"]: one.get("value") for one in container["env"]}
        assert env["RAY_USE_TLS"] == "1"
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts["ray-tls"] == str(Path(env["RAY_TLS_SERVER_KEY"]).parent)
        assert "ray-ca" not in mounts, "whoever has it can make certificates"
    volumes = {volume["name"] for volume in cluster["headGroupSpec"]["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in autoscaler["volumeMounts"]} <= volumes


def groups(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def mounted(group: dict[str, Any]) -> dict[str, str]:
    """The secrets of a group's main container, by where they are."""
    spec = group["template"]["spec"]
    secrets = {one["name"]: one["secret"]["secretName"] for one in spec["volumes"] if "secret" in one}
    mounts = spec["containers"][0]["volumeMounts"]
    return {mount["mountPath"]: secrets[mount["name"]] for mount in mounts if mount["name"] in secrets}


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """What the commands at the file's head put into each secret, run with a kubectl that only writes down its words."""
    folder = tmp_path_factory.mktemp("head")
    lines = [line.removeprefix("#   ").rstrip() for line in FILE.read_text().splitlines() if line.startswith("#   ")]
    script = "\n".join(re.sub(r"(?<=\S) {4,}\S.*$", "", line) for line in lines)  # remarks stand to the right
    for name, code in (
        ("kubectl", f'echo "$@" >> {folder}/said'),
        ("paceline", f'{sys.executable} -m deploy.cli "$@"'),
    ):
        (folder / name).write_text(f"#!/bin/sh\n{code}\n")
        (folder / name).chmod(0o755)
    path = {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(DEPLOY.parent)}
    command = ["bash", "-euc", script]
    done = subprocess.run(command, cwd=folder, env={**os.environ, **path}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, set[str]] = {}
    for line in (folder / "said").read_text().splitlines():
        words = line.split()
        if words[:3] == ["create", "secret", "generic"]:
            given = [word.removeprefix("--from-file=").split("=") for word in words[4:]]
            assert all((folder / pair[-1]).is_file() for pair in given)
            found[words[3]] = {Path(pair[0]).name for pair in given}
    return found


def test_a_node_has_its_own_roles_keys_and_nobody_elses(
    cluster: dict[str, Any], arguments: Arguments, secrets: dict[str, set[str]]
) -> None:
    assert arguments.tls_cert
    assert arguments.api_keys
    folder, keys = str(Path(arguments.tls_cert).parent), Path(arguments.api_keys)
    wanted = {"coordinator": {"coordinator", "client"}, "verifiers": {"verifier"}, "drafters": {"drafter"}}
    for group in groups(cluster):
        name = group.get("groupName", "coordinator")
        files = {f"{role}.{end}" for role in wanted[name] for end in ("crt", "key")} | {"ca.crt"}
        told = {path: secrets[secret] for path, secret in mounted(group).items()}
        assert told.pop(folder) == files, name
        assert told == ({str(keys.parent): {keys.name}} if name == "coordinator" else {}), name
