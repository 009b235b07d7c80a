"""Every command in the docs is run, as it stands there, each page in a network of its own.

In a network namespace the pages' ports are free and their addresses can be this machine's, so nothing is rewritten: a
page that says 10.0.0.2 and port 8000 gets them. Folders that a page leaves to the reader (`big/`, `prompts.jsonl`) are
there under that name. A section that asks a server and starts none means the one of the quick start. What takes minutes
by design, and what needs a cluster, is only held against its own help or against the files it names.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
PAGE_TIMEOUT_S = 400
# First words of a line that is a command. Anything else in an unmarked block must be a drawing or an output.
WORDS = ("paceline", "make", "curl", "python", "export", "echo", "for", "helm", "docker", "kubectl", "grpcurl", "serve")
_ASSIGNMENT = re.compile(r"[A-Z_]+=\S")
# They measure for minutes, or train; `paceline demo` is `make demo`.
LONG = (
    "paceline bench",
    "paceline demo",
    "paceline doctor",
    "paceline ray",
    "python -m models",
    "python -m bench.",
    "serve ",
)
SHORT = ("python -m bench.proxy", "python -m bench.simulator.replay")  # of the latter, those that do not


def sections(page: Path) -> list[list[tuple[str, str]]]:
    """(language, text) of the fenced blocks below each heading."""
    found: list[list[tuple[str, str]]] = [[]]
    for part in re.split(r"^(```\w*\n.*?^```)", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL):
        if part.startswith("```"):
            language, _, text = part[3:-3].partition("\n")
            found[-1].append((language, text))
        elif re.search(r"^#", part, flags=re.MULTILINE):
            found.append([])
    return found


def blocks(page: Path) -> list[tuple[str, str]]:
    return [block for section in sections(page) for block in section]


def is_shell(language: str, text: str) -> bool:
    first = text.split(maxsplit=1)[0] if text.split() else ""
    return language in ("bash", "sh") or (not language and (first in WORDS or bool(_ASSIGNMENT.match(first))))


def commands(text: str) -> list[str]:
    """A block's commands, each with the lines that it goes on in."""
    found: list[str] = []
    waiting: list[str] = []
    for line in text.splitlines():
        waiting.append(line)
        whole = "\n".join(waiting)
        if not whole.strip():
            waiting = []
        elif not line.endswith("\\") and _parses(whole):
            found.append(whole)
            waiting = []
    assert not waiting, waiting
    return found


def _parses(text: str) -> bool:
    return subprocess.run(["bash", "-n", "-c", text], capture_output=True, timeout=10).returncode == 0


def all_commands() -> list[tuple[str, str]]:
    return [
        (page.name, command)
        for page in PAGES
        for language, text in blocks(page)
        if is_shell(language, text)
        for command in commands(text)
    ]


def is_long(command: str) -> bool:
    """Whether it is left to other tests; so is what names a request that nobody has made."""
    return "REQUEST" in command or (command.startswith(LONG) and not command.startswith(SHORT))


