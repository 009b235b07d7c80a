"""How commands behave on a terminal and off it: colours, `NO_COLOR`, JSON, exit codes, help that teaches."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.cli import COMMANDS, main, parsers
from tests.deploy.conftest import ENVIRONMENT, paceline

# Commands that print results, and so can print them for programs. The others serve until they are told to stop, or
# (bench, completion) have their own way.
WITH_RESULTS = (
    "demo",
    "generate",
    "check-lossless",
    "certs",
    "simulate",
    "trace",
    "doctor",
    "ray up",
    "ray status",
    "ray down",
)
SMALL = ("simulate", "--num-requests", "2", "--modes", "off,pearl")


def on_a_terminal(*arguments: str, **environ: str) -> str:
    """What `paceline ARGUMENTS` writes to a terminal, both streams of it."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.cli", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
        env=ENVIRONMENT | {"TERM": "xterm-256color", "COLUMNS": "120"} | environ,
    )
    os.close(slave)
    written = b""
    try:
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:  # how Linux says that the other end is closed
                break
            if not piece:
                break
            written += piece
    finally:
        os.close(master)
        assert process.wait(30) in (0, 1)
    return written.decode()


COLOURED = ("\x1b[31m", "\x1b[32m", "\x1b[33m")


def test_colours_are_for_terminals_and_no_color_forbids_them() -> None:
    broken = ("doctor", "--target", ".")
    assert any(code in on_a_terminal(*broken) for code in COLOURED)
    assert not any(code in on_a_terminal(*broken, NO_COLOR="1") for code in COLOURED)


def test_long_work_shows_its_progress_on_a_terminal_and_only_there() -> None:
    assert "simulating" in on_a_terminal(*SMALL)
    off = paceline(*SMALL)
    assert off.code == 0
    assert "\x1b" not in off.out + off.err


@pytest.mark.parametrize("command", WITH_RESULTS)
def test_every_command_that_prints_results_prints_json_too(command: str) -> None:
    assert any("--json" in option.flags for option in parsers()[command].options)


def test_json_is_all_that_stands_on_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 2
    assert main(["certs", str(tmp_path / "certs"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "verifier" in told["roles"]
    assert Path(told["folder"], "ca.crt").is_file()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_how_to_call_it(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: paceline ")
    assert out.count(f"\n  paceline {command}") >= 1
