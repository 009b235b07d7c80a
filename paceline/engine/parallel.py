"""One model over several processes of one host: rank 0 serves and leads, the others follow.

The leader sends each step plan to the followers, then all ranks run the same forward pass, in which transformers'
tensor parallel layers exchange their partial sums. Only rank 0 sees logits that anybody reads.

Rules.
1. A group lives and dies whole. A rank that fails, hangs or falls out of step cannot be repaired: the leader ends
   all followers, and every call from then on raises EngineLost. Whoever owns the process starts a new group.
2. Followers never outlive the leader. Each holds the reading end of a pipe from it; end of file means it is gone,
   however it died.
3. No pickle. Options travel as JSON through that pipe, plans as msgpack in a broadcast of bytes.
4. Nothing listens beyond this host: ranks meet in a private folder and talk over the loopback device.

The process group's timeout also applies to a follower that merely waits for work, so an idle leader sends a
heartbeat every third of it, at which all ranks meet. The same timeout bounds how long a hung rank can hold up a step
or a heartbeat. A killed one is noticed at once in a step, because its connections close, and else by the heartbeat.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import select
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from transformers import PreTrainedConfig

from paceline.engine import weights
from paceline.engine.executor import Executor, Options, prepare
from paceline.engine.guests import gather, visit
from paceline.engine.plan import StepPlan
from paceline.engine.step import Outputs
from paceline.engine.weights import Checkpoint
from paceline.errors import EngineLost, InvalidInput, Unavailable, Unsupported

# A follower imports torch and transformers before it reports: seconds on a laptop, more on a cold disk.
_START_TIMEOUT_S = 120.0
# Reading a large model's share from a network disk takes minutes, and ranks need not be equally fast.
_LOAD_TIMEOUT_S = 1800.0
_STOP_TIMEOUT_S = 5.0

_HEADER = struct.Struct("<BI")  # kind, payload_bytes
_PLAN, _HEARTBEAT, _STOP = 1, 2, 3
# Enough for 8 sequences of 4096 tokens in blocks of 16. A larger buffer costs every step, a larger plan only itself.
_BUFFER_BYTES = 16 << 10


def check(checkpoint: Checkpoint, size: int, device: str) -> None:
    """Raises InvalidInput unless this model can be split `size` ways here; transformers would fail much later."""
    if importlib.util.find_spec("accelerate") is None:
        fix = "transformers splits models only with accelerate installed; pip install accelerate"
        raise InvalidInput("tensor_parallel_size", size, fix)
    if not getattr(checkpoint.config, "base_model_tp_plan", None):
        fix = f"transformers has no plan for splitting {checkpoint.config.model_type} models; use 1"
        raise Unsupported("tensor_parallel_size", size, fix)
    for name, count in _parts(checkpoint.config):
        if count % size:
            fix = f"the model's {count} {name} cannot be split evenly; choose a divisor of {count}"
            raise InvalidInput("tensor_parallel_size", size, fix)
    if device not in ("cpu", "cuda"):
        raise InvalidInput("device", device, "a tensor parallel group takes one GPU a rank; say cpu or cuda")
    if device == "cuda" and torch.cuda.device_count() < size:
        fix = f"there are {torch.cuda.device_count()} GPUs; choose at most that many"
        raise InvalidInput("tensor_parallel_size", size, fix)
    if device == "cpu" and torch.accelerator.is_available():
        fix = "transformers would split over the GPUs of this host; hide them with CUDA_VISIBLE_DEVICES="
        raise InvalidInput("device", device, fix)
    if dist.is_initialized():
        fix = "this process belongs to a process group already; shut down the other runner first"
        raise InvalidInput("tensor_parallel_size", size, fix)


def _parts(config: PreTrainedConfig) -> list[tuple[str, int]]:
    """What is dealt out to the ranks in equal shares."""
    num_heads = config.num_attention_heads
    parts = [("attention heads", num_heads)]
    parts.append(("key-value heads", getattr(config, "num_key_value_heads", None) or num_heads))
    if getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None):
        size = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
        parts.append(("values inside an expert", size))
    return parts


class Follower(Protocol):
    """The leader's handle on another rank."""

    rank: int

    def wait_until_ready(self) -> None: ...
    def is_alive(self) -> bool: ...
    def check_alive(self) -> None: ...
    def fate(self) -> str: ...
    def end(self, patience_s: float) -> None: ...