@pytest.mark.parametrize(("page", "command"), [pair for pair in all_commands() if "paceline " in pair[1]])
def test_commands_and_options_exist(page: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for line in re.findall(r"(?:^|\|\s*)paceline ([^|>&#]+)", command.replace("\\\n", " "), flags=re.MULTILINE):
        words = line.split()
        assert words[0] in COMMANDS, page
        capsys.readouterr()
        sub = [word for word in words[1:2] if words[0] in ("bench", "ray", "config") and not word.startswith("-")]
        assert main([words[0], *sub, "--help"]) == 0
        known = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", capsys.readouterr().out))
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", line)) <= known | {"--help"}, page


@pytest.mark.parametrize("command", [command for _, command in all_commands() if command.startswith("python -m")])
def test_modules_exist(command: str) -> None:
    module = command.split()[2]
    assert (ROOT / (module.replace(".", "/") + ".py")).exists() or (ROOT / module.replace(".", "/")).is_dir()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_without_a_language_are_commands_or_drawings(page: Path) -> None:
    for language, text in blocks(page):
        if not language and not is_shell(language, text) and not text.startswith("$"):
            assert not re.search(r"^(paceline|curl|python|make) ", text, flags=re.MULTILINE), text


_BEFORE = r"""
set -u
ip link set lo up; ip addr add 10.0.0.1/32 dev lo; ip addr add 10.0.0.2/32 dev lo
servers="" served=""
say() { printf '%s\n' "$*" >&2; }
stop() {
    for pid in $servers; do kill "$pid" 2>/dev/null; done
    for pid in $servers; do wait "$pid"; done
    servers="" served=""
}
trap stop EXIT
fail() { say "FAILED: $1"; tail -n 30 log.* out >&2 2>/dev/null; exit 1; }
begin() {  # NUMBER COMMAND: a server, until it says that it is ready
    bash -c "exec $2" > "log.$1" 2>&1 &
    pid=$!; servers="$servers $pid" served=page
    for _ in $(seq 600); do
        grep -q "ready\|listening" "log.$1" && return
        kill -0 $pid 2>/dev/null || fail "$2"
        sleep 0.1
    done
    fail "$2 (never ready)"
}
section() { [ "$served" = page ] && stop; for name in $(compgen -e PACELINE_); do unset "$name"; done; }
need() {
    [ -n "$served" ] && return
    begin quick "paceline serve --target models/demo-target --drafter models/demo-drafter"
    served=quick
}
# What needs more than this machine has: the files that are named must be there.
named() {
    for word in "$@"; do
        case "$word" in
            deploy/*) [ -e "$word" ] || fail "no $word" ;;
            --from-file=*) [ -e "${word##*=}" ] || fail "no ${word##*=}" ;;
        esac
    done
}
docker() { named "$@"; }
kubectl() { named "$@"; }
helm() { named "$@"; }
grpcurl() { :; }
make() { command make --no-print-directory -C "$ROOT" -n "$@" > /dev/null; }
"""
_PYTHON = """cat > block.py <<'END'
{text}END
need
timeout 120 python block.py > out 2>&1 || fail 'python: {page}'"""


def script(page: Path) -> str:
    lines = [_BEFORE]
    for section in sections(page):
        lines.append("section")
        for language, text in section:
            if language == "python":
                lines.append(_PYTHON.format(text=text, page=page.name))
            elif is_shell(language, text):
                for command in commands(text):
                    lines += _step(command, len(lines))
    return "\n".join([*lines, "say all of it ran"]) + "\n"


def _step(command: str, number: int) -> list[str]:
    quoted = "'" + command.replace("'", "'\\''") + "'"
    if is_long(command):
        return []
    if re.match(r"paceline (serve|coordinator)\b", command) and "--print-config" not in command:
        return ["stop", f"begin {number} {quoted}"]
    if re.match(r"paceline (verifier|drafter)\b|python -m bench.proxy", command):
        return ["need"] * ("127.0.0.1:50051" in command) + [f"begin {number} {quoted}"]
    if command.startswith("export "):
        return [command]
    asks = re.search(r"paceline (generate|check-lossless|trace)|curl ", command)
    # By itself, so that what one command sets is not the next one's.
    return ["need"] * bool(asks) + [f"say {quoted}", f"( {command}\n) > out 2>&1 || fail {quoted}"]


def _can_have_a_network() -> bool:
    if not all(map(shutil.which, ("unshare", "ip", "curl"))):
        return False
    return subprocess.run(["unshare", "-rn", "ip", "link", "set", "lo", "up"], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not _can_have_a_network(), reason="no network namespaces here")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(is_shell(*block) for block in blocks(page))], ids=lambda page: page.name
)
def test_every_command_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    place(tmp_path)
    (tmp_path / "page.sh").write_text(script(page))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PACELINE_")},
        "ROOT": str(ROOT),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "NO_COLOR": "1",
    }
    command = ["unshare", "-rn", "bash", "page.sh"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PAGE_TIMEOUT_S
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "all of it ran" in done.stderr


def place(folder: Path) -> None:
    """What the pages take to be there: the command, the repository's folders, a reader's own models and prompts."""
    (folder / "bin").mkdir()
    for name, what in {"paceline": "-m deploy.cli", "python": ""}.items():
        file = folder / "bin" / name
        file.write_text(f'#!/bin/sh\nexec "{sys.executable}" {what} "$@"\n')
        file.chmod(0o755)
    for name in ("deploy", "docs", "models", "tests"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "big").symlink_to(ROOT / "models" / "demo-target")
    (folder / "small").symlink_to(ROOT / "models" / "demo-drafter")
    prompts = (ROOT / "tests" / "data" / "gsm8k_dev_12.jsonl").read_text().splitlines(keepends=True)
    (folder / "prompts.jsonl").write_text("".join(prompts[:2]))
