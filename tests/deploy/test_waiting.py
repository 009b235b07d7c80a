"""What is shown while models are loaded, and how it is told that all is ready."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from deploy.roles import SUPERVISED
from deploy.waiting import waiting
from tests.deploy.conftest import ENVIRONMENT


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_says_what_is_awaited_and_a_file_gets_nothing(is_terminal: bool) -> None:
    file = io.StringIO()
    with waiting("loading [big]", Console(file=file, force_terminal=is_terminal, width=60)):
        pass
    assert ("loading [big]" in file.getvalue()) is is_terminal
    assert bool(file.getvalue()) is is_terminal


@pytest.mark.parametrize("is_supervised", [False, True])
def test_the_ready_line_is_json_if_asked_for_but_a_supervisor_gets_its_own(
    is_supervised: bool, pair: tuple[Path, Path]
) -> None:
    environment = {**ENVIRONMENT, "PACELINE_JSON": "1"} | ({SUPERVISED: "1"} if is_supervised else {})
    where = ("--tokenizer", str(pair[0]), "--grpc-port", "0", "--port", "off")
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.cli", "coordinator", *where],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
    )
    try:
        assert process.stdout
        line = process.stdout.readline()
    finally:
        process.terminate()
        process.communicate(timeout=30)
    if is_supervised:
        assert line.startswith("paceline coordinator ready on 127.0.0.1:")
        return
    told = json.loads(line)
    assert told["grpc"].startswith("127.0.0.1:")
    assert (told["ready"], told["http"], told["tokenizer"]) == ("coordinator", None, str(pair[0]))
