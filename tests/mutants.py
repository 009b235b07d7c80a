"""Break one thing at a time in a copy of the tree, and see that a test notices: `make mutants`.

Sampling bugs are nearly invisible from outside: some bend a law by a thousandth. A proof is worth what it would catch,
so every way of being wrong that is known from the literature, and a few of our own, is tried on the shipped code. For
each mutant the tests that should see it are run, and the first that fails is printed. A mutant that survives, does not
apply any more or cannot even be imported makes the exit code 1.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
COPIED = ("coordinator", "deploy", "drafter", "paceline", "proto", "tests", "verifier", "pyproject.toml")
TIMEOUT_S = 600.0

WORLD = "World(seed=6, vocab_size=4, width=3, bits=16, draft_temperature=1.0)"
ONE_DRAFT = f"test_one_draft_then_the_target_is_exact[2-{WORLD}]"
BLOCK = (f"tests/verifier/test_block.py::{ONE_DRAFT}",)
TOKEN = (f"tests/verifier/test_enumeration.py::{ONE_DRAFT}",)
VERIFIER = ("tests/verifier/test_session.py", "tests/verifier/test_engine.py")
DRAFTER = ("tests/drafter",)
CORE = ("tests/coordinator", "tests/verifier/test_session.py", "tests/drafter/test_session.py")
PARAMETERS = ("tests/paceline/test_adjusted_logits.py",)
TRUST = ("tests/coordinator/test_trust.py",)
ROWS = ("tests/paceline/test_rows.py",)
EXACT = ("tests/coordinator/test_exact_worlds.py", "-k", "path and (closed or queue or late)")
ENDS = ("tests/coordinator/test_ends.py",)
CHECK = ("tests/deploy/test_check_lossless.py", "-k", "seed")


@dataclass(frozen=True, slots=True)
class Mutant:
    """In `path`, `old` (which stands there) becomes `new`; `tests` are pytest's arguments."""

    what: str
    path: str
    old: str
    new: str
    tests: Sequence[str]


@dataclass(frozen=True, slots=True)
class Result:
    mutant: Mutant
    outcome: str  # caught, SURVIVED, BROKEN or STALE
    by: str = ""  # the first test that failed

    @property
    def is_good(self) -> bool:
        return self.outcome == "caught"


SCANNED = """    for at in reversed(range(len(stop))):
        if coins.uniform(Domain.BLOCK, start + at) < stop[at]:
            return at + 1
    return 0
"""
FIRST_FAILURE = """    for at in range(len(stop)):
        if not coins.uniform(Domain.BLOCK, start + at) < stop[at]:
            return at
    return len(stop)
"""
DRAWN = "return rows.sample_row(kept.ids[0], kept.counts[0], uniform)"
FULL_ROW = "return law.sample_inverse(law.target_probs(row, ask.sampling)[0], uniform)"
SENT = "        ids = torch.cat([kept.ids for kept in session.rows])\n"
DROPPED = """        last = session.rows[-1]
        if len(session.rows) > 1 and 3 * int(last.counts[0][last.ids[0] == session.tokens[-1]]) < last.counts.sum():
            session.tokens.pop()
            session.rows.pop()
            session.computed = len(session.tokens) - 1
"""
CONTRADICTED = """        if _contradicts(draft, committed):
            self._distrust(draft.epoch)
            return None
"""

