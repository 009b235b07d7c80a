"""What a worker does before it serves."""

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

roles._load = load
roles.run_{role}(["--model", "some/model"])
"""


@pytest.mark.parametrize("role", ["verifier", "drafter"])
def test_a_worker_that_is_told_to_go_while_it_loads_its_model_goes_with_code_0(role: str) -> None:
    command = (sys.executable, "-c", LOADING.format(role=role))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "loading\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
