"""The chart, rendered by Helm itself: valid by Kubernetes' schemas, with options and roles that exist."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.cli import parsers
from deploy.local import STOP_S
from paceline.security import PeerRole
from tests.deploy.manifests import DEPLOY, twins_of

CHART = DEPLOY / "helm" / "paceline"
HELM = shutil.which("helm", path=str(Path(sys.executable).parent)) or shutil.which("helm")
KUBERNETES = "1.34"
# Kinds that other projects define; Kubernetes has no schema for them.
FOREIGN = {"Certificate", "PodMonitor", "PrometheusRule", "ScaledObject"}

pytestmark = pytest.mark.skipif(HELM is None, reason="no helm here")

Docs = list[dict[str, Any]]


def render(*arguments: str) -> Docs:
    assert HELM
    command = [HELM, "template", "pl", str(CHART), "--namespace", "serving", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise ValueError(done.stderr)
    return [doc for doc in yaml.safe_load_all(done.stdout) if doc]


@pytest.fixture(scope="module")
def everything() -> Docs:
    return render("--values", str(CHART / "ci-values.yaml"))


def pods(docs: Docs) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Role, the pod's spec, its container."""
    for doc in docs:
        if doc["kind"] in ("Deployment", "StatefulSet"):
            labels = doc["spec"]["template"]["metadata"]["labels"]
            spec = doc["spec"]["template"]["spec"]
            yield labels["app.kubernetes.io/component"], spec, spec["containers"][0]


@pytest.mark.parametrize("values", [(), ("--values", str(CHART / "ci-values.yaml")), ("--set", "tls.enabled=false")])
def test_what_is_rendered_is_valid(values: tuple[str, ...]) -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    docs = render(*values)
    assert {"Deployment", "StatefulSet", "Service", "NetworkPolicy", "PodDisruptionBudget"} <= {d["kind"] for d in docs}
    for doc in docs:
        if doc["kind"] not in FOREIGN:
            validate(doc, KUBERNETES, strict=True)


def test_every_role_reads_its_options(everything: Docs, capsys: pytest.CaptureFixture[str]) -> None:
    """By its own parser: one that only looks at names would let `--admit-any=true` pass, and a million as 1e+06."""
    known, read = parsers(), {}
    for role, _, container in pods(everything):
        environ = {one["name"]: one.get("value", "").replace("$(POD_IP)", "10.0.0.1") for one in container["env"]}
        assert set(environ) - {"POD_IP"} <= twins_of(role, capsys)
        read[role] = known[role].parse(container["args"], environ)
    assert set(read) == {"coordinator", "verifier", "drafter"}
    coordinator = read["coordinator"]
    assert (coordinator.admit_any, coordinator.json) == (True, False)
    assert (coordinator.trace_max_size, coordinator.lease_s) == (2_500_000, 4.5)
    assert read["verifier"].enforce_eager is True


@pytest.mark.parametrize(("secret", "is_open"), [("", True), ("some-keys", False)])
def test_http_leaves_the_pods_loopback_with_keys_and_without(secret: str, is_open: bool) -> None:
    """With TLS and neither keys nor --insecure it stays there, and the probe, which is from outside, never passes."""
    for role, _, container in pods(render("--set", f"apiKeys.secret={secret}")):
        environ = {one["name"]: one.get("value") for one in container["env"]}
        assert environ["PACELINE_TLS_CERT"]
        is_coordinator = role == "coordinator"
        assert ("PACELINE_API_KEYS" in environ) == (is_coordinator and not is_open)
        assert environ.get("PACELINE_INSECURE") == ("true" if is_coordinator and is_open else None)


def test_a_worker_registers_with_every_coordinator(everything: Docs) -> None:
    (peers,) = [d for d in everything if d["kind"] == "Service" and d["spec"].get("clusterIP") == "None"]
    wanted = [f"pl-coordinator-{i}.{peers['metadata']['name']}.serving.svc:50051" for i in range(2)]
    for role, _, container in pods(everything):
        env = {one["name"]: one.get("value") for one in container["env"]}
        assert role == "coordinator" or env["PACELINE_COORDINATOR"].split(",") == wanted


