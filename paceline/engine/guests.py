"""Ranks of a tensor parallel group that something else starts on this machine, and that come to the leader's socket.

A cluster's scheduler wants to start every rank itself, since it is the one that hands out GPUs. So the leader listens
on a Unix socket, in a folder that nobody else can enter, and takes the first that come. The connection then is what
the pipe is to a rank that the leader has started: orders go in, `ready` and the process's id come out, and its end
means that the other side is gone, however it went.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paceline.errors import Unavailable

RETRY_S = 0.1  # between two looks whether the leader listens
_MAX_LINE_BYTES = 1 << 16


class Guest:
    """The leader's handle on a rank that came by itself."""

    def __init__(self, rank: int, connection: socket.socket, order: Mapping[str, Any], timeout_s: float) -> None:
        self.rank = rank
        self._connection = connection
        self._timeout_s = timeout_s
        self._pid = 0
        connection.sendall(json.dumps({**order, "rank": rank}).encode() + b"\n")

    def wait_until_ready(self) -> None:
        """Returns when the rank is about to join the group. Raises Unavailable if it does not come that far."""
        self._connection.settimeout(self._timeout_s)
        try:
            line = self._connection.recv(64)
        except OSError:
            line = b""
        self._connection.settimeout(None)  # a look whether it is alive would wait as long
        word, _, pid = line.decode(errors="replace").strip().partition(" ")
        if word != "ready" or not pid.isdecimal():
            raise Unavailable(f"rank {self.rank} of the tensor parallel group did not start")
        self._pid = int(pid)

    def is_alive(self) -> bool:
        try:
            return self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def check_alive(self) -> None:
        if not self.is_alive():
            raise RuntimeError(f"rank {self.rank} is gone")

    def fate(self) -> str:
        return "its process is gone" if not self.is_alive() else "it does not answer"

    def end(self, patience_s: float) -> None:
        """Ends the process: at once, or after `patience_s` to end by itself. Whoever started it reaps it."""
        if patience_s:
            with contextlib.suppress(OSError, ValueError):
                select.select([self._connection], [], [], patience_s)
        if self._pid and self.is_alive():  # one that hangs would not notice that the connection ends
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self._pid, signal.SIGKILL)
        self._connection.close()


def gather(path: str, num_guests: int, order: Mapping[str, Any], timeout_s: float) -> list[Guest]:
    """The first `num_guests` that come to the socket `path`, as ranks 1 and up. Raises Unavailable if they do not."""
    deadline_s = time.monotonic() + timeout_s
    guests: list[Guest] = []
    Path(path).unlink(missing_ok=True)  # of a leader that was here before
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(num_guests)
        try:
            while len(guests) < num_guests:
                listener.settimeout(max(0.01, deadline_s - time.monotonic()))
                connection, _ = listener.accept()
                guests.append(Guest(len(guests) + 1, connection, order, timeout_s))
        except OSError as error:
            for guest in guests:
                guest.end(0)
            missing = f"{num_guests - len(guests)} of {num_guests} ranks did not come to {path} within {timeout_s:g} s"
            raise Unavailable(missing) from error
        finally:
            Path(path).unlink(missing_ok=True)
    return guests


def visit(path: str) -> tuple[dict[str, Any], socket.socket]:
    """For a rank: the leader's orders, and the connection that ends when the leader does. Waits for a leader."""
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.suppress(OSError, ValueError):
            connection.connect(path)
            order = json.loads(connection.makefile("rb").readline(_MAX_LINE_BYTES))
            connection.sendall(f"ready {os.getpid()}\n".encode())
            return order, connection
        connection.close()
        time.sleep(RETRY_S)
