"""`paceline ray` as a user types it, on a cluster of this machine that it starts and ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.cli import main
from deploy.ray import local_cluster
from paceline.client import Client
from tests.tiny import write_model

pytest.importorskip("ray.serve", reason="ray is not installed; pip install 'paceline[ray]'")

SHARES = ("coordinator.num_cpus=0.1", "verifiers.num_cpus=0.1")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The cluster is written down in a folder of this test's own; Ray's, with its sockets, needs a short path."""
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    own = {"TMPDIR": str(tmp_path), "RAY_TMPDIR": "/tmp", "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    return kept | own


def paceline(environment: dict[str, str], *arguments: str) -> tuple[int, Any]:
    """Exit code, and what was printed as JSON."""
    command = [sys.executable, "-m", "deploy.cli", "ray", *arguments, "--json"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=300, check=False)
    return done.returncode, json.loads(done.stdout) if done.stdout else None


def command_of(pid: int) -> bytes:
    """Empty for a process that has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


@pytest.mark.slow
def test_up_status_and_down_leave_nothing_behind(environment: dict[str, str], tmp_path: Path) -> None:
    target = write_model(tmp_path / "target", seed=1)
    options = ("--target", str(target), "--drafter", "prompt-lookup", "--num-cpus", "4", "--set", *SHARES)
    try:
        code, told = paceline(environment, "up", *options, "pools.drafters.num_cpus=0.1")
        assert code == 0
        with Client(told["grpc"]) as client:
            assert client.complete("hello", max_tokens=8, ignore_eos=True).token_ids
        code, told = paceline(environment, "status")
        assert (code, told["status"]) == (0, "RUNNING")
        assert told["dashboard"].startswith("http://127.0.0.1:")
        assert {name: pool["replicas"] for name, pool in told["pools"].items()} == {
            name: {"RUNNING": 1} for name in ("coordinator", "drafters", "verifiers")
        }
        cluster = json.loads((tmp_path / f"paceline-ray-{os.getuid()}" / "cluster.json").read_text())
    finally:
        code, told = paceline(environment, "down")
    assert (code, told["was_deployed"], told["cluster_ended"]) == (0, True, True)
    assert not command_of(cluster["pid"])
    code, _ = paceline(environment, "status")
    assert code == 1


def test_only_the_cluster_that_was_meant_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_cluster, "folder", lambda: tmp_path)
    command = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)", "deploy.ray.local_cluster"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it runs
        told = {"pid": process.pid, "address": "127.0.0.1:1"}
        (tmp_path / "cluster.json").write_text(json.dumps(told))
        assert not local_cluster.stop("10.0.0.1:6379")
        assert local_cluster.known() == told
        assert local_cluster.stop("127.0.0.1:1")
    assert local_cluster.known() is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("upp",), "did you mean up?"),
        (("up", "--target", "big/", "--set", "verifiers.max_replicas"), "write NAME=VALUE"),
        (("up", "--target", "big/", "--set", "verifiers.max_replicas=many"), "verifiers.max_replicas='many'"),
        (("up", "--drafter", "small/"), "target"),
        (("up", "--application", "/nowhere.yaml"), "cannot be read as YAML"),
    ],
)
def test_bad_input_is_told_in_one_line_before_anything_starts(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ray", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


@pytest.mark.parametrize("command", ["up", "status", "down"])
def test_without_ray_it_is_said_how_to_get_it(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    assert main(["ray", command]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'paceline[ray]'" in line
    assert main(["ray", command, "--help"]) == 0
