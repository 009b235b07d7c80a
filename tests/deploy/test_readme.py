"""What the first page and the requirements promise is there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from deploy.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]
GROUPS = ("ray",)  # commands whose options are their sub-commands' own
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_everything_in_the_file_map_exists() -> None:
    file_map = README.split("## The house")[1].split("\n## ")[0]
    named = re.findall(r"`([\w/]+(?:/|\.py))`", file_map)
    assert len(named) > 10
    assert not [path for path in named if not (ROOT / path).exists()]


def test_every_command_and_option_of_the_readme_exists(capsys: pytest.CaptureFixture[str]) -> None:
    lines = re.findall(r"^paceline ([\w-]+)(.*)$", README, flags=re.MULTILINE)
    assert len(lines) >= 6
    for command, rest in lines:
        assert command in COMMANDS
        words = [command, *rest.split()[: command in GROUPS]]
        assert main([*words, "--help"]) == 0
        text = capsys.readouterr().out
        assert not [flag for flag in re.findall(r"--[\w-]+", rest) if not re.search(rf"{flag}[ ,]", text)], (
            command,
            rest,
        )


def test_requirements_are_pinned_and_name_all_that_the_project_needs() -> None:
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert pins["torch"] == "2.13.0"
    assert not [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][\w.]*", line)]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[^\w-]", requirement)[0] for requirement in needed}
    assert not names - set(pins)
