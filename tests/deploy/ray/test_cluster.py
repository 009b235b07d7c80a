"""The application on a real Ray cluster of three logical nodes: scaled, broken and redeployed while requests run."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paceline.client import Client
from tests.deploy.ray import cluster as on
from tests.deploy.ray.cluster import Load, until
from tests.engine.test_parallel import needs_accelerate
from tests.tiny import write_model

ray = pytest.importorskip("ray", reason="ray is not installed; pip install 'paceline[ray]'")
pytest.importorskip("ray.serve", reason="ray has no serve; pip install 'paceline[ray]'")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray's own, of which there are many
]

MODELS = on.ROOT / "models"
PAIR: dict[str, Any] = {
    "target": str(MODELS / "demo-target"),
    "drain_s": 10,
    "coordinator": {"num_cpus": 0.1, "options": {"admit-any": True}},
    "verifiers": {
        "num_cpus": 0.1,
        "resources": {"core": 1},
        "max_replicas": 2,
        "upscale_delay_s": 0,
        "downscale_delay_s": 2,
        "options": {"kv-cache-memory": "64MiB", "max-num-seqs": 10},
    },
    "pools": {
        "drafters": {
            "model": str(MODELS / "demo-drafter"),
            "num_cpus": 0.1,
            "resources": {"edge": 1},
            "min_replicas": 0,
            "max_replicas": 3,
            "requests_per_replica": 2,
            "max_stall_share": 1,  # load alone counts here, not how fast two shared cores are
            "upscale_delay_s": 0,
            "downscale_delay_s": 3,
            "options": {"kv-cache-memory": "32MiB"},
        }
    },
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with on.running() as it:
        on.deploy(PAIR)
        yield it


@pytest.fixture(scope="module")
def expected(cluster: Any) -> list[str]:
    """What plain decoding writes."""
    with Client(on.address()) as client:
        return [on.complete(client, prompt, mode="off") for prompt in on.PROMPTS]


def changed(**drafters: Any) -> dict[str, Any]:
    return PAIR | {"pools": {"drafters": PAIR["pools"]["drafters"] | drafters}}


def test_the_demo_pair_answers_over_grpc_and_openai(cluster: Any, expected: list[str]) -> None:
    told = on.entry()
    body = {"prompt": on.PROMPTS[0], "max_tokens": on.NUM_TOKENS, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(
        f"{told['http']}/v1/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.load(answer)["choices"][0]["text"] == expected[0]


def test_drafters_come_and_go_with_those_who_want_drafts_and_verifiers_stay(cluster: Any, expected: list[str]) -> None:
    """0 → 3 → 0, and on the way a drafter's actor is killed: no request is lost, and no text is another."""
    until("no drafters", lambda: on.num_replicas("drafters") == 0)
    # One more than three drafters take, so that a moment with few of them under way lets none go that is only starting.
    with Load(on.address(), 7, expected, mode="pearl") as load:
        until("three drafters", lambda: on.roles().count("drafter") == 3)
        assert on.num_replicas("verifiers") == 1
        load.wait_for(6)
        killed, actor = next(iter(on.replicas("drafters").items()))
        ray.kill(actor)
        until("another drafter", lambda: killed not in on.replicas("drafters") and on.roles().count("drafter") == 3)
        load.wait_for(6)
    until("no drafters", lambda: on.num_replicas("drafters") == 0)
    assert on.num_replicas("verifiers") == 1


def test_verifiers_come_and_go_with_load_and_no_drafter_is_called(cluster: Any, expected: list[str]) -> None:
    """1 → 2 → 1: nine plain requests fill nine of ten places."""
    until("no drafters", lambda: on.num_replicas("drafters") == 0)
    with Load(on.address(), 9, expected, mode="off") as load:
        until("two verifiers", lambda: on.roles().count("verifier") == 2)
        load.wait_for(9)
        assert on.num_replicas("drafters") == 0
    until("one verifier", lambda: on.num_replicas("verifiers") == 1)


def test_another_draft_model_is_deployed_while_requests_run(cluster: Any, expected: list[str]) -> None:
    """Only the drafters change: the coordinator and the verifier keep their processes, and no request is lost.

    The tests after this one keep the drafters that need no weights.
    """
    before = on.entry()
    with Load(on.address(), 2, expected, mode="pearl") as load:
        until("a drafter", lambda: "drafter" in on.roles())
        on.deploy(changed(model="prompt-lookup", options={}))
        until("the other model", lambda: drafting_with() == {"prompt-lookup"})
        load.wait_for(2)
    after = on.entry()
    assert after["grpc"] == before["grpc"]
    assert verifiers(after) == verifiers(before)