SAMPLING = (
    Mutant(
        "block: the residual of token, not scaled by the running product",
        "verifier/rules/block.py",
        "keep[at] * target_probs[at].double()",
        "target_probs[at].double()",
        BLOCK,
    ),
    Mutant("block: the scan stops at the first failure", "verifier/rules/block.py", SCANNED, FIRST_FAILURE, BLOCK),
    Mutant(
        "block: the replacement is drawn from the target row",
        "verifier/rules/block.py",
        "row = residual(target_probs, keep, draft_rows, num_accepted)",
        "row = target_probs[num_accepted]",
        BLOCK,
    ),
    Mutant(
        "block: coins of the scan thrown once a position",
        "verifier/rules/coins.py",
        "epoch=self.epoch if domain is Domain.BLOCK else 0",
        "epoch=0",
        ("tests/verifier/test_block.py", "-k", "coins_of_a_block"),
    ),
    Mutant(
        "block: drafts that share a pass are one block",
        "verifier/engine.py",
        "drafts = [draft.token_ids for draft in work.drafts]",
        "drafts = [work.draft_ids]",
        VERIFIER,
    ),
    Mutant(
        "block: the first token judged by the retained row alone",
        "verifier/engine.py",
        "if entry.session.ask.rule is Rule.BLOCK:\n                    return work",
        "if False:\n                    return work",
        VERIFIER,
    ),
    Mutant(
        "token: the replacement is drawn from the target row",
        "verifier/rules/token.py",
        "row = residual(target_probs[at], draft_rows.ids[at], draft_rows.probs[at])",
        "row = target_probs[at]",
        TOKEN,
    ),
    Mutant("drafter: sampled from the full row, the truncated one sent", "drafter/engine.py", DRAWN, FULL_ROW, DRAFTER),
    Mutant("drafter: a token dropped by its own probability", "drafter/engine.py", SENT, DROPPED + SENT, DRAFTER),
    Mutant(
        "drafter: noise used again after a rollback",
        "drafter/engine.py",
        "position, epoch=session.epoch)",
        "position, epoch=0)",
        DRAFTER,
    ),
    Mutant(
        "bonus and successor both taken",
        "verifier/session.py",
        "return not (self.drafts and self.drafts[-1].is_open)",
        "return True",
        VERIFIER,
    ),
    Mutant(
        "off by one: the row before is retained",
        "verifier/engine.py",
        "target_rows), target_rows, target_rows[-1:])",
        "target_rows), target_rows, target_rows[-2:-1])",
        VERIFIER,
    ),
    Mutant(
        "off by one: every token judged by its own row",
        "verifier/engine.py",
        "target_rows = _adjusted(entry, target_rows, work.draft_ids)",
        "target_rows = _adjusted(entry, target_rows, work.draft_ids).roll(-1, 0)",
        VERIFIER,
    ),
    Mutant(
        "a draft of a stale epoch is judged",
        "verifier/session.py",
        "if draft.epoch < self._floor or draft.end <= len(self.log):",
        "if draft.end <= len(self.log):",
        CORE,
    ),
    Mutant(
        "a penalty does not see the drafted tokens",
        "paceline/sampling.py",
        "counts[row:, token_id] += 1",
        "pass",
        PARAMETERS,
    ),
    Mutant(
        "a penalty sees the token that it judges",
        "paceline/sampling.py",
        "enumerate(draft_ids[: num_rows - 1], start=1)",
        "enumerate(draft_ids[: num_rows - 1], start=0)",
        PARAMETERS,
    ),
    Mutant(
        "min_tokens ends one token late",
        "paceline/sampling.py",
        "sampling.min_tokens - (len(prefix)",
        "sampling.min_tokens + 1 - (len(prefix)",
        PARAMETERS,
    ),
    Mutant(
        "a retained row is kept penalised and penalised again",
        "verifier/engine.py",
        "return self._commit(entry, work, self._judge(entry, work, target_rows), target_rows, target_rows[-1:])",
        "rows_ = _adjusted(entry, target_rows, work.draft_ids)\n"
        "        return self._commit(entry, work, self._judge(entry, work, target_rows), target_rows, rows_[-1:])",
        VERIFIER,
    ),
)

