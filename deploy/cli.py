"""`paceline`: one program, one sub-command a file, each imported only when it is asked for.

Exit codes: 0 done; 1 something failed that was not the caller's doing; 2 the caller's input is wrong (one line on
stderr says what and how to put it right); 130 interrupted.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from deploy.options import Parser, UsageError, source_of
from paceline import __version__
from paceline.errors import Forbidden, InvalidInput, PacelineError, Unauthenticated, did_you_mean

# Each module has `run(argv) -> int`, or `run_NAME` if it holds several commands; and, if its options have twins and a
# place in the file, `parser() -> Parser`, or `parser_NAME`, or `parsers()` by name where a command has commands.
COMMANDS = {
    "demo": ("deploy.demo", "run", "the main job on this machine: every mode side by side, with the demo models"),
    "serve": ("deploy.serve", "run", "coordinator, drafters and verifier on this machine, as separate processes"),
    "generate": ("deploy.generate", "run", "send prompts to a running coordinator"),
    "doctor": ("deploy.doctor", "run", "is the set-up in order, how fast would each mode be, and does drafting pay?"),
    "completion": ("deploy.completion", "run", "complete commands and options in bash, zsh or fish"),
    "trace": ("deploy.trace", "run", "what happened to a request, as a picture for Perfetto or Chrome"),
    "check-lossless": ("deploy.check_lossless", "run", "does a running server write what its target alone would?"),
    "certs": ("deploy.certs", "run", "a development CA, and a certificate for each role"),
    "bench": ("deploy.bench", "run", "measure this machine and pair: length policies, modes, overhead, equality"),
    "simulate": ("deploy.simulate", "run", "how fast would it be? a deployment in virtual time, before you build it"),
    "ray": ("deploy.ray.commands", "run", "both pools on a Ray cluster, each scaling on its own: up, status, down"),
    "coordinator": ("deploy.roles", "run_coordinator", "one role alone: takes requests, plans drafting and verifying"),
    "verifier": ("deploy.roles", "run_verifier", "one role alone: holds the target model and judges drafts"),
    "drafter": ("deploy.roles", "run_drafter", "one role alone: holds the draft model and drafts ahead"),
}

_OURS = ("bench", "coordinator", "deploy", "drafter", "models", "paceline", "verifier")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `paceline ARGV`; the exit code."""
    try:
        return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except SystemExit as end:  # argparse, after --help
        return end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `paceline … | head`; flushing stdout at exit would fail once more
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except PacelineError as error:
        print(f"paceline: {' '.join(str(error).split())}{_from(error)}", file=sys.stderr)
        return exit_code(error)


def exit_code(error: PacelineError) -> int:
    """2 for what the caller can put right (`Unsupported` included), 1 for all else."""
    return 2 if isinstance(error, InvalidInput | Unauthenticated | Forbidden) else 1


def _from(error: PacelineError) -> str:
    """Where a wrong value was given, unless that was the command line, or the error says it already."""
    field = error.field if isinstance(error, InvalidInput) else ""
    flag = field if field.startswith("--") else "--" + field.replace("_", "-")
    source = source_of(flag)
    return f" (from {source})" if source else ""


def parsers() -> dict[str, Parser]:
    """Every command's options, by its name; without `absent` commands and those that have their own way with them."""
    found: dict[str, Parser] = {}
    for name, (module, function, _) in COMMANDS.items():
        imported = _imported(module)
        if make := getattr(imported, function.replace("run", "parser", 1), None):
            found[name] = make()
        elif several := getattr(imported, "parsers", None):
            found |= several()
    return found


def absent() -> frozenset[str]:
    """The commands that cannot be imported here: an image holds what its own role needs, and nothing for the others."""
    return frozenset(name for name, (module, _, _) in COMMANDS.items() if _imported(module) is None)


def _imported(module: str) -> ModuleType | None:
    """None where a package of others is missing; any other error is a bug."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in _OURS:
            raise
        return None


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        print(f"paceline {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        hint = did_you_mean(argv[0], COMMANDS)
        raise UsageError(f"{argv[0]}: unknown command; {hint}The commands are {', '.join(COMMANDS)}")
    module, function, _ = COMMANDS[argv[0]]
    code: int = getattr(importlib.import_module(module), function)(argv[1:])
    return code


def _help() -> str:
    commands = "\n".join(f"  {name:14} {summary}" for name, (_, _, summary) in COMMANDS.items())
    return f"""usage: paceline COMMAND [options]

Speculative decoding with the drafter and the target in different processes, or on different machines: small models
draft, the target only verifies, and what you read is exactly what the target would have written.

commands:
{commands}

examples:
  paceline demo                                        see it work, in about a minute
  paceline serve --target big/ --drafter small/        serve a pair of models on this machine
  paceline generate --server 127.0.0.1:50051 --prompt "Once upon a time" --max-tokens 64 --temperature 0

`paceline COMMAND --help` explains a command's options. Every option has an environment twin, PACELINE_OPTION, and a
place in a TOML file (--config); --print-config shows what a command would use, and from where. Those of benchmarks are
PACELINE_BENCH_OPTION and the tables [bench.NAME].
Exit codes: 0 done, 1 failed, 2 wrong input, 130 interrupted."""


if __name__ == "__main__":
    sys.exit(main())