def drafting_with() -> set[str]:
    return {worker["model"] for worker in on.entry()["workers"] if worker["role"] == "drafter"}


def verifiers(told: Any) -> set[str]:
    return {worker["address"] for worker in told["workers"] if worker["role"] == "verifier"}


def test_a_coordinator_that_comes_back_elsewhere_is_found_by_workers_that_go_on(
    cluster: Any, expected: list[str]
) -> None:
    before = on.entry()
    (actor,) = on.replicas("coordinator").values()
    ray.kill(actor)
    told = until("another coordinator", lambda: (now := on.entry()) and now["grpc"] != before["grpc"] and now)
    until("its verifier", lambda: "verifier" in on.roles())
    assert verifiers(on.entry()) == verifiers(before), "no model was loaded again"
    with Client(told["grpc"]) as client:
        assert on.complete(client, on.PROMPTS[0]) == expected[0]


def test_a_node_that_dies_costs_its_drafters_and_no_request(cluster: Any, expected: list[str]) -> None:
    with Load(on.address(), 2, expected, mode="pearl") as load:
        until("a drafter", lambda: "drafter" in on.roles())
        cluster.remove_node(cluster.edge, allow_graceful=False)
        until("no drafter", lambda: "drafter" not in on.roles())
        load.wait_for(2)
        cluster.edge = cluster.add_node(num_cpus=8, resources={"edge": 8})
        until("a drafter on the new node", lambda: "drafter" in on.roles())
        load.wait_for(2)


def test_a_node_that_dies_costs_its_verifier_and_no_request(cluster: Any, tmp_path: Path) -> None:
    """Two nodes with a verifier each; what the dead one held is prefilled on the other, and goes on there."""
    from ray import serve

    name = "twins"
    other = cluster.add_node(num_cpus=8, resources={"core": 6})
    each = {"num_cpus": 0.1, "resources": {"core": 5}, "min_replicas": 2, "max_replicas": 2}  # so one fits on a node
    try:
        target = write_model(tmp_path / "target", seed=1)
        on.deploy({"target": str(target), "verifiers": each, "coordinator": {"num_cpus": 0.1}}, name)
        until("two verifiers", lambda: on.roles(name).count("verifier") == 2)
        before = verifiers(on.entry(name))
        with Client(on.address(name)) as client:
            expected = [on.complete(client, prompt) for prompt in on.PROMPTS]
        with Load(on.address(name), 6, expected) as load:
            until("requests on both", lambda: all(worker["num_requests"] for worker in on.entry(name)["workers"]))
            cluster.remove_node(other, allow_graceful=False)
            until("one verifier", lambda: on.roles(name).count("verifier") == 1)
            assert verifiers(on.entry(name)) < before, "the other one went on"
            load.wait_for(6)
            other = cluster.add_node(num_cpus=8, resources={"core": 6})
            until("a verifier on the new node", lambda: on.roles(name).count("verifier") == 2)
            load.wait_for(6)
    finally:
        serve.delete(name)
        cluster.remove_node(other)


@needs_accelerate
def test_a_dead_rank_costs_a_new_group_and_no_request(cluster: Any, tmp_path: Path) -> None:
    """A verifier of two ranks, an actor each: the second one's actor is killed in the middle of a request."""
    target = write_model(tmp_path / "target", seed=1)
    name = "pair"
    group = {"num_cpus": 0.1, "resources": {"core": 1}, "tensor_parallel_size": 2}
    on.deploy({"target": str(target), "verifiers": group, "coordinator": {"num_cpus": 0.1}}, name)
    try:
        (replica,) = on.replicas("verifiers", name).values()
        with Client(on.address(name)) as client:
            want = client.complete("hello", max_tokens=200, temperature=0, ignore_eos=True).token_ids
            first = on.entry(name)["workers"][0]
            rank = rank_of(name)
            tokens: list[int] = []
            for chunk in client.generate("hello", max_tokens=200, temperature=0, ignore_eos=True, timeout_s=90):
                if not tokens and chunk.token_ids:
                    os.kill(rank, signal.SIGKILL)
                tokens += chunk.token_ids
            assert tuple(tokens) == want
            assert on.entry(name)["workers"][0]["address"] != first["address"], "another group"
        assert list(on.replicas("verifiers", name).values()) == [replica], "led by the same replica"
    finally:
        from ray import serve

        serve.delete(name)


def rank_of(name: str) -> int:
    """The process of the actor that holds rank 1."""
    from ray import serve

    handle = serve.get_deployment_handle("verifiers", name)
    (actor,) = handle.whereabouts.remote().result()["ranks"]
    pid: int = ray.get(actor.pid.remote())
    return pid