ROWS_AND_TRUST = (
    Mutant(
        "rows: the bits of the message are ignored",
        "paceline/rows.py",
        "if (counts.sum(-1) != total(rows.bits)).any():",
        "if (counts.sum(-1) > total(16)).any():",
        ROWS,
    ),
    Mutant(
        "rows: rounded by bits other than those they are sent with",
        "drafter/engine.py",
        "kept = rows.truncate(law.target_probs(row, sampling), self._row_width, self._row_bits)",
        "kept = rows.truncate(law.target_probs(row, sampling), self._row_width, 8)",
        DRAFTER,
    ),
    Mutant(
        "rows: a column is left out although a row has a count in it",
        "paceline/rows.py",
        "(counts > 0).any(0).sum()",
        "(counts > 0).all(0).sum()",
        ROWS,
    ),
    Mutant(
        "drafter: sampled at its own temperature, the request's row sent",
        "drafter/engine.py",
        DRAWN,
        "other = rows.truncate(law.target_probs(row, sampling), self._row_width, self._row_bits)\n"
        "        plain = law.target_probs(row, ask.sampling)\n"
        "        session.rows[-1] = rows.truncate(plain, self._row_width, self._row_bits)\n"
        "        return rows.sample_row(other.ids[0], other.counts[0], uniform)",
        DRAFTER,
    ),
    Mutant(
        "trust: every drafter's own word is taken",
        "coordinator/core/placement.py",
        "w.info.role is role and w.is_trusted >= trusted_only",
        "w.info.role is role",
        TRUST,
    ),
    Mutant(
        "trust: block whoever drafts",
        "coordinator/core/request.py",
        "return Rule.MATCH if is_distrusted else Rule.BLOCK",
        "return Rule.BLOCK",
        TRUST,
    ),
    Mutant(
        "trust: a rule that cannot be exact is not refused",
        "coordinator/core/request.py",
        "if is_distrusted and believes_rows(spec.rule, spec.sampling):",
        "if False:",
        TRUST,
    ),
    Mutant(
        "trust: loopback is believed behind --insecure",
        "coordinator/trust.py",
        "return not config.insecure and all(map(is_loopback, hosts))",
        "return all(map(is_loopback, hosts))",
        TRUST,
    ),
    Mutant(
        "trust: the address that will be connected to is not looked at",
        "coordinator/trust.py",
        'hosts = (peer_host, info.address.rpartition(":")[0])',
        "hosts = (peer_host,)",
        TRUST,
    ),
    Mutant(
        "check-lossless: near-ties under a seed without their noise",
        "deploy/check_lossless.py",
        "    if seed is None:\n        return answer.logprobs[at]\n",
        "    if True:\n        return answer.logprobs[at]\n",
        CHECK,
    ),
)

# Seen by every coin thrown every way through the whole system, and by the ends of its output.
WHOLE = (
    Mutant(
        "whole: noise used again after a rollback",
        "drafter/engine.py",
        "position, epoch=session.epoch)",
        "position, epoch=0)",
        EXACT,
    ),
    Mutant(
        "token: the replacement by the coin of the rejected one",
        "verifier/rules/token.py",
        "coins.uniform(Domain.RECOVER, start + at)",
        "coins.uniform(Domain.ACCEPT, start + at)",
        TOKEN,
    ),
    Mutant(
        "ends: a stop token counts only at the end of a verdict",
        "coordinator/core/request.py",
        "            if token in self.spec.stop_token_ids:\n",
        "            if token in self.spec.stop_token_ids and i == len(tokens) - 1:\n",
        ENDS,
    ),
    Mutant(
        "ends: min_tokens counts from the draft's start",
        "paceline/sampling.py",
        "scores[:num_early, [",
        "scores[: num_early if num_early >= num_rows else 0, [",
        ENDS,
    ),
)

