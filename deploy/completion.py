"""`paceline completion`: a script by which a shell completes commands and options; shtab writes it from our tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from deploy import cli
from deploy.bench import BENCHMARKS
from deploy.cli import COMMANDS
from deploy.options import Parser, UsageError
from paceline.errors import did_you_mean

SHELLS = {
    "bash": 'eval "$(paceline completion bash)"     in ~/.bashrc',
    "zsh": "paceline completion zsh > ~/.zfunc/_paceline     with fpath+=~/.zfunc before compinit in ~/.zshrc",
    "fish": "paceline completion fish > ~/.config/fish/completions/paceline.fish",
}


def run(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_help(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    if argv[0] not in SHELLS or len(argv) > 1:
        wrong = argv[0] if argv[0] not in SHELLS else argv[1]
        hint = did_you_mean(wrong, SHELLS)
        raise UsageError(f"completion {wrong}: unknown shell; {hint}Choose one of {', '.join(SHELLS)}")
    import shtab  # late: whoever reads a file of options imports this module, and images have no shtab

    print(shtab.complete(_tree(), shell=argv[0]))
    return 0


def _tree() -> argparse.ArgumentParser:
    """All commands in one parser, as shtab reads it; nothing is ever parsed by it."""
    root = argparse.ArgumentParser("paceline", allow_abbrev=False)
    root.add_argument("--version", "-V", action="store_true", help="print the version")
    commands = root.add_subparsers()
    known = cli.parsers()
    for name, (_, _, summary) in COMMANDS.items():
        if name in known:
            _add(commands, name, known[name], summary)
            continue
        it = commands.add_parser(name, help=summary)
        if name == "bench":
            _add_benchmarks(it)
        elif name == "completion":
            it.add_argument("which", choices=list(SHELLS))
        elif several := [whole for whole in known if whole.startswith(f"{name} ")]:  # as `ray up`
            own = it.add_subparsers()
            for whole in several:
                _add(own, whole.removeprefix(f"{name} "), known[whole], known[whole].argparse.description or "")
    return root


def _add(commands: Any, name: str, parser: Parser, summary: str) -> None:
    line = summary.partition("\n")[0]
    commands.add_parser(name, help=line, parents=[parser.argparse], add_help=False, allow_abbrev=False)


def _add_benchmarks(bench: argparse.ArgumentParser) -> None:
    """Names, and the options of the one that loads no model: a shell that starts must not wait for torch."""
    from bench.serving import settings as serving

    benchmarks = bench.add_subparsers()
    for name, summary in BENCHMARKS.items():
        own = [serving.parser("")] if name == "serve" else []
        benchmarks.add_parser(name, help=summary, parents=own, add_help=False, allow_abbrev=False)


def _help() -> str:
    shells = "\n".join(f"  {how}" for how in SHELLS.values())
    return f"""usage: paceline completion SHELL

Print a script by which bash, zsh or fish completes Paceline's commands and options.

examples:
{shells}

  paceline completion bash > paceline.bash     to look at it

Options have PACELINE_ twins; what a shell completes are the options."""