def test_a_pod_outlives_its_drain(everything: Docs) -> None:
    for _, spec, container in pods(everything):
        (drain_s,) = [int(one.partition("=")[2]) for one in container["args"] if one.startswith("--drain-s=")]
        assert spec["terminationGracePeriodSeconds"] > drain_s + STOP_S, "a clean end comes after draining"


def test_no_pod_may_more_than_it_must(everything: Docs) -> None:
    for _, spec, container in pods(everything):
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["automountServiceAccountToken"] is False
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_certificates_say_the_roles_that_are_checked(everything: Docs) -> None:
    found = {d["spec"]["secretName"]: d["spec"] for d in everything if d["kind"] == "Certificate"}
    assert len(found) == len(PeerRole)
    for role in PeerRole:
        spec = found[f"pl-{role}-tls"]
        assert spec["uris"] == [role.uri]
        assert role.dns_name in spec["dnsNames"]
    mounted = {v["secret"]["secretName"] for _, spec, _ in pods(everything) for v in spec["volumes"] if "secret" in v}
    assert mounted - {"paceline-api-keys"} <= set(found)


def test_workers_talk_to_coordinators_only(everything: Docs) -> None:
    policies = {d["metadata"]["name"]: d["spec"] for d in everything if d["kind"] == "NetworkPolicy"}
    for role in ("verifier", "drafter"):
        for way in ("ingress", "egress"):
            for rule in policies[f"pl-{role}"][way]:
                peers = rule.get("from") or rule.get("to") or []
                components = {p["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for p in peers}
                assert components == {"coordinator"} or {p["port"] for p in rule["ports"]} == {53}


@pytest.mark.parametrize("namespace", ["monitoring", "observing"])
def test_prometheus_reaches_the_port_that_its_pod_monitor_names(namespace: str) -> None:
    """It lives in another namespace than the clients that are let in by themselves."""
    name = r"prometheus.namespaceSelector.matchLabels.kubernetes\.io/metadata\.name"
    own = () if namespace == "monitoring" else ("--set", f"{name}={namespace}")
    docs = render("--set", "prometheus.podMonitor.enabled=true", *own)
    (policy,) = [d for d in docs if d["kind"] == "NetworkPolicy" and d["metadata"]["name"] == "pl-coordinator"]
    wanted = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}
    (rule,) = [rule for rule in policy["spec"]["ingress"] if wanted in rule["from"]]
    (monitor,) = [d for d in docs if d["kind"] == "PodMonitor"]
    (port,) = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    (coordinator,) = [container for role, _, container in pods(docs) if role == "coordinator"]
    assert rule["ports"] == [{"port": one["containerPort"]} for one in coordinator["ports"] if one["name"] == port]


def test_the_alerts_are_the_files(everything: Docs) -> None:
    """Their own braces are Prometheus', not Helm's."""
    (rule,) = [d for d in everything if d["kind"] == "PrometheusRule"]
    assert rule["spec"] == yaml.safe_load((CHART / "alerts.yaml").read_text())
    assert rule["metadata"]["labels"]["release"] == "monitoring"


def test_nobody_of_another_namespace_is_let_in_who_is_not_asked_for() -> None:
    rules = [rule for d in render() if d["kind"] == "NetworkPolicy" for rule in d["spec"]["ingress"]]
    assert rules
    assert not any("namespaceSelector" in peer for rule in rules for peer in rule["from"])


def test_pools_scale_on_their_own_and_drafters_to_nothing(everything: Docs) -> None:
    scaled = {d["spec"]["scaleTargetRef"]["name"]: d["spec"] for d in everything if d["kind"] == "ScaledObject"}
    assert set(scaled) == {"pl-verifier-big", "pl-drafter-cpu"}
    assert scaled["pl-drafter-cpu"]["minReplicaCount"] == 0
    assert scaled["pl-verifier-big"]["minReplicaCount"] == 1
    for doc in everything:
        if doc["kind"] == "Deployment":
            assert ("replicas" in doc["spec"]) != (doc["metadata"]["name"] in scaled)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("coordinator.replicas=0", "replicas"),
        ("tls.enable=true", "enable"),
        ("verifiers=null", "verifiers"),
    ],
)
def test_wrong_values_are_refused_by_name(setting: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        render("--set", setting)
