"""What the deployment files' tests ask of the command line: which options a role really has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploy.cli import main

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def help_of(role: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main([role, "--help"]) == 0
    return capsys.readouterr().out


def flags_of(role: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", help_of(role, capsys)))


def twins_of(role: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    return set(re.findall(r"PACELINE_[A-Z_]+", help_of(role, capsys)))
