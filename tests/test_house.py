"""The rules of the house, checked by reading the source; no code of it is run.

Who may import whom, what no product code may contain, and how long files and functions may be. The last tests plant
one violation of each rule in a small tree, to show that the checks see it.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = ("paceline", "drafter", "verifier", "coordinator", "deploy")
FOLDERS = (*PRODUCT, "models", "bench", "tests")
GENERATED = "paceline/wire/*"
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

SANS_IO = (
    "coordinator/core/*",
    *("verifier/batcher.py", "verifier/session.py"),
    *("drafter/session.py", "drafter/chain.py", "drafter/branches.py", "drafter/room.py"),
)
NOT_SANS_IO = {"asyncio", "time", "random", "grpc", "torch", "threading", "socket", "os", "logging", "secrets"}

# What may be imported only in these files.
ONLY_IN = {
    "grpc": (
        "*/server.py",
        "coordinator/api.py",
        "paceline/rpc.py",
        "paceline/worker.py",
        "paceline/client.py",
        "paceline/door.py",
        "paceline/security.py",
        "paceline/wire/*",
        "bench/relay.py",
        "tests/*",
    ),
    "transformers": ("paceline/engine/*", "paceline/tokenizer.py", "models/*", "bench/*", "tests/*"),
    "ray": ("deploy/*", "tests/*"),
    "fastapi": ("coordinator/http/*", "tests/*"),
    "starlette": ("coordinator/http/*", "deploy/ray/coordinator.py", "tests/*"),
    "pydantic": ("coordinator/http/*", "deploy/ray/*", "tests/*"),
    "uvicorn": ("coordinator/http/connection.py", "coordinator/http/server.py", "tests/*"),
    "prometheus_client": ("coordinator/metrics_*.py", "coordinator/http/probes.py", "tests/*"),
    "opentelemetry": ("coordinator/telemetry.py", "tests/*"),
    "jinja2": ("paceline/chat_template.py", "tests/*"),
    "deploy": ("deploy/*", "bench/*", "tests/*"),
    "tests": ("tests/*",),
    "bench": ("bench/*", "deploy/*", "tests/*"),
    "drafter": ("drafter/*", "deploy/*", "bench/*", "tests/*"),
    "verifier": ("verifier/*", "deploy/*", "bench/*", "tests/*"),
    "coordinator": ("coordinator/*", "deploy/*", "bench/*", "tests/*"),
}

# What runs a peer's bytes as code.
UNSAFE_MODULES = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib")
UNSAFE_CALLS = ("torch.load", "torch.save")
UNSAFE_NAMES = ("broadcast_object_list", "all_gather_object", "recv_pyobj", "send_pyobj", "allow_pickle")


@dataclass(frozen=True)
class Source:
    """One Python file. `path` is relative to the root, with slashes."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def is_in(self, patterns: Iterable[str]) -> bool:
        return any(fnmatch(self.path, pattern) for pattern in patterns)

    @cached_property
    def imports(self) -> list[tuple[int, str]]:
        """Lines and full names: for `from a import b` both `a` and `a.b`; nothing that only type checkers see."""
        found: list[tuple[int, str]] = []
        for node in _walk(self.tree):
            if isinstance(node, ast.Import):
                found += [(node.lineno, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = self._absolute(node)
                found.append((node.lineno, base))
                found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in IMPORT_CALLS:
                names = [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
                found += [(node.lineno, str(name)) for name in names]
        return found

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        is_package = self.path.endswith("/__init__.py")
        parts = self.module.split(".")
        parts = parts[: len(parts) - node.level + is_package]
        return ".".join(parts + ([node.module] if node.module else []))


IMPORT_CALLS = ("importlib.import_module", "import_module", "__import__")


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """`ast.walk` without the bodies of `if TYPE_CHECKING:`."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(node, ast.If) and child in node.body and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield from _walk(child)


class House:
    """All Python files below a root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        paths = [path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))]
        self.files = [Source(path.relative_to(root).as_posix(), path.read_text("utf-8")) for path in paths]
        self.modules = {file.module: file for file in self.files}

    @property
    def product(self) -> list[Source]:
        """What is written by hand and runs at a user's."""
        return [file for file in self.files if file.path.split("/")[0] in PRODUCT and not file.is_in([GENERATED])]

    def chain_to(self, start: Source, target: str) -> list[str]:
        """How `start` comes to import `target`, module by module; empty if it does not."""
        came_from: dict[str, str] = {start.module: ""}
        queue = [start.module]
        for module in queue:
            packages = [module.rsplit(".", depth)[0] for depth in range(1, module.count(".") + 1)]
            names = [name for _, name in self.modules[module].imports] + packages
            for name in names:
                if name.split(".")[0] == target:
                    return [*self._trail(came_from, module), name]
                if name in self.modules and name not in came_from:
                    came_from[name] = module
                    queue.append(name)
                for depth in range(1, name.count(".") + 1):
                    package = name.rsplit(".", depth)[0]
                    if package in self.modules and package not in came_from:
                        came_from[package] = module
                        queue.append(package)
        return []

    @staticmethod
    def _trail(came_from: dict[str, str], module: str) -> list[str]:
        trail = [module]
        while came_from[trail[0]]:
            trail.insert(0, came_from[trail[0]])
        return trail


def imports_only_where_allowed(house: House) -> Iterator[str]:
    for file in house.files:
        for line, name in file.imports:
            top = name.split(".")[0]
            if top in ONLY_IN and not file.is_in(ONLY_IN[top]):
                yield f"{file.path}:{line} imports {name}, which only {', '.join(ONLY_IN[top])} may"


def the_core_takes_time_and_chance_as_arguments(house: House) -> Iterator[str]:
    for file in house.files:
        if file.is_in(SANS_IO):
            for line, name in file.imports:
                if name.split(".")[0] in NOT_SANS_IO:
                    yield f"{file.path}:{line} imports {name}; time, chance and devices are arguments here"


def the_coordinator_never_imports_torch(house: House) -> Iterator[str]:
    for file in house.files:
        if file.path.startswith("coordinator/") and (chain := house.chain_to(file, "torch")):
            yield f"{file.path} imports torch: {' -> '.join(chain)}"


def the_servers_get_their_engine_as_an_argument(house: House) -> Iterator[str]:
    for file in house.files:
        if file.is_in(["drafter/server.py", "verifier/server.py"]) and (chain := house.chain_to(file, "torch")):
            yield f"{file.path} imports torch: {' -> '.join(chain)}"


def nothing_runs_a_peers_bytes(house: House) -> Iterator[str]:
    for file in house.product:
        for line, name in file.imports:
            if name.split(".")[0] in UNSAFE_MODULES or name in UNSAFE_CALLS:
                yield f"{file.path}:{line} imports {name}"
        for node in ast.walk(file.tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in UNSAFE_CALLS:
                yield f"{file.path}:{node.lineno} uses {ast.unparse(node)}"
            used = {getattr(node, key, None) for key in ("attr", "id", "arg")} & set(UNSAFE_NAMES)
            if used:
                yield f"{file.path}:{getattr(node, 'lineno', 0)} uses {used.pop()}"


def proto_is_no_package(house: House) -> Iterator[str]:
    for path in sorted((house.root / "proto").rglob("*.py")):
        yield f"{path.relative_to(house.root)}: proto/ holds .proto files only, else it shadows Google's proto-plus"


def files_and_functions_are_short(house: House) -> Iterator[str]:
    for file in house.product:
        num_lines = file.text.count("\n")
        if num_lines > MAX_FILE_LINES:
            yield f"{file.path} has {num_lines} lines; {MAX_FILE_LINES} are allowed"
        for node in ast.walk(file.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                num_lines = (node.end_lineno or 0) - node.lineno + 1
                if num_lines > MAX_FUNCTION_LINES:
                    where = f"{file.path}:{node.lineno} {node.name}"
                    yield f"{where} has {num_lines} lines; {MAX_FUNCTION_LINES} are allowed"


Rule = Callable[[House], Iterator[str]]
RULES: tuple[Rule, ...] = (
    imports_only_where_allowed,
    the_core_takes_time_and_chance_as_arguments,
    the_coordinator_never_imports_torch,
    the_servers_get_their_engine_as_an_argument,
    nothing_runs_a_peers_bytes,
    proto_is_no_package,
    files_and_functions_are_short,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_its_rule(rule: Rule) -> None:
    violations = list(rule(House(ROOT)))
    assert not violations, "\n" + "\n".join(violations)


PLANTED: list[tuple[Rule, str, str]] = [
    (imports_only_where_allowed, "drafter/engine.py", "from verifier.rules import judge"),
    (imports_only_where_allowed, "verifier/engine.py", "def late():\n    import coordinator.core.pace"),
    (imports_only_where_allowed, "coordinator/server.py", "import drafter"),
    (imports_only_where_allowed, "paceline/trace.py", "import grpc.aio"),
    (imports_only_where_allowed, "paceline/trace.py", "from verifier import batcher"),
    (imports_only_where_allowed, "drafter/engine.py", "import transformers"),
    (imports_only_where_allowed, "coordinator/server.py", "import ray"),
    (imports_only_where_allowed, "coordinator/service.py", "from fastapi import Request"),
    (imports_only_where_allowed, "coordinator/http/app.py", "import grpc"),
    (imports_only_where_allowed, "paceline/trace.py", "from deploy import cli"),
    (imports_only_where_allowed, "paceline/trace.py", "import importlib\nimportlib.import_module('deploy.cli')"),
    (imports_only_where_allowed, "paceline/trace.py", "from tests import world"),
    (imports_only_where_allowed, "coordinator/core/pipeline.py", "from bench.simulator import world"),
    (the_core_takes_time_and_chance_as_arguments, "coordinator/core/pipeline.py", "from time import monotonic"),
    (the_core_takes_time_and_chance_as_arguments, "coordinator/core/deep/er.py", "import random"),
    (the_core_takes_time_and_chance_as_arguments, "verifier/batcher.py", "import torch.nn"),
    (the_core_takes_time_and_chance_as_arguments, "drafter/session.py", "import logging"),
    (the_coordinator_never_imports_torch, "coordinator/api.py", "import torch"),
    (the_coordinator_never_imports_torch, "coordinator/api.py", "from paceline import heavy"),
    (the_coordinator_never_imports_torch, "coordinator/api.py", "from paceline.engine.pool import Pool"),
    (the_servers_get_their_engine_as_an_argument, "drafter/server.py", "import paceline.heavy"),
    (nothing_runs_a_peers_bytes, "paceline/trace.py", "import pickle"),
    (nothing_runs_a_peers_bytes, "paceline/trace.py", "from dill import loads"),
    (nothing_runs_a_peers_bytes, "paceline/trace.py", "import torch\ntorch.load('x')"),
    (nothing_runs_a_peers_bytes, "paceline/trace.py", "from torch import save"),
    (nothing_runs_a_peers_bytes, "paceline/trace.py", "dist.broadcast_object_list([1])"),
    (nothing_runs_a_peers_bytes, "paceline/trace.py", "socket.recv_pyobj()"),
    (nothing_runs_a_peers_bytes, "paceline/trace.py", "np.load('x', allow_pickle=True)"),
    (proto_is_no_package, "proto/paceline/__init__.py", ""),
    (files_and_functions_are_short, "paceline/long.py", "x = 1\n" * 401),
    (files_and_functions_are_short, "deploy/long.py", "async def f():\n" + "    x = 1\n" * 60),
]


def plant(root: Path, path: str, text: str) -> House:
    """A lawful little house, and `text` in it."""
    lawful = {
        "paceline/__init__.py": "",
        "paceline/heavy.py": "from . import engine",
        "paceline/engine/__init__.py": "import torch, transformers",
        "paceline/engine/pool.py": "",
        "paceline/types.py": "import math\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
        "coordinator/core/clock.py": "from paceline.types import Tokens\nfrom paceline.wire import x_pb2",
        "coordinator/server.py": "import asyncio, grpc\nfrom .core import clock",
        "paceline/wire/x_pb2.py": "import grpc\n" * 500,
        "bench/load.py": "import deploy.cli, transformers, coordinator.core.clock",
        "tests/test_x.py": "import pickle, grpc, ray, deploy",
        "deploy/cli.py": "import ray, drafter, coordinator.server",
    }
    for name, content in (lawful | {path: text}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return House(root)


@pytest.mark.parametrize(("rule", "path", "text"), PLANTED)
def test_a_planted_violation_is_seen_where_it_is(rule: Rule, path: str, text: str, tmp_path: Path) -> None:
    violations = list(rule(plant(tmp_path, path, text)))
    assert violations
    assert all(violation.startswith(path) for violation in violations)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_lawful_house_has_no_violations(rule: Rule, tmp_path: Path) -> None:
    assert list(rule(plant(tmp_path, "drafter/server.py", "import grpc\n"))) == []


def test_the_way_to_torch_is_told(tmp_path: Path) -> None:
    house = plant(tmp_path, "coordinator/api.py", "from paceline import heavy")
    (violation,) = the_coordinator_never_imports_torch(house)
    assert violation.endswith("coordinator.api -> paceline.heavy -> paceline.engine -> torch")
