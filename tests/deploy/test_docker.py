"""Images hold what their role imports, in tested versions; compose files name options that exist.

No engine to build an image with is needed, nor used: what an image would hold is worked out from what is installed.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import Distribution, distribution, packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from deploy.local import STOP_S
from paceline.drain import DRAIN_S
from tests.deploy.manifests import DEPLOY, ROOT, twins_of

OPTIONAL = {"opentelemetry", "ray", "matplotlib"}  # extras: without them a role does without
IMAGES = ("coordinator", "drafter", "verifier")
# Prints the files of ours that a process of this role loads.
_LOADED = """
import sys
import {modules}
for module in list(sys.modules.values()):
    print(getattr(module, "__file__", None) or "")
"""
_MODULES = {
    "coordinator": "deploy.cli, coordinator.api, coordinator.http.server",
    "drafter": "deploy.cli, drafter.server, drafter.engine, paceline.engine.executor, paceline.engine.parallel",
    "verifier": "deploy.cli, verifier.server, verifier.engine, paceline.engine.executor, paceline.engine.parallel",
}


def _installed(image: str) -> set[str]:
    """What the Dockerfile's lines `pip install` name."""
    text = (DEPLOY / "docker" / f"{image}.Dockerfile").read_text().replace("\\\n", " ")
    found: set[str] = set()
    for words in re.findall(r"--constraint requirements.txt([^&\n]*)", text):
        found |= set(words.split())
    if '"$torch"' in text:
        found.add("torch")
    return found


def _with_what_they_need(names: set[str]) -> set[str]:
    """`names` and everything that these ask for, as installed here."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        waiting += [need.name for need in _needs(distribution(name))]
    return found


def _needs(dist: Distribution) -> list[Requirement]:
    needs = [Requirement(text) for text in dist.requires or ()]
    return [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]


def _imports(image: str) -> set[str]:
    """Third-party packages that the role's own modules import, within functions too; of the command line's, at once."""
    code = _LOADED.format(modules=_MODULES[image])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    files = {Path(line) for line in done.stdout.splitlines() if line.endswith(".py")}
    ours = {file for file in files if file.is_relative_to(ROOT) and ".venv" not in file.parts}
    assert len(ours) > 20
    found: set[str] = set()
    for file in ours:
        tree = ast.parse(file.read_text())
        is_command_line = file.is_relative_to(DEPLOY)  # which knows all roles, and imports theirs once one is asked for
        for node in tree.body if is_command_line else ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_holds_what_its_role_imports(image: str) -> None:
    distributions = _with_what_they_need(_installed(image)) | {"paceline"}
    owners = packages_distributions()
    missing = {
        name
        for name in _imports(image) & set(owners) - OPTIONAL
        if not {one.lower().replace("_", "-") for one in owners[name]} & distributions
    }
    assert missing == set()


_READ = """
import sys

class Absent:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent)
from deploy.cli import main
sys.exit(main([{role!r}, "--config", {file!r}, "--print-config"]))
"""


@pytest.mark.parametrize("image", IMAGES)
def test_a_file_of_options_is_read_in_an_image_whose_other_commands_lack_packages(image: str, tmp_path: Path) -> None:
    file = tmp_path / "paceline.toml"
    file.write_text(f'log-level = "error"\n[{image}]\ndrain-s = 7.0\n[doctor]\nnum-prompts = 2\n')
    distributions = _with_what_they_need(_installed(image)) | {"paceline"}
    absent = {
        name
        for name, owners in packages_distributions().items()
        if not {one.lower().replace("_", "-") for one in owners} & distributions
    }
    assert "shtab" in absent
    code = _READ.format(absent=absent, role=image, file=str(file))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {f'log-level = "error"  # {file}: log-level', f"drain-s = 7.0  # {file}: [{image}] drain-s"} <= set(
        done.stdout.splitlines()
    )


def test_the_coordinator_needs_no_torch() -> None:
    assert not {"torch", "transformers", "scipy"} & _with_what_they_need(_installed("coordinator"))


@pytest.mark.parametrize("image", IMAGES)
def test_versions_are_those_of_the_tests(image: str) -> None:
    pinned = {line.partition("==")[0] for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line}
    assert _installed(image) <= pinned


def _services() -> list[tuple[str, dict[str, Any]]]:
    files = sorted((DEPLOY / "docker").glob("compose.*.yaml"))
    assert len(files) == 2
    return [item for file in files for item in yaml.safe_load(file.read_text())["services"].items()]


def test_compose_names_options_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    for role, service in _services():
        assert set(service["environment"]) <= twins_of(role, capsys), role
        assert Path(service["build"]["dockerfile"]).name == f"{role}.Dockerfile"


def test_compose_listens_with_certificates_only() -> None:
    for role, service in _services():
        names = set(service["environment"])
        assert {"PACELINE_TLS_CERT", "PACELINE_TLS_KEY", "PACELINE_TLS_CA"} <= names
        assert {f"{role}.crt", f"{role}.key", "ca.crt"} <= set(service["secrets"])
        for port in service.get("ports", ()):
            assert port.startswith("${ADDRESS"), "not on every interface of the machine"


def test_compose_gives_time_to_drain_and_to_end() -> None:
    for role, service in _services():
        assert "PACELINE_DRAIN_S" not in service["environment"], "the default, which is compared with here"
        assert int(service["stop_grace_period"].removesuffix("s")) > DRAIN_S + STOP_S, role


def _compose() -> list[str]:
    """The command of whichever compose is installed; empty for none."""
    if shutil.which("docker"):
        asked = subprocess.run(["docker", "compose", "version"], capture_output=True, timeout=60, check=False)
        if asked.returncode == 0:
            return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else []


@pytest.mark.parametrize("machine", ["target", "drafter"])
def test_compose_itself_reads_its_file(machine: str) -> None:
    if not (command := _compose()):
        pytest.skip("needs docker compose, which is not installed here")
    own = {"TARGET": "/big", "DRAFTER": "/small", "ADDRESS": "10.0.0.1", "COORDINATOR": "10.0.0.1:50051"}
    file = DEPLOY / "docker" / f"compose.{machine}.yaml"
    words = [*command, "-f", str(file), "config"]
    done = subprocess.run(words, env={**os.environ, **own}, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert set(services) == ({"coordinator", "verifier"} if machine == "target" else {"drafter"})
    del own["ADDRESS"]
    done = subprocess.run(words, env={**os.environ, **own}, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "this machine's address" in done.stderr, "what is missing is said, not left empty"