PROTOCOL = (
    Mutant("a contradicted draft is admitted", "coordinator/core/window.py", CONTRADICTED, "", CORE),
    Mutant(
        "what is committed is not cut off a draft",
        "coordinator/core/window.py",
        "        draft = draft.drop(max(0, len(committed) - draft.start))\n",
        "",
        CORE,
    ),
    Mutant(
        "a row stays retained after a token of the target's own",
        "verifier/session.py",
        "self.retained = retained if token_id is None else None",
        "self.retained = retained",
        CORE,
    ),
    Mutant("a late draft is judged from its start", "verifier/session.py", "if known > 0:", "if known > 99:", CORE),
    Mutant(
        "an overlapping verdict is applied twice",
        "coordinator/core/request.py",
        "verdict.token_ids[known:], verdict.sources[known:]",
        "verdict.token_ids, verdict.sources",
        CORE,
    ),
    Mutant(
        "a verdict beyond a gap is applied",
        "coordinator/core/request.py",
        "if known < 0 or known >= len(verdict.token_ids):",
        "if known >= len(verdict.token_ids):",
        CORE,
    ),
    Mutant(
        "the drafter goes on after a commit that disagrees",
        "drafter/session.py",
        "        self._restart(epoch, start, committed)\n\n    @property",
        "        pass\n\n    @property",
        CORE,
    ),
    Mutant(
        "the drafter keeps the cache of what was rolled back",
        "drafter/session.py",
        "self.computed = min(self.computed, kept)",
        "pass",
        CORE,
    ),
    Mutant(
        "a retry forgets the open",
        "coordinator/core/request.py",
        "        if not self._answered:\n            yield self._open_verify()\n",
        "",
        CORE,
    ),
    Mutant("retries without patience", "coordinator/core/request.py", "2**self._num_retries", "1", CORE),
    Mutant("a rejection does not end the epoch", "verifier/session.py", "self._floor = epoch + 1\n", "pass\n", CORE),
    Mutant(
        "a commit issues no new epoch",
        "coordinator/core/window.py",
        "            self.epoch += 1\n        return agrees",
        "            pass\n        return agrees",
        CORE,
    ),
)


def copy_tree(folder: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)


def run_tests(folder: Path, tests: Sequence[str]) -> tuple[int, str]:
    """pytest's exit code, and the first test that failed."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=no", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return 1, f"no end within {TIMEOUT_S:g} s"
    failed = re.search(r"^(?:FAILED|ERROR) (?:[^\s\[]*/)?(.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    return done.returncode, failed.group(1) if failed else done.stdout[-300:].strip()


def judge(folder: Path, mutant: Mutant) -> Result:
    """Apply, test, and put things back."""
    path = folder / mutant.path
    text = path.read_text()
    if mutant.old not in text:
        return Result(mutant, "STALE", f"{mutant.path} has changed: adapt the mutant")
    path.write_text(text.replace(mutant.old, mutant.new, 1))
    try:
        code, by = run_tests(folder, mutant.tests)
    finally:
        path.write_text(text)
    if code == 0:
        return Result(mutant, "SURVIVED")
    return Result(mutant, "caught" if code == 1 else "BROKEN", by)


def show(results: Sequence[Result], console: Console) -> None:
    table = Table("mutant", "outcome", "by", title="what is broken, and the first test that sees it")
    for result in results:
        table.add_row(result.mutant.what, result.outcome, result.by, style=None if result.is_good else "red")
    console.print(table)
    console.print(f"{sum(result.is_good for result in results)} of {len(results)} caught")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description="Break the code; see a test notice.")
    parser.add_argument("--only", default="", help="mutants whose description contains this")
    given = parser.parse_args()
    chosen = [mutant for mutant in SAMPLING + ROWS_AND_TRUST + WHOLE + PROTOCOL if given.only in mutant.what]
    if not chosen:
        parser.error(f"--only {given.only!r}: no mutant's description contains it; leave it out to see all of them")
    console = Console()
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        folder = Path(name)
        copy_tree(folder)
        for tests in dict.fromkeys(tuple(mutant.tests) for mutant in chosen):
            code, by = run_tests(folder, tests)
            if code:
                console.print(f"the tests fail without any mutant: {by}")
                return 1
        results = []
        for mutant in chosen:
            results.append(judge(folder, mutant))
            console.print(f"{results[-1].outcome:9}{mutant.what}", highlight=False)
    show(results, console)
    return 0 if all(result.is_good for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