class Leader:
    """Rank 0: an executor whose steps all ranks run. Create it with `start`."""

    def __init__(self, executor: Executor, followers: Sequence[Follower], channel: _Channel, timeout_s: float):
        self.model, self.num_parameters = executor.model, executor.num_parameters
        self.vocab_size = executor.vocab_size
        self.num_blocks = executor.num_blocks
        self._executor = executor
        self._followers = followers
        self._channel = channel
        self._timeout_s = timeout_s
        self._lock = threading.Lock()  # one collective at a time: forward passes and heartbeats
        self._ended: str | None = None  # why the group is no more; never reset
        self.lost: str | None = None  # the same, unless it was shut down on purpose
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="tensor-parallel-heartbeat", daemon=True)
        self._heart.start()
        atexit.register(self.shutdown)

    @classmethod
    def start(
        cls, checkpoint: Checkpoint, options: Options, *, timeout_s: float, ranks_socket: str | None = None
    ) -> Leader:
        """Starts the followers, loads and rehearses on all ranks. Raises InvalidInput, Unsupported, Unavailable.

        With `ranks_socket` it starts none, but takes those that come there.
        """
        size = options.tensor_parallel_size
        check(checkpoint, size, options.device)
        followers: list[Follower] = []
        try:
            with tempfile.TemporaryDirectory(prefix="paceline-") as folder:
                meeting = str(Path(folder) / "store")
                order = {"options": asdict(options), "meeting": meeting, "timeout_s": timeout_s}
                if ranks_socket is not None:
                    followers += gather(ranks_socket, size - 1, order, _START_TIMEOUT_S)
                else:
                    followers += [_Follower(rank, order) for rank in range(1, size)]
                for follower in followers:
                    follower.wait_until_ready()
                channel = _join(0, size, meeting, options.device)
                executor = prepare(checkpoint, options)
                _set_timeouts(channel, timeout_s)
        except BaseException as error:
            _end(followers)
            if isinstance(error, RuntimeError):
                raise Unavailable(f"the tensor parallel group did not start: {error}") from error
            raise
        return cls(executor, followers, channel, timeout_s)

    def run(self, plan: StepPlan) -> Outputs:
        """`Executor.run` on all ranks. Raises Unavailable if the group has ended, or ends during the step."""
        with self._lock:
            if self._ended is not None:
                raise EngineLost(self.lost or "the tensor parallel group was shut down")
            try:
                self._channel.send(_PLAN, plan.pack())
                return self._executor.run(plan)
            except Exception as error:  # whatever it was, the ranks are no longer in step
                self._fail(error)
                raise EngineLost(self.lost) from error
            except BaseException as error:
                self._fail(error)
                raise

    def shutdown(self) -> None:
        """Ends the followers and leaves the process group. May be repeated."""
        atexit.unregister(self.shutdown)
        self._stop.set()
        with self._lock:
            if self._ended is None:
                self._ended = "it was shut down"
                with contextlib.suppress(RuntimeError):
                    self._channel.send(_STOP)
                _end(self._followers, patience_s=_STOP_TIMEOUT_S)
        self._heart.join()

    def _beat(self) -> None:
        while not self._stop.wait(self._timeout_s / 3):
            with self._lock:
                if self._ended is not None:
                    return
                try:
                    for follower in self._followers:
                        follower.check_alive()
                    self._channel.send(_HEARTBEAT)
                    self._channel.meet()  # a broadcast fits into a connection's buffers: it shows no hung rank
                except RuntimeError as error:
                    self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Ends a group that is out of step. The caller holds the lock."""
        if "Timed out" in str(error):  # gloo has no type for it
            self._ended = f"a rank was silent for {self._timeout_s:g} s"
        else:
            self._ended = _name_the_dead(self._followers) or f"{type(error).__name__}: {str(error)[:200]}"
        self.lost = f"the tensor parallel group has ended: {self._ended}"
        _end(self._followers)


def _name_the_dead(followers: Sequence[Follower]) -> str | None:
    """Who is gone, or None if nobody is. A connection may break a moment before its process can be reaped."""
    deadline_s = time.monotonic() + 1.0
    while time.monotonic() < deadline_s:
        dead = [follower for follower in followers if not follower.is_alive()]
        if dead:
            return "lost " + ", ".join(f"rank {follower.rank} ({follower.fate()})" for follower in dead)
        time.sleep(0.01)
    return None


class _Follower:
    """A rank that the leader has started."""

    def __init__(self, rank: int, order: dict[str, Any]) -> None:
        self.rank = rank
        source = str(Path(__file__).resolve().parents[2])
        paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {"LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "paceline.engine.parallel"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | environment,
            start_new_session=True,  # an interrupt from the keyboard is for the leader alone
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order | {"rank": rank}).encode() + b"\n")
        self._process.stdin.flush()  # and it stays open: closing it is what ends the follower

    def wait_until_ready(self) -> None:
        """Returns when the follower is about to join the group. Raises Unavailable if it does not come that far."""
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], _START_TIMEOUT_S)
        if not readable or not self._process.stdout.readline():
            fate = self.fate() if readable else f"silent for {_START_TIMEOUT_S:g} s"
            raise Unavailable(f"rank {self.rank} of the tensor parallel group did not start ({fate})")

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def check_alive(self) -> None:
        if not self.is_alive():
            raise RuntimeError(f"rank {self.rank} is gone")

    def fate(self) -> str:
        """How the process ended, in words. Waits a moment for one that is ending."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1)
        return f"exit status {self._process.returncode}"

    def end(self, patience_s: float) -> None:
        """Reaps the process: at once with SIGKILL, or after `patience_s` to end by itself."""
        if patience_s:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=patience_s)
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class _Channel:
    """Messages from rank 0 to all others: a broadcast of one fixed buffer, and a second one for a long payload."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self._buffer = torch.zeros(_BUFFER_BYTES, dtype=torch.uint8)

    def send(self, kind: int, payload: bytes = b"") -> None:
        message = _HEADER.pack(kind, len(payload)) + payload
        head = message[:_BUFFER_BYTES] if len(message) <= _BUFFER_BYTES else message[: _HEADER.size]
        self._buffer[: len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
        dist.broadcast(self._buffer, src=0, group=self.group)
        if len(message) > _BUFFER_BYTES:
            whole = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
            dist.broadcast(whole, src=0, group=self.group)

    def meet(self) -> None:
        """Returns when all ranks are here."""
        dist.barrier(group=self.group)

    def receive(self) -> tuple[int, bytes]:
        """The next message's (kind, payload)."""
        dist.broadcast(self._buffer, src=0, group=self.group)
        kind, num_bytes = _HEADER.unpack(self._buffer[: _HEADER.size].numpy().tobytes())
        if _HEADER.size + num_bytes <= _BUFFER_BYTES:
            return kind, self._buffer[_HEADER.size : _HEADER.size + num_bytes].numpy().tobytes()
        whole = torch.empty(num_bytes, dtype=torch.uint8)
        dist.broadcast(whole, src=0, group=self.group)
        return kind, whole.numpy().tobytes()


