"""What a link between two processes is, whatever passes over it: settings that may change while it runs, and a program.

`bench/proxy.py` passes bytes on, `bench/relay.py` messages. With `--control` every line on standard input, such as
`rtt_ms=50 jitter_ms=0` or `cut`, changes a running link, so that one pair of processes can be measured over several.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import selectors
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, Self

from paceline.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Settings:
    """Numbers that are not negative; those named `…_share` are at most 1."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 <= getattr(self, field.name) < 1e9:
                raise InvalidInput(field.name, getattr(self, field.name), "must be a number, and not negative")
            if field.name.endswith("_share") and getattr(self, field.name) > 1:
                raise InvalidInput(field.name, getattr(self, field.name), "must be at most 1")

    def changed(self, line: str) -> Self:
        """These settings after `name=value name=value`. Raises InvalidInput."""
        names = [field.name for field in fields(self)]
        given: dict[str, float] = {}
        for item in line.split():
            name, _, value = item.partition("=")
            if name not in names:
                raise InvalidInput("control", item, f"is none of {', '.join(names)}")
            try:
                given[name] = float(value)
            except ValueError:
                raise InvalidInput(name, value, "must be a number") from None
        return replace(self, **given)


class Link(Protocol):
    """Listens, and passes on. `shape` may be changed at any time."""

    shape: Any  # Settings of its own

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; the bound port. Raises InvalidInput if it is taken."""

    async def stop(self) -> None: ...

    def cut(self) -> None:
        """Cut every connection off, with all that is on its way."""


def control(link: Link, line: str) -> None:
    """Carry out one line, and say what became of it."""
    if line == "cut":
        link.cut()
    else:
        try:
            link.shape = link.shape.changed(line)
        except InvalidInput as error:
            print(f"refused: {error}", flush=True)
            return
    print(f"done: {line}", flush=True)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop whose timers are exact to microseconds: epoll, the usual one, rounds waits up to whole milliseconds."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


async def _serve(name: str, make: Callable[[], Link], given: argparse.Namespace) -> int:
    """Run until standard input ends (with --control) or for ever."""
    link = make()
    host, port = given.listen
    bound = await link.start(host, port)
    print(f"{name} ready on {host}:{bound}", flush=True)
    ended = asyncio.Event()
    if given.control:
        loop = asyncio.get_running_loop()
        threading.Thread(target=_read_lines, args=(loop, link, ended.set), daemon=True).start()
    with contextlib.suppress(asyncio.CancelledError):
        await ended.wait()
    await link.stop()
    return 0


def _read_lines(loop: asyncio.AbstractEventLoop, link: Link, ended: Callable[[], None]) -> None:
    for line in sys.stdin:
        loop.call_soon_threadsafe(control, link, line.strip())
    loop.call_soon_threadsafe(ended)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text}: must be HOST:PORT, such as 127.0.0.1:50051")
    return host.strip("[]"), int(port)


def run(
    name: str,
    doc: str | None,
    settings: type[Settings],
    make: Callable[[tuple[str, int], Any, int], Link],
    arguments: Sequence[str] | None,
) -> int:
    """The program `python -m bench.NAME`; `make(to, shape, seed)` is its link."""
    parser = argparse.ArgumentParser(
        prog=f"bench.{name}", description=doc, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--listen", default="127.0.0.1:0", type=_address, metavar="HOST:PORT", help="port 0 = a free one"
    )
    parser.add_argument("--to", required=True, type=_address, metavar="HOST:PORT", help="where it is passed on to")
    for field in fields(settings):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=float, default=field.default, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="of all that happens by chance")
    parser.add_argument("--control", action="store_true", help="obey lines on standard input; end with it")
    given = parser.parse_args(arguments)
    try:
        shape = settings(**{field.name: getattr(given, field.name) for field in fields(settings)})
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(_serve(name, lambda: make(given.to, shape, given.seed), given))
    except InvalidInput as error:
        print(f"bench.{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
