"""The table of what goes together: true to the tests and to pyproject, told in the docs, and enforced."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coordinator.config import CoordinatorConfig
from coordinator.server import Coordinator
from deploy.cli import main
from paceline import compatibility
from paceline.compatibility import CONFLICTS, FAMILIES, PACKAGES, REFUSED, check_family, check_options, check_versions
from paceline.errors import InvalidInput, Unsupported
from paceline.types import WIRE_VERSION, Role
from tests.coordinator.test_server import info
from tests.coordinator.toy import write_model
from tests.engine.conftest import ARCHITECTURES, make_config

ROOT = Path(__file__).parents[2]


def test_the_page_in_docs_is_fresh() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "paceline.compatibility"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
        timeout=60,
    ).stdout
    assert (ROOT / "docs/compatibility.md").read_text() == printed, "run python -m paceline.compatibility > docs/…"


def test_versions_are_those_that_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={PACKAGES[0].least}"
    for package in PACKAGES[1:]:
        bound = f",<{package.below}" if package.below else ""
        assert f"{package.name}>={package.least}{bound}" in project["dependencies"]


def test_families_are_those_that_the_tests_run() -> None:
    assert {family.name: family.model_type for family in FAMILIES} == {
        name: make_config(name).model_type for name in ARCHITECTURES
    }
    lean = [family.name for family in FAMILIES if family.is_lean]
    assert lean == ["Llama", "Qwen2", "Qwen3", "Mistral"], "tests/engine/test_lean.py runs these"


@pytest.mark.parametrize("role", ["coordinator", "verifier", "drafter", "client"])
def test_what_is_installed_here_fits(role: str) -> None:
    check_versions(role)


@pytest.mark.parametrize(
    ("name", "version", "fits"),
    [
        ("transformers", "5.23.0", True),
        ("transformers", "5.23.9", True),
        ("transformers", "5.24.0", False),
        ("transformers", "5.24.0.dev0", False),
        ("transformers", "5.9", False),
        ("torch", "2.13.0+cpu", True),
        ("torch", "2.10.0a0+git1", True),
        ("torch", "2.8.1", False),
        ("grpcio", "", False),
        ("python", "3.11.9", True),
        ("python", "3.10.12", False),
    ],
)
def test_a_version_that_does_not_fit_is_refused_with_what_to_install(name: str, version: str, fits: bool) -> None:
    def found(package: str) -> str:
        return version if package == name else compatibility.installed(package)

    if fits:
        check_versions("verifier", found)
        return
    with pytest.raises(InvalidInput) as caught:
        check_versions("verifier", found)
    assert name in str(caught.value)
    assert "pip install" in str(caught.value) or name == "python"


def test_a_coordinator_needs_no_torch() -> None:
    check_versions(
        "coordinator", lambda name: "" if name in ("torch", "transformers") else compatibility.installed(name)
    )


@pytest.mark.parametrize("version", [0, WIRE_VERSION + 1])
async def test_a_worker_of_another_wire_is_told_which_side_is_older(version: int, tmp_path: Path) -> None:
    it = Coordinator(CoordinatorConfig(str(write_model(tmp_path / "m"))))
    with pytest.raises(Unsupported, match="wire version of m") as caught:
        it.registry.register(replace(info(Role.DRAFTER, ""), wire_version=version))
    assert f"({'the worker' if version == 0 else 'the coordinator'} is the older)" in str(caught.value)
    assert not it.links
    await it.close()


def test_a_worker_says_its_wire_version() -> None:
    from paceline import codec

    wire = codec.worker_info_to_wire(info(Role.DRAFTER, "a" * 64))
    assert wire.wire_version == WIRE_VERSION
    wire.ClearField("wire_version")
    assert codec.worker_info_from_wire(wire).wire_version == 0, "older than the field"


@pytest.mark.parametrize(
    ("config", "known"),
    [
        ({"model_type": "llama"}, True),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, True),
        ({"model_type": "olmo2"}, False),
        ({}, False),
    ],
)
def test_a_family_is_tested_or_not(config: dict[str, Any], known: bool) -> None:
    assert check_family("--model", "x", config) is known


@pytest.mark.parametrize("config", [*({"model_type": kind} for kind in REFUSED), {"is_encoder_decoder": True}])
def test_a_family_that_cannot_be_served_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(Unsupported, match=r"--model='x'.*choose one of Llama"):
        check_family("--model", "x", config)


def test_options_that_cannot_go_together_are_refused_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        ("--api-key", "--api-keys"): ["--api-key", "k" * 20, "--api-keys", "file"],
        ("--chat-template", "--port off"): ["--chat-template", "x", "--port", "off"],
        ("--served-model-name", "--port off"): ["--served-model-name", "x", "--port", "off"],
        ("--allowed-origins", "--port off"): ["--allowed-origins", "*", "--port", "off"],
        ("--tensor-parallel-size", "--device cuda:N"): ["--tensor-parallel-size", "2", "--device", "cuda:1"],
        ("--length-policy", "--drafter prompt-lookup or suffix"): [
            *("--drafter", "suffix", "--length-policy", "specdecpp:cost_ratio=12"),
        ],
    }
    assert cases.keys() == {(conflict.one, conflict.other) for conflict in CONFLICTS}
    for (one, _), argv in cases.items():
        assert main(["serve", "--target", "x", *argv]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"paceline: {one}="), said
    assert "k" * 20 not in said


def test_options_that_go_together_are_left_alone() -> None:
    check_options(argparse.Namespace(device="cuda:1", tensor_parallel_size=1, port=None, chat_template="x"))
    check_options(argparse.Namespace())
