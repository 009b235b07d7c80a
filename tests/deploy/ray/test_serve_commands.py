"""Serve's own commands, as docs/ray.md has them, against a cluster that `paceline ray up` has started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from paceline.client import Client
from tests.deploy.ray.cluster import ROOT, until
from tests.tiny import write_model

pytest.importorskip("ray.serve", reason="ray is not installed; pip install 'paceline[ray]'")

pytestmark = pytest.mark.slow

SERVE = Path(sys.executable).parent / "serve"
SMALL: dict[str, Any] = {
    "coordinator": {"num_cpus": 0.1},
    "verifiers": {"num_cpus": 0.1},
    "pools": {"drafters": {"model": "prompt-lookup", "num_cpus": 0.1}},
}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "target", seed=1)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Of a user who has a cluster on this machine, with the variables that docs/ray.md names."""
    own = {"TMPDIR": str(tmp_path_factory.mktemp("own")), "RAY_TMPDIR": "/tmp", "OMP_NUM_THREADS": "1"}
    own |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "PYTHONPATH": str(ROOT)}
    given = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | own
    address = cluster(given, "print(local_cluster.start(4))")
    try:
        dashboard = cluster(given, "print(local_cluster.known()['dashboard'])")
        yield given | {"RAY_ADDRESS": address, "RAY_DASHBOARD_ADDRESS": dashboard}
    finally:
        cluster(given, f"local_cluster.stop({address!r})")


def cluster(environment: dict[str, str], code: str) -> str:
    """In a process of its own, since the cluster is to outlive whoever starts it."""
    return run(environment, sys.executable, "-c", f"from deploy.ray import local_cluster; {code}").strip()


def run(environment: dict[str, str], *words: str) -> str:
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def told(environment: dict[str, str], name: str) -> Any:
    """What `paceline ray status` says, whatever its exit code."""
    command = [sys.executable, "-m", "deploy.cli", "ray", "status", "--name", name, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    return json.loads(done.stdout)


def served(environment: dict[str, str], name: str) -> Any:
    def now() -> Any:
        it = told(environment, name)
        return it if it["status"] == "RUNNING" and "verifier" in {worker["role"] for worker in it["workers"]} else None

    it = until(f"{name} to serve", now)
    with Client(it["grpc"]) as client:
        assert client.complete("hello", max_tokens=8, ignore_eos=True).token_ids
    return it


def test_serve_run_takes_the_arguments_and_any_name(environment: dict[str, str], target: Path, tmp_path: Path) -> None:
    shares = ("coordinator.num_cpus=0.1", "verifiers.num_cpus=0.1", "pools.drafters.num_cpus=0.1")
    words = ("run", "deploy.ray.app:build", "--name", "typed", "--route-prefix", "/typed", f"target={target}")
    log = tmp_path / "run.log"
    with log.open("wb") as file:
        command = [str(SERVE), *words, "drafter=prompt-lookup", *shares]
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=file, stderr=file)
    try:
        served(environment, "typed")
    except AssertionError as error:
        raise AssertionError(log.read_text()[-4000:]) from error
    finally:
        process.send_signal(signal.SIGINT)  # Ctrl-C takes the application down
        process.wait(60)
    until("its end", lambda: told(environment, "typed")["status"] == "NOT_DEPLOYED")


def test_a_built_file_is_deployed_and_a_change_in_it_restarts_only_what_it_changes(
    environment: dict[str, str], target: Path, tmp_path: Path
) -> None:
    file = tmp_path / "built.yaml"
    module = tmp_path / "mine.py"
    module.write_text(f"from deploy.ray.app import build\n\napp = build({SMALL | {'target': str(target)}!r})\n")
    run(environment, str(SERVE), "build", "--app-dir", str(tmp_path), "mine:app", "-o", str(file))
    config = yaml.safe_load(file.read_text())
    (application,) = config["applications"]
    application |= {"name": "built", "runtime_env": {"env_vars": {"PYTHONPATH": f"{tmp_path}:{ROOT}"}}}
    config["proxy_location"] = "Disabled"
    file.write_text(yaml.safe_dump(config))
    run(environment, str(SERVE), "deploy", str(file))
    before = served(environment, "built")

    (drafters,) = [one for one in application["deployments"] if one["name"] == "drafters"]
    drafters["user_config"]["pools"]["drafters"]["model"] = "suffix"
    file.write_text(yaml.safe_dump(config))
    run(environment, str(SERVE), "deploy", str(file))
    until("the other drafter", lambda: workers(environment, "drafter") == {"suffix"})
    assert told(environment, "built")["grpc"] == before["grpc"]
    state = yaml.safe_load(run(environment, str(SERVE), "status"))
    assert state["applications"]["built"]["deployments"]["verifiers"]["replica_states"] == {"RUNNING": 1}


def workers(environment: dict[str, str], role: str) -> set[str]:
    return {worker["model"] for worker in told(environment, "built")["workers"] if worker["role"] == role}


def test_the_demo_is_an_application_that_serve_build_takes(environment: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "demo.yaml"
    run(environment, str(SERVE), "build", "deploy.ray.demo:app", "-o", str(file))
    (application,) = yaml.safe_load(file.read_text())["applications"]
    pools = {one["name"]: one for one in application["deployments"]}
    assert pools["drafters"]["autoscaling_config"]["max_replicas"] == 3
    assert pools["verifiers"]["user_config"]["target"].endswith("models/demo-target")


def test_a_file_with_arguments_is_deployed_as_it_is(environment: dict[str, str], target: Path, tmp_path: Path) -> None:
    started_s = time.time()
    file = tmp_path / "file.yaml"
    application = {"name": "filed", "import_path": "deploy.ray.app:build", "args": SMALL | {"target": str(target)}}
    file.write_text(yaml.safe_dump({"proxy_location": "Disabled", "applications": [application]}))
    run(environment, str(SERVE), "deploy", str(file))
    served(environment, "filed")
    state = yaml.safe_load(run(environment, str(SERVE), "status"))["applications"]["filed"]
    assert state["status"] == "RUNNING"
    assert state["last_deployed_time_s"] > started_s
