"""A worker follows the list of its coordinators without being started anew."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from paceline.registrations import Registrations, read_addresses


class Registry:
    """Who is registered with now, and how often that began."""

    def __init__(self) -> None:
        self.now: set[str] = set()
        self.begun: Counter[str] = Counter()

    async def register(self, address: str) -> None:
        self.begun[address] += 1
        self.now.add(address)
        try:
            await asyncio.Event().wait()
        finally:
            self.now.discard(address)


async def until(registry: Registry, *addresses: str) -> None:
    async with asyncio.timeout(10):
        while registry.now != set(addresses):
            await asyncio.sleep(0.01)


async def test_coordinators_that_come_and_go_in_the_file_are_followed(tmp_path: Path) -> None:
    file, registry = tmp_path / "coordinators", Registry()
    it = Registrations(registry.register)
    it.start(["fixed:1"], str(file))
    try:
        await until(registry, "fixed:1")  # the file is not there yet
        file.write_text("a:1\n\n# a comment\nb:2  # another\n")
        await until(registry, "fixed:1", "a:1", "b:2")
        file.write_text("b:2\n[::1]:3\n")
        await until(registry, "fixed:1", "b:2", "[::1]:3")
        assert registry.begun["b:2"] == 1, "who stays is left alone"
        assert set(it.coordinators) == {"fixed:1", "b:2", "[::1]:3"}
    finally:
        await it.stop()
    assert not registry.now


async def test_a_file_that_cannot_be_read_as_addresses_changes_nothing(tmp_path: Path) -> None:
    file, registry = tmp_path / "coordinators", Registry()
    file.write_text("a:1\n")
    it = Registrations(registry.register)
    it.start([], str(file))
    try:
        await until(registry, "a:1")
        file.write_text("b:2\nnonsense\n")
        await asyncio.sleep(0.6)  # three looks at the file
        assert registry.now == {"a:1"}
        file.unlink()
        await asyncio.sleep(0.6)
        assert registry.now == {"a:1"}
    finally:
        await it.stop()


@pytest.mark.parametrize("line", ["a", "a:b", "a b:1", ":1", "a:123456"])
def test_a_line_that_is_no_address_is_named(line: str, tmp_path: Path) -> None:
    file = tmp_path / "coordinators"
    file.write_text(f"a:1\n{line}\n")
    with pytest.raises(ValueError, match="is no HOST:PORT"):
        read_addresses(str(file))
