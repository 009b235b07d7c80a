"""A tiny random pair on disk, and one `paceline serve` with it for the whole session."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from paceline.client import Client
from paceline.types import Role, WorkerInfo

START_S = 120.0  # two torch imports on two busy cores take twenty
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PACELINE_")}


@dataclass(frozen=True, slots=True)
class Result:
    code: int
    out: str
    err: str


def paceline(*arguments: str, timeout_s: float = 60) -> Result:
    """Run `paceline ARGUMENTS` as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "deploy.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=ENVIRONMENT,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def fails(*arguments: str, code: int = 2) -> str:
    """The one line that `paceline ARGUMENTS` prints when it refuses them."""
    result = paceline(*arguments)
    assert result.code == code, result
    assert result.out == ""
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("paceline: ")
    return lines[0]


def wait_until(what: str, is_so: Callable[[], Any], within_s: float = START_S) -> Any:
    """The first truthy value of `is_so()`."""
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        if value := is_so():
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited {within_s} s for {what}")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


class Served:
    """A running `paceline serve`."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "deploy.cli", "serve", "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        self.messages: list[str] = []  # of standard error
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()  # of standard output; empty at its end
        self._readers = [
            threading.Thread(target=self._read_messages, daemon=True),
            threading.Thread(target=self._read_lines, daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        self.ready_line = ""
        self.address = ""
        self.url = ""  # of HTTP

    def wait_until_ready(self) -> None:
        try:
            self.ready_line = self._lines.get(timeout=START_S)
        except queue.Empty:
            self.ready_line = ""
        assert self.ready_line.startswith("paceline ready: gRPC on "), (self.ready_line, self.messages)
        self.address = self.ready_line.split("gRPC on ")[1].split(",")[0]
        self.url = self.ready_line.split("HTTP on ")[1].split(",")[0]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        try:
            code = self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        for reader in self._readers:
            reader.join(5)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream
            stream.close()
        return code

    def more_output(self) -> list[str]:
        """What came on standard output after the ready line; call it after the end."""
        rest = []
        while line := self._lines.get(timeout=5):
            rest.append(line)
        return rest

    def child_pids(self) -> dict[str, int]:
        """Process ids by role."""
        found = subprocess.run(
            ["ps", "-o", "pid=,args=", "--ppid", str(self.process.pid)], capture_output=True, text=True, check=False
        )
        pairs = [line.split(None, 1) for line in found.stdout.splitlines()]
        return {role: int(pid) for pid, command in pairs for role in roles_of(command)}

    def workers(self) -> tuple[WorkerInfo, ...]:
        with Client(self.address) as client:
            return client.server_info().workers

    def has_drafter(self) -> bool:
        return any(worker.role is Role.DRAFTER for worker in self.workers())

    def _read_messages(self) -> None:
        assert self.process.stderr
        self.messages.extend(self.process.stderr)

    def _read_lines(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")


def roles_of(command: str) -> list[str]:
    words = command.split()
    return [word for word in ("coordinator", "verifier", "drafter") if word in words]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a target and of a drafter with the same tokenizer."""
    root = tmp_path_factory.mktemp("pair")
    return make_model(root / "target", seed=0, hidden_size=64), make_model(root / "drafter", seed=1, hidden_size=32)


@pytest.fixture(scope="module")  # the last test of some module ends it
def served(pair: tuple[Path, Path]) -> Iterator[Served]:
    target, drafter = map(str, pair)
    server = Served("--target", target, "--drafter", drafter, "--grpc-port", "0", "--kv-cache-memory", "16MiB")
    try:
        server.wait_until_ready()
        yield server
    finally:
        if server.process.poll() is None:
            server.end()


def make_model(folder: Path, *, seed: int, hidden_size: int, swap: bool = False) -> Path:
    """A random Llama with a byte-level tokenizer; with `swap` two of its tokens trade places."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=hidden_size,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.1,
        bos_token_id=256,
        eos_token_id=257,
    )
    model: Any = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    write_tokenizer(folder, swap=swap)
    return folder


def write_tokenizer(folder: Path, *, swap: bool = False) -> None:
    letters = byte_letters()
    if swap:
        letters[65], letters[66] = letters[66], letters[65]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    special = [
        {"id": i, "content": content, "special": True} | dict.fromkeys(_FLAGS, False)
        for i, content in ((256, "<s>"), (257, "</s>"))
    ]
    vocab = {letter: i for i, letter in enumerate(letters)}
    parsed = {
        "version": "1.0",
        "added_tokens": special,
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(parsed))


_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


def byte_letters() -> list[str]:
    """The printable character that stands for each byte in byte-level vocabularies."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]
