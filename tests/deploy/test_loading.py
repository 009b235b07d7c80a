"""What a process does before it serves."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

LOADING = """
import time
from deploy import roles

def load(*_):
    print("loading", flush=True)
    time.sleep(60)

"""
RUNS = {
    "verifier": 'roles._load = load; roles.run_verifier(["--model", "some/model"])',
    "drafter": 'roles._load = load; roles.run_drafter(["--model", "some/model"])',
    "coordinator": """
from coordinator import api

api.CoordinatorServer = load
roles.run_coordinator(["--tokenizer", "some/model"])
""",
}


@pytest.mark.parametrize("role", RUNS)
def test_who_is_told_to_go_while_loading_goes_with_code_0(role: str) -> None:
    command = (sys.executable, "-c", LOADING + RUNS[role])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "loading\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
