"""What is told to `paceline serve` reaches the processes that it starts; what is wrong with a model is told before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from coordinator.config import CoordinatorConfig
from coordinator.core.limits import Limits
from deploy.checks import check_pair
from deploy.cli import main
from deploy.roles import _coordinator_config, parser_coordinator
from deploy.serve import SHARED_KV_CACHE_BYTES, Plan, _plan, _target, parser
from paceline.errors import InvalidInput
from tests.tiny import write_pair


def planned(*arguments: str) -> Plan:
    return _plan(parser().parse(["--target", "big", "--drafter", "small", *arguments], {}))


def given(arguments: tuple[str, ...], flag: str) -> str | None:
    """What follows `flag`, which stands there at most once."""
    assert arguments.count(flag) <= 1
    return arguments[arguments.index(flag) + 1] if flag in arguments else None


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--block-size", "32"),
        ("--max-num-seqs", "7"),
        ("--max-num-batched-tokens", "300"),
        ("--max-model-len", "128"),
        ("--device", "cuda"),
        ("--dtype", "bfloat16"),
    ],
)
def test_an_option_of_the_engine_reaches_both_workers(flag: str, value: str) -> None:
    plan = planned(flag, value)
    assert (given(plan.verifier, flag), given(plan.drafters, flag)) == (value, value)


@pytest.mark.parametrize(
    ("flag", "drafter_flag", "role_flag", "mine", "its"),
    [
        ("--tensor-parallel-size", "--drafter-tensor-parallel-size", "--tensor-parallel-size", "2", "4"),
        ("--revision", "--drafter-revision", "--revision", "v1", "v2"),
        ("--dtype", "--drafter-dtype", "--dtype", "bfloat16", "float32"),
    ],
)
def test_target_and_drafter_may_differ(flag: str, drafter_flag: str, role_flag: str, mine: str, its: str) -> None:
    plan = planned(flag, mine, drafter_flag, its)
    assert (given(plan.verifier, role_flag), given(plan.drafters, role_flag)) == (mine, its)


def test_a_positional_model_is_the_target_and_beats_the_environment() -> None:
    for argv, environ in ((["big", "--drafter", "small"], {}), (["big"], {"PACELINE_TARGET": "other"})):
        assert _target(parser().parse(argv, environ)) == "big"
    assert _target(parser().parse([], {"PACELINE_TARGET": "other"})) == "other"


def test_what_concerns_the_doors_reaches_the_coordinator() -> None:
    plan = planned("--reflection", "--generation-config", "none", "--allowed-origins", '["https://a.example", "*"]')
    config = _coordinator_config(parser_coordinator().parse(["--tokenizer", "big", *plan.coordinator], {}))
    assert (config.reflection, config.generation_config) == (True, "none")
    assert config.allowed_origins == ("https://a.example", "*")
    default = _coordinator_config(parser_coordinator().parse(["--tokenizer", "big", *planned().coordinator], {}))
    assert (default.reflection, default.generation_config, default.allowed_origins) == (False, "auto", ())


def test_the_coordinator_reads_the_tokenizer_of_the_targets_revision() -> None:
    assert given(planned("--revision", "v1").coordinator, "--revision") == "v1"
    assert given(planned().coordinator, "--revision") is None


def test_workers_share_a_device_unless_the_target_is_told_what_to_take() -> None:
    cache, share = "--kv-cache-memory", "--gpu-memory-utilization"
    for plan in (planned(), planned("--device", "cuda")):
        assert given(plan.verifier, cache) == given(plan.drafters, cache) == str(SHARED_KV_CACHE_BYTES)
    plan = planned(share, "0.7")
    assert (given(plan.verifier, share), given(plan.verifier, cache)) == ("0.7", None)
    assert (given(plan.drafters, share), given(plan.drafters, cache)) == (None, str(SHARED_KV_CACHE_BYTES))
    plan = planned(share, "0.7", cache, "2GiB")
    assert given(plan.verifier, cache) == given(plan.drafters, cache) == str(2 << 30)


def test_graphs_can_be_turned_off() -> None:
    plan = planned("--enforce-eager")
    assert "--enforce-eager" in plan.verifier
    assert "--enforce-eager" in plan.drafters
    assert "--enforce-eager" not in planned().verifier


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return write_pair(tmp_path)


def refusal(target: Path, drafter: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        check_pair(str(target), str(drafter))
    return str(caught.value)


def test_a_missing_shard_is_told_before_anything_is_started(pair: tuple[Path, Path]) -> None:
    target, drafter = pair
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    shutil.move(drafter / "model.safetensors", drafter / "model-00001-of-00002.safetensors")
    (drafter / "model.safetensors.index.json").write_text(json.dumps(index))
    message = refusal(target, drafter)
    assert message.startswith("--drafter=")
    assert "model-00002-of-00002.safetensors is missing" in message


def test_a_tokenizer_that_does_not_fit_its_model_is_told_before_anything_is_started(pair: tuple[Path, Path]) -> None:
    target, drafter = pair
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    message = refusal(target, drafter)
    assert message.startswith("--target=")
    assert "the embedding only 100 rows" in message


def test_a_worker_whose_weights_have_the_wrong_shape_ends_with_code_2_before_it_serves(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    target, _ = pair
    tensors = load_file(target / "model.safetensors")
    save_file(tensors | {"model.norm.weight": torch.ones(7)}, target / "model.safetensors", metadata={"format": "pt"})
    capsys.readouterr()
    assert main(["verifier", "--model", str(target), "--kv-cache-memory", "1MiB"]) == 2
    said = capsys.readouterr()
    assert said.out == "", "it never was ready"
    assert "tensor model.norm.weight has the wrong shape" in said.err.splitlines()[-1]


def test_how_long_requests_wait_and_workers_may_be_silent_is_the_coordinators_to_be_told() -> None:
    config = _coordinator_config(parser_coordinator().parse(["--tokenizer", "t"], {}))
    assert (config.limits, config.lease_s) == (Limits(), CoordinatorConfig(tokenizer="t").lease_s)
    twins = {"PACELINE_QUEUE_TIMEOUT_S": "900", "PACELINE_LEASE_S": "30"}
    config = _coordinator_config(parser_coordinator().parse(["--tokenizer", "t"], twins))
    assert (config.limits.queue_timeout_s, config.lease_s) == (900, 30)
    assert given(planned("--queue-timeout-s", "900").coordinator, "--queue-timeout-s") == "900.0"