def _join(rank: int, size: int, meeting: str, device: str) -> _Channel:
    """Enters the group. `meeting`: a file that all ranks can write."""
    if sys.platform == "linux":  # gloo would otherwise listen on whatever the host's name resolves to
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    timeout = timedelta(seconds=_LOAD_TIMEOUT_S)
    options: dict[str, Any] = {"device_id": torch.device(f"cuda:{rank}")} if device == "cuda" else {}
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(
        backend, init_method=f"file://{meeting}", rank=rank, world_size=size, timeout=timeout, **options
    )
    # Plans go through the CPU even if the model's sums do not.
    return _Channel(dist.new_group(backend="gloo", timeout=timeout))


def _set_timeouts(channel: _Channel, timeout_s: float) -> None:
    """From now on a rank that stays away for `timeout_s` ends the group."""
    dist.barrier()
    for group in (None, channel.group):
        distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_s), group)


def _end(followers: Sequence[Follower], *, patience_s: float = 0.0) -> None:
    deadline_s = time.monotonic() + patience_s
    for follower in followers:
        follower.end(max(0.0, deadline_s - time.monotonic()))
    if dist.is_initialized():
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def _follow(order: dict[str, Any]) -> None:
    """The life of a follower, from its orders to the leader's stop."""
    options = Options(**order["options"])
    rank, size = int(order["rank"]), options.tensor_parallel_size
    torch.set_num_threads(1)
    checkpoint = weights.inspect(options.folder, max_model_len=options.max_model_len)
    channel = _join(rank, size, order["meeting"], options.device)
    executor = prepare(checkpoint, options, rank=rank)
    _set_timeouts(channel, order["timeout_s"])
    while True:
        kind, payload = channel.receive()
        if kind == _STOP:
            return
        if kind == _HEARTBEAT:
            channel.meet()
        if kind == _PLAN:
            executor.run(StepPlan.unpack(payload))


def _die_with(stream: BinaryIO) -> None:
    """Ends this process when `stream` ends: nothing is ever sent on it."""

    def wait() -> None:
        stream.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _main(argv: Sequence[str]) -> None:
    """A rank: started by its leader, or, with the leader's socket as argument, by somebody whose end is its end too."""
    if argv:
        _die_with(sys.stdin.buffer)
        order, connection = visit(argv[0])
        _die_with(cast(BinaryIO, connection.makefile("rb")))
    else:
        order = json.loads(sys.stdin.buffer.readline())
        _die_with(sys.stdin.buffer)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nobody reads that pipe any more
    _follow(order)
    os._exit(0)  # the threads above still wait


if __name__ == "__main__":
    _main(sys.argv[1:])
