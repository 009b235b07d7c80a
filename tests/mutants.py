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
COPIED = (
    *("bench", "coordinator", "deploy", "drafter", "models", "paceline", "proto", "tests", "verifier"),
    "pyproject.toml",
)
TIMEOUT_S = 600.0

WORLD = "World(seed=6, vocab_size=4, width=3, bits=16, draft_temperature=1.0)"
ONE_DRAFT = f"test_one_draft_then_the_target_is_exact[2-{WORLD}]"
BLOCK = (f"tests/verifier/test_block.py::{ONE_DRAFT}",)
TOKEN = (f"tests/verifier/test_enumeration.py::{ONE_DRAFT}",)
VERIFIER = ("tests/verifier/test_session.py", "tests/verifier/test_engine.py")
DRAFTER = ("tests/drafter",)
STOPPING = ("tests/drafter/test_stop_before.py",)
OUTCOMES = ("tests/drafter/test_session.py",)
CORE = ("tests/coordinator", "tests/verifier/test_session.py", "tests/drafter/test_session.py")
DEBT = ("tests/coordinator/test_debt.py",)
FAR = ("tests/coordinator/test_far_drafter.py",)
HTTP = ("tests/coordinator/http",)
SIMULATOR = ("tests/bench/test_simulator.py",)
DOOR = ("tests/paceline/test_security.py",)
PARAMETERS = ("tests/paceline/test_adjusted_logits.py",)
TRUST = ("tests/coordinator/test_trust.py",)
ROWS = ("tests/paceline/test_rows.py",)
EXACT = ("tests/coordinator/test_exact_worlds.py", "-k", "path and (closed or queue or late)")
ENDS = ("tests/coordinator/test_ends.py",)
PLACES = ("tests/coordinator/test_placement.py",)
SHARING = ("tests/coordinator/test_sharing.py",)
ADMISSION = ("tests/coordinator/test_admission.py", "tests/coordinator/test_registry.py")
FEED = ("tests/coordinator/test_feed.py",)
CHECK = ("tests/deploy/test_check_lossless.py", "-k", "seed")
SCALING = ("tests/deploy/ray/test_scaling.py",)
RECENT = ("tests/coordinator/test_recent.py",)
CONFIG = ("tests/deploy/test_config_file.py",)
COMPATIBILITY = ("tests/paceline/test_compatibility.py", "-k", "another_wire or does_not_fit")


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
DRAWN = "token_ids = rows.sample_rows(kept, uniforms)"
FULL_ROW = "token_ids = [law.sample_inverse(row, coin) for row, coin in zip(probs, uniforms, strict=True)]"
SENT = "    ids = torch.cat([kept.ids for kept in chain.rows])\n"
DROPPED = """    last = chain.rows[-1]
    if len(chain.rows) > 1:
        if int(last.counts[0][last.ids[0] == chain.tokens[-1]]) < int(last.counts.sum()) // 3:
            chain.tokens.pop()
            chain.rows.pop()
            chain.computed = len(chain.tokens) - 1
"""
TESTED = """            if drafted != token:
                break
            num_accepted += 1
"""
CONTRADICTED = """        if (place := _disagreement(draft, committed)) is not None:
            self._distrust(draft.epoch, place)
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
        "verifier/judging.py",
        "drafts = [draft.token_ids for draft in work.drafts]",
        "drafts = [work.draft_ids]",
        VERIFIER,
    ),
    Mutant(
        "block: the first token judged by the retained row alone",
        "verifier/judging.py",
        "if session.ask.rule is Rule.BLOCK:\n        return None",
        "if False:\n        return None",
        VERIFIER,
    ),
    Mutant(
        "token: the replacement is drawn from the target row",
        "verifier/rules/token.py",
        "row = residual(target_probs[at], draft_rows.ids[at], draft_rows.probs[at])",
        "row = target_probs[at]",
        TOKEN,
    ),
    Mutant("drafter: sampled from the full row, the truncated one sent", "drafter/draws.py", DRAWN, FULL_ROW, DRAFTER),
    Mutant("drafter: a token dropped by its own probability", "drafter/draws.py", SENT, DROPPED + SENT, DRAFTER),
    Mutant(
        "drafter: noise used again after a rollback",
        "drafter/draws.py",
        "at, epoch=session.epoch,",
        "at, epoch=0,",
        DRAFTER,
    ),
    Mutant(
        "suffix: a seed that is given again meets what its coins decided",
        "drafter/suffix.py",
        "if not self.max_shared_tokens or (ask.rule.needs_rows and ask.sampling.seed is not None):",
        "if not self.max_shared_tokens:",
        DRAFTER,
    ),
    Mutant(
        "copied drafts: the one-hot row lies about the token",
        "paceline/packed.py",
        'b"".join(token_id.to_bytes(4, "little") for token_id in token_ids)',
        'b"".join(token_ids[0].to_bytes(4, "little") for _ in token_ids)',
        ("tests/verifier/test_one_hot.py",),
    ),
    Mutant(
        "drafter: a row that ended a draft used after a rollback",
        "drafter/engine.py",
        "self.spare is not None and self.session.computed == len(self.session.tokens)",
        "self.spare is not None",
        STOPPING,
    ),
    Mutant(
        "drafter: a row that ended a draft forwarded again",
        "drafter/engine.py",
        "entry.spare = row.kept()",
        "session.computed -= 1",
        STOPPING,
    ),
    Mutant(
        "adaedl: asked only after the token was drawn",
        "drafter/engine.py",
        "if session.draft_length and entry.policy.stops_before(",
        "if False and entry.policy.stops_before(",
        STOPPING,
    ),
    Mutant(
        "specdecpp: a draft goes on with what was said of the one before",
        "drafter/policies/specdecpp.py",
        "if seen.draft_length > 1 else 1.0",
        "",
        ("tests/drafter/test_policies.py",),
    ),
    Mutant(
        "another drafter's acceptance head is served",
        "paceline/acceptance_head.py",
        "if info.drafter_hash != drafter_hash:",
        "if False:",
        ("tests/paceline/test_acceptance_head.py",),
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
        "verifier/judging.py",
        "retained = target_rows[-1:].clone()",
        "retained = target_rows[-2:-1].clone()",
        VERIFIER,
    ),
    Mutant(
        "off by one: every token judged by its own row",
        "verifier/judging.py",
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
        "verifier/judging.py",
        "retained = target_rows[-1:].clone()",
        "retained = _adjusted(entry, target_rows, work.draft_ids)[-1:]",
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
        "drafter/draws.py",
        "kept = rows.truncate(probs, shape.width, shape.bits)",
        "kept = rows.truncate(probs, shape.width, 8)",
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
        "drafter/draws.py",
        DRAWN,
        DRAWN
        + "\n        probs = law.target_probs(torch.cat([one.row for one in group]), group[0].session.ask.sampling)"
        "\n        kept = rows.truncate(probs, shape.width, shape.bits)",
        DRAFTER,
    ),
    Mutant(
        "trust: every drafter's own word is taken",
        "coordinator/core/placement.py",
        "kind.role is not self.role or kind.is_trusted < self.trusted_only",
        "kind.role is not self.role",
        TRUST,
    ),
    Mutant(
        "trust: block whoever drafts",
        "coordinator/core/rules.py",
        "return Rule.MATCH if is_distrusted else Rule.BLOCK",
        "return Rule.BLOCK",
        TRUST,
    ),
    Mutant(
        "trust: a rule that cannot be exact is not refused",
        "coordinator/core/rules.py",
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
        "drafter/draws.py",
        "epoch=session.epoch,",
        "epoch=0,",
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
        "coordinator/core/ends.py",
        "        if token in spec.stop_token_ids:\n",
        "        if token in spec.stop_token_ids and i == len(tokens) - 1:\n",
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
    Mutant(
        "a place is given by a load that was",
        "coordinator/core/placement.py",
        "if self._entry.get(name) != entry:",
        "if name not in self._workers:",
        ("tests/coordinator/test_placement.py",),
    ),
    Mutant(
        "a simulated drafter hears nothing before its draft is complete",
        "bench/simulator/workers.py",
        "        if run.num_passes == 1:\n",
        "        if run.num_passes:\n",
        SIMULATOR,
    ),
    Mutant(
        "a message overtakes another on a simulated stream",
        "bench/simulator/network.py",
        "arrival_s = self._last_s = max(self._last_s, arrival_s)",
        "self._last_s = arrival_s",
        SIMULATOR,
    ),
    Mutant(
        "a trace goes on behind half a record",
        "paceline/trace.py",
        "            os.truncate(self._file, self._num_bytes)\n",
        "",
        ("tests/paceline/test_trace.py",),
    ),
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
        "        self._restart(epoch, start, committed)\n\n    def",
        "        pass\n\n    def",
        CORE,
    ),
    Mutant(
        "a draft that was not sent counts as tested",
        "drafter/session.py",
        "self.tokens[first : self._start]",
        "self.tokens[first:]",
        OUTCOMES,
    ),
    Mutant(
        "what lies beyond a rejection counts as tested",
        "drafter/session.py",
        TESTED,
        "            num_accepted += drafted == token\n",
        OUTCOMES,
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
        "coordinator/core/debt.py",
        "        if not self.has_answered:\n            yield self._open()\n",
        "",
        CORE,
    ),
    Mutant(
        "a pass for an earlier token is heeded",
        "coordinator/core/request.py",
        "passed.start == len(self.committed)",
        "passed.start <= len(self.committed)",
        CORE,
    ),
    Mutant(
        "a pass is heeded while the verifier owes an answer",
        "coordinator/core/request.py",
        "if self.verifier and not self._debt.owes and passed.start",
        "if self.verifier and passed.start",
        CORE,
    ),
    Mutant(
        "a pass is not heeded",
        "coordinator/core/request.py",
        'yield from self._decode("nothing to draft", now_s, 1 if self._briefing.pace.answers_fast else RUN)',
        "yield from ()",
        CORE,
    ),
    Mutant(
        "a drafter passes while a draft of its own is unverified",
        "drafter/session.py",
        "if not self._is_exhausted or len(self.tokens) > self._committed:",
        "if not self._is_exhausted:",
        CORE,
    ),
    Mutant(
        "a drafter that has found nothing never looks again",
        "drafter/session.py",
        "            self._is_exhausted = False  # more is known now than when it was said\n",
        "",
        CORE,
    ),
    Mutant(
        "what is only drafted is learned",
        "drafter/model_free.py",
        "min(session.num_committed, guesser.num_learned + MAX_LEARNED)",
        "len(session.tokens)",
        DRAFTER,
    ),
    Mutant("retries without patience", "coordinator/core/debt.py", "2**self._num_retries", "1", CORE),
    Mutant(
        "a wedged verifier is waited for ten minutes",
        "coordinator/core/debt.py",
        "if self.has_answered else patience_s",
        "if False else patience_s",
        DEBT,
    ),
    Mutant(
        "drafts in flight have flags of their own",
        "coordinator/core/debt.py",
        "if len(self._window.drafts) > 1:",
        "if False:",
        DEBT,
    ),
    Mutant(
        "a verdict beyond a gap waits for a retry",
        "coordinator/core/request.py",
        "if known < 0 and self.verifier and (ask",
        "if False and (ask",
        DEBT,
    ),
    Mutant(
        "every verdict beyond a gap is asked for",
        "coordinator/core/debt.py",
        "if self._repeated_at == len(self._committed):",
        "if False:",
        DEBT,
    ),
    Mutant(
        "verifiers that were lost before tokens came count for ever",
        "coordinator/core/request.py",
        "        self.num_moves = 0\n        if",
        "        if",
        DEBT,
    ),
    Mutant(
        "refusals of drafters are never forgiven",
        "coordinator/core/request.py",
        "self.num_refusals -= 1",
        "pass",
        DEBT,
    ),
    Mutant(
        "an ask for what the log holds outlives a draft",
        "verifier/session.py",
        "if end > len(self.log):",
        "if True:",
        VERIFIER,
    ),
    Mutant(
        "a draft that overtakes is dropped",
        "verifier/session.py",
        "self._early[ask.draft.start] = _Waiting(ask, now_s, self._num_decodes)",
        "pass",
        VERIFIER,
    ),
    Mutant(
        "drafts that overtake are kept without bound",
        "verifier/session.py",
        "if len(self._early) < _MAX_EARLY:",
        "if True:",
        VERIFIER,
    ),
    Mutant(
        "a draft that overtook outlives its epoch",
        "verifier/session.py",
        "if early.ask.draft.epoch == draft.epoch:",
        "if True:",
        VERIFIER,
    ),
    Mutant(
        "the verifier waits for a far drafter",
        "coordinator/core/request.py",
        "        elif self._decodes_meanwhile:",
        "        elif False:",
        FAR,
    ),
    Mutant(
        "the verifier decodes meanwhile where rows are needed",
        "coordinator/core/briefing.py",
        "if not passes or self._rule.needs_rows or not self.planner.mode.streams:",
        "if not passes or not self.planner.mode.streams:",
        FAR,
    ),
    Mutant(
        "a trial's drafts come in time the more often the shorter they are",
        "coordinator/core/planner.py",
        "if self._needs_rows and self.is_trying:",
        "if False:",
        ("tests/coordinator/test_planner.py",),
    ),
    Mutant(
        "nobody notices a far drafter's silence",
        "coordinator/core/request.py",
        "self._briefing.has_fallen_silent(now_s)",
        "False",
        FAR,
    ),
    Mutant(
        "mode branch: a miss leaves the verifier idle",
        "coordinator/core/request.py",
        "elif not agrees and self._decodes_after_miss",
        "elif False",
        FAR,
    ),
    Mutant(
        "mode branch: a hit forwards the recovered token as well",
        "coordinator/core/briefing.py",
        "        if mode is Mode.BRANCH:\n            return self._rule.needs_rows and",
        "        if mode is Mode.BRANCH:\n            return",
        FAR,
    ),
    Mutant(
        "a drafter that sends a window and its branches is cut off",
        "coordinator/server.py",
        "64 + MAX_BRANCHES + 1",
        "65",
        ("tests/coordinator/test_server.py",),
    ),
    Mutant("a rejection does not end the epoch", "verifier/session.py", "self._floor = epoch + 1\n", "pass\n", CORE),
    Mutant(
        "a commit issues no new epoch",
        "coordinator/core/window.py",
        "            self.epoch += 1\n            self._issued",
        "            self._issued",
        CORE,
    ),
)

PLACEMENT = (
    Mutant(
        "placement: the emptiest drafter, whatever it is worth",
        "coordinator/core/worker.py",
        "return doubt * crowding / gain(self.speed(), passes)",
        "return crowding",
        PLACES,
    ),
    Mutant(
        "placement: a prompt follows its beginning to an overloaded worker",
        "coordinator/core/placement.py",
        "and worker.cost(passes) <= most",
        "",
        PLACES,
    ),
    Mutant(
        "placement: what others have at a worker is not seen",
        "coordinator/core/worker.py",
        "min(self._num_more, num_more), num_more",
        "0, num_more",
        PLACES,
    ),
    Mutant(
        "placement: requests move for a little",
        "coordinator/core/placement.py",
        "then > MOVE_GAIN * now and",
        "then > now and",
        PLACES,
    ),
    Mutant(
        "placement: a full worker is asked again at once",
        "coordinator/core/worker.py",
        " and now_s >= self.full_until_s",
        "",
        SHARING,
    ),
    Mutant(
        "placement: nobody wakes when a full worker may have room",
        "coordinator/core/pipeline.py",
        "self.pools.next_free_s() if is_placing else math.inf",
        "math.inf",
        SHARING,
    ),
    Mutant(
        "placement: a verifier without a place has failed",
        "coordinator/core/pipeline.py",
        "        if event.blame is Blame.FULL:\n",
        "        if False:\n",
        SHARING,
    ),
    Mutant(
        "admission: one that helps no verifier is taken in",
        "coordinator/admission.py",
        "or with_it_s < alone_s",
        "or with_it_s < 100 * alone_s",
        ADMISSION,
    ),
    Mutant(
        "admission: a drafter is judged once for all",
        "coordinator/admission.py",
        "        self._refused.clear()\n",
        "",
        ADMISSION,
    ),
    Mutant(
        "lease: a silent worker is dropped without a warning",
        "coordinator/registry.py",
        "self._feed(WorkerSuspected(link.name))",
        "pass",
        ADMISSION,
    ),
    Mutant(
        "places: whoever asks most gets most",
        "paceline/places.py",
        "held.total() + self._num_kept(peer, held, share) >= self._num_places",
        "held.total() >= self._num_places",
        ("tests/paceline/test_places.py",),
    ),
    Mutant(
        "passes: a coordinator with many requests goes before one with few",
        "verifier/batcher.py",
        "(pair[1].num_pending > 1, pair[0])",
        "pair[1].num_pending > 1",
        ("tests/verifier/test_batcher.py",),
    ),
    Mutant(
        "retry-after: all come back at once",
        "coordinator/core/turnover.py",
        "self._turn_s = min(",
        "self._turn_s, _ = 0.0, min(",
        ("tests/coordinator/test_turnover.py",),
    ),
)

WINDOW = ("tests/coordinator/test_window.py",)
OFFSHOOTS = ("tests/drafter/test_branches.py", "tests/drafter/test_engine.py")
BRANCHES = (
    Mutant(
        "a branch is drawn by the chain's noise", "drafter/draws.py", "branch=session.number", "branch=0", OFFSHOOTS
    ),
    Mutant("branches share their noise", "drafter/branches.py", "_num_begun += 1", "_num_begun = 1", OFFSHOOTS),
    Mutant(
        "the drafter does not go on with the branch that came",
        "drafter/session.py",
        "            self._promote(branch)\n",
        "            pass\n",
        OFFSHOOTS,
    ),
    Mutant(
        "a branch goes on although something else came behind its outcome",
        "drafter/branches.py",
        " or mine[: len(known)] != known:",
        ":",
        OFFSHOOTS,
    ),
    Mutant(
        "a branch that gives way is drawn anew",
        "drafter/branching.py",
        "if not growing.offshoot.draft_length:",
        "if True:",
        OFFSHOOTS,
    ),
    Mutant(
        "only a complete branch goes on behind what is known of it",
        "drafter/branches.py",
        "if len(mine) > len(known):",
        "if len(mine) > len(known) if offshoot.draft else not known:",
        OFFSHOOTS,
    ),
    Mutant(
        "a half drafted branch keeps rows of what is committed",
        "drafter/session.py",
        "branch.rows[num_known:]",
        "branch.rows",
        OFFSHOOTS,
    ),
    Mutant(
        "a branch that is ruled out keeps its place in the pool",
        "drafter/engine.py",
        '        self._branching.settle(f"{entry.peer}/{entry.session.ask.request_id}", entry.session)\n',
        "",
        OFFSHOOTS,
    ),
    Mutant(
        "branches hold up the chains of others",
        "drafter/room.py",
        "if self._is_idle and not self._num_added:",
        "if not self._num_added:",
        OFFSHOOTS,
    ),
    Mutant(
        "a branch is promoted whatever came",
        "coordinator/core/window.py",
        "if epoch is None or committed[branch.position] != branch.token_id:",
        "if epoch is None:",
        WINDOW,
    ),
    Mutant(
        "a late branch is promoted wherever it leaves the chain",
        "coordinator/core/window.py",
        "if (run, position) == self._left else None",
        "if self._left else None",
        WINDOW,
    ),
    Mutant(
        "a promoted branch keeps the name of the run that it left",
        "coordinator/core/window.py",
        "self.admit(replace(branch.draft, epoch=epoch), committed)",
        "self.admit(branch.draft, committed)",
        WINDOW,
    ),
    Mutant(
        "a promoted branch is named by the last epoch, not by the drafter's",
        "coordinator/core/window.py",
        "epoch = next((epoch for num_told, epoch in self._issued if num_told > branch.position), None)",
        "epoch = self.epoch",
        WINDOW,
    ),
    Mutant(
        "a run is distrusted for a branch that does not fit",
        "coordinator/core/window.py",
        "            return None  # the drafter sees that too; what it begins instead has the same name\n",
        "            pass\n",
        WINDOW,
    ),
    Mutant(
        "branches are kept without bound",
        "coordinator/core/window.py",
        "return len(self._branches) < MAX_BRANCHES and ",
        "return ",
        WINDOW,
    ),
    Mutant(
        "tokens of branches are kept without bound",
        "coordinator/core/window.py",
        " and num_tokens + len(branch.draft.token_ids) <= MAX_BRANCH_TOKENS",
        "",
        WINDOW,
    ),
    Mutant(
        "branches outlive their drafter",
        "coordinator/core/window.py",
        "        self.drafts.clear()\n        self._forget_branches()\n        return",
        "        self.drafts.clear()\n        return",
        WINDOW,
    ),
    Mutant(
        "branches of the chain that was admitted are not forgotten",
        "coordinator/core/window.py",
        "            self.drafts.clear()\n            self._forget_branches()\n",
        "            self.drafts.clear()\n",
        WINDOW,
    ),
)

LEAVING = (
    Mutant(
        "queue: idleness earns credit",
        "coordinator/core/fair.py",
        "max(self._floor, self._given.get(client, 0))",
        "0",
        CORE,
    ),
    Mutant(
        "queue: turns by requests",
        "coordinator/core/fair.py",
        "self._given[client] += num_tokens",
        "self._given[client] += 1",
        CORE,
    ),
    Mutant(
        "queue: a full one refuses the newcomer whoever has filled it",
        "coordinator/core/fair.py",
        "        return next(reversed(self._lines[longest]))",
        "        return None",
        CORE,
    ),
    Mutant(
        "breaker: all requests at once after a rest",
        "coordinator/core/breaker.py",
        "not (self.num_trips and num_requests)",
        "True",
        CORE,
    ),
    Mutant("breaker: rests do not grow", "coordinator/core/breaker.py", "2**self.num_trips", "1", CORE),
    Mutant(
        "breaker: whom nobody waits for is never late",
        "coordinator/core/request.py",
        "if self.is_unheard:",
        "if False:",
        ("tests/coordinator/test_breaker.py",),
    ),
    Mutant(
        "breaker: a resting drafter keeps what it holds",
        "coordinator/core/placement.py",
        "(worker.is_draining or worker.pace.breaker.is_resting(now_s))",
        "worker.is_draining",
        CORE,
    ),
    Mutant("drain: new requests still come", "coordinator/core/worker.py", "not self.is_draining and ", "", CORE),
    Mutant(
        "drain: requests leave before there is room elsewhere",
        "coordinator/core/pipeline.py",
        "                elif verifier := self._take_verifier(request, now_s):\n"
        "                    yield from self._run(request, request.move_verifier(verifier, now_s))",
        "                else:\n                    yield from self._run(request, request.lose_verifier(now_s))",
        CORE,
    ),
    Mutant(
        "feed: clients before workers",
        "coordinator/server.py",
        """            if isinstance(command, Ask):
                self._send(command.worker, command.ask)
        for command in commands:
            match command:
""",
        """            pass
        for command in commands:
            match command:
                case Ask(worker, ask):
                    self._send(worker, ask)
""",
        FEED,
    ),
    Mutant(
        "timer: rings though the deadline was put off",
        "coordinator/server.py",
        "if self.pipeline.next_deadline_s() <= self._clock():",
        "if True:",
        FEED,
    ),
    Mutant(
        "timer: an earlier deadline does not move it",
        "coordinator/server.py",
        "if deadline_s >= self._rings_s:",
        "if self._timer:",
        FEED,
    ),
    Mutant(
        "hops: a round with another draft's pass is counted",
        "bench/hops.py",
        "if min(hops[:-1]) >= 0:",
        "if True:",
        ("tests/bench/test_hops.py", "-k", "began_before"),
    ),
    Mutant(
        "resume: the output that the client has is written again",
        "coordinator/core/request.py",
        "[*spec.token_ids, *spec.resumed]",
        "list(spec.token_ids)",
        CORE,
    ),
    Mutant("door: every role may call", "paceline/security.py", "if role not in allowed:", "if role is None:", DOOR),
    Mutant("door: what nobody was named for is open", "paceline/door.py", "or not allowed:", "and allowed:", DOOR),
    Mutant("door: any key opens", "paceline/door.py", "if name is None:", "if header is None:", DOOR),
    Mutant(
        "door: a role by any of its names",
        "paceline/security.py",
        "if len(roles) == 1 else None",
        "if roles else None",
        DOOR,
    ),
    Mutant("certificates are read once", "paceline/security.py", "if now == self._stamp:", "if True:", DOOR),
    Mutant(
        "any certificate vouches for rows",
        "coordinator/trust.py",
        "peer_role(call) is PeerRole.DRAFTER",
        "peer_role(call) is not None",
        TRUST,
    ),
    Mutant(
        "a caller believes any role",
        "paceline/rpc.py",
        '(*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", role.dns_name))',
        '(*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", "localhost"))',
        DOOR,
    ),
    Mutant(
        "a drafter's certificate makes a verifier",
        "coordinator/api.py",
        "check_peer(context, PeerRole(info.role))",
        "pass",
        ("tests/system/test_doors.py", "-k", "registers_its_own"),
    ),
    Mutant(
        "the client resumes from the start",
        "paceline/resume.py",
        "self._request.resume_token_ids.extend(chunk.token_ids)",
        "pass",
        ("tests/paceline/test_resume.py",),
    ),
)

CONTROLLER = ("tests/coordinator/test_controller.py",)
PLANNER = ("tests/coordinator/test_planner.py",)
AUTO = (
    Mutant(
        "a request in use goes straight into a trial",
        "coordinator/core/controller.py",
        "elif not self._is_put_to_use and self._may_try(",
        "elif self._may_try(",
        PLANNER,
    ),
    Mutant(
        "a choice stands whatever becomes of the load",
        "coordinator/core/controller.py",
        "return many <= _OTHER_LOAD * few",
        "return True",
        CONTROLLER,
    ),
    Mutant(
        "a stretch is judged by the load of its last moment",
        "coordinator/core/stretch.py",
        "max(1, round(self._load_s / self.seconds)) if self.seconds else self._num_seqs",
        "self._num_seqs",
        CONTROLLER,
    ),
    Mutant(
        "a pass counts once for every request in it",
        "coordinator/core/passes.py",
        "if (num_tokens, seconds) == self._last:",
        "if False:",
        ("tests/coordinator/test_passes.py",),
    ),
    Mutant(
        "a promise counts other passes than it sizes",
        "coordinator/core/conditions.py",
        "_SETTLING = 3",
        "_SETTLING = 2",
        CONTROLLER,
    ),
    Mutant(
        "asks that wait for a pass are a worker's requests",
        "paceline/engine_thread.py",
        "return self._engine.num_requests\n",
        "return self._engine.num_requests + self._inbox.qsize()\n",
        ("tests/paceline/test_worker.py",),
    ),
    Mutant(
        "race: an open that was lost leaves the first token to the draft",
        "coordinator/core/debt.py",
        "is_first = self._rule.needs_rows and not self.has_answered",
        "is_first = False",
        DEBT,
    ),
    Mutant(
        "race: a verifier that begins without waiting for the drafter judges its drafts",
        "coordinator/core/request.py",
        "        if not self._expects_drafts:\n            self._went_apart = self.rule.needs_rows\n",
        "",
        ("tests/coordinator/test_request.py",),
    ),
    Mutant(
        "race: a draft that is there before the prompt is read is judged first",
        "verifier/session.py",
        "chain = [] if self._owes_first else self._chain()",
        "chain = self._chain()",
        (*EXACT[:1], "-k", "when_a_draft and DDD"),
    ),
    Mutant(
        "race: a draft that comes while the verifier decodes alone is judged",
        "coordinator/core/request.py",
        "return self._went_apart and not self._briefing.planner.is_trying",
        "return False",
        (*EXACT[:1], "-k", "when_a_draft"),
    ),
    Mutant(
        "race: what was begun while the verifier decoded alone is judged afterwards",
        "coordinator/core/request.py",
        "            if self._went_apart:\n                yield from self._begin_anew()",
        "            if self._went_apart:\n                self._went_apart = False",
        (*EXACT[:1], "-k", "when_a_draft"),
    ),
    Mutant(
        "race: a new drafter's drafts are judged while the verifier decodes",
        "coordinator/core/request.py",
        "            self._went_apart = self.rule.needs_rows\n        yield Ask(worker.name, self._briefing.open(",
        "            pass\n        yield Ask(worker.name, self._briefing.open(",
        (*EXACT[:1], "-k", "when_a_draft"),
    ),
    Mutant(
        "window: the first one stays, however far the drafter is",
        "coordinator/core/depth.py",
        "if promises[best] > _MARGIN * on.tokens_per_s(self._choice):",
        "if promises[best] > 3 * on.tokens_per_s(self._choice):",
        ("tests/coordinator/test_depth.py",),
    ),
    Mutant(
        "window: a crowd is given as much as one",
        "coordinator/core/depth.py",
        "on = Conditions.of(pace, passes, num_seqs,",
        "on = Conditions.of(pace, passes, 1,",
        ("tests/coordinator/test_depth.py", "-k", "crowd"),
    ),
    Mutant(
        "window: nothing is known of who only ever drafts branches",
        "coordinator/core/pace.py",
        "if not branches or self.draft_s is None:",
        "if not branches:",
        ("tests/coordinator/test_depth.py", "-k", "branch"),
    ),
    Mutant(
        "last stretch: a request that has ended teaches nothing",
        "coordinator/core/request.py",
        "        if self.drafter and self._verifier:",
        "        if False:",
        PLANNER,
    ),
    Mutant(
        "last stretch: a trial outlives its request",
        "coordinator/core/briefing.py",
        "        self.planner.leave(self.pace)",
        "        pass",
        PLANNER,
    ),
    Mutant(
        "last stretch: sequential does not take turns",
        "coordinator/core/briefing.py",
        "or not self.planner.mode.streams:",
        "or False:",
        FAR,
    ),
    Mutant(
        "last stretch: a redraft of a few milliseconds is decoded for",
        "coordinator/core/pace.py",
        "max(_SHORT_REDRAFT_S, _LONG_REDRAFT * self.verify_s)",
        "_LONG_REDRAFT * self.verify_s",
        ("tests/coordinator/test_pace.py",),
    ),
    Mutant(
        "controller: an unknown drafter is waited for",
        "coordinator/core/controller.py",
        "self._trial, 0.0, True",
        "self._trial, 0.0, False",
        CONTROLLER,
    ),
    Mutant(
        "conditions: in pearl the round trip is paid for every pass",
        "coordinator/core/conditions.py",
        "return _Cycle(max(start_s, alone_s), accepted + more, 1 + accepted * first + more * depth)",
        "return _Cycle(start_s * (1 + more), accepted + more, 1 + accepted * first + more * depth)",
        CONTROLLER,
    ),
    Mutant(
        "conditions: others' tokens are in no pass",
        "coordinator/core/conditions.py",
        "return self._pass_s(num_tokens * self.num_seqs)",
        "return self._pass_s(num_tokens)",
        CONTROLLER,
    ),
    Mutant(
        "window: what is behind a wrong token counts as tested",
        "coordinator/core/window.py",
        "            if drafted != token:\n                break\n            self.num_late_right += 1",
        "            self.num_late_right += drafted == token",
        CONTROLLER,
    ),
    Mutant(
        "verifier: a draft ends a decoding run that was asked for behind it",
        "verifier/session.py",
        "any(waiting.num_decodes == self._num_decodes for waiting in last)",
        "last",
        ("tests/verifier/test_session.py", *CONTROLLER),
    ),
)
BENCH = (
    Mutant(
        "load: tokens that come together take no time but the first",
        "bench/serving/call.py",
        "[(at_s - last_s) / (count - known)] * (count - known)",
        "[at_s - last_s]",
        ("tests/bench/serving",),
    ),
    Mutant(
        "load: requests that failed count as completed",
        "bench/serving/figures.py",
        "good = [outcome for outcome in outcomes if not outcome.error]",
        "good = [outcome for outcome in outcomes if outcome.arrivals or outcome.error]",
        ("tests/bench/serving",),
    ),
    Mutant(
        "sweep: reported on the prompts that it chose by",
        "bench/tuning.py",
        "tuple(prompts[1::2])",
        "tuple(prompts[::2])",
        ("tests/bench/test_tuning.py",),
    ),
    Mutant(
        "sweep: points that saw different prompts are compared",
        "bench/tuning.py",
        "points.sort(key=lambda row: (-len(row.samples), -row.tokens_per_s))",
        "points.sort(key=lambda row: -row.tokens_per_s)",
        ("tests/bench/test_tuning.py",),
    ),
    Mutant(
        "oracle: accepted tokens are spared too",
        "bench/oracle.py",
        "wasted = totals.num_drafted - totals.num_accepted",
        "wasted = totals.num_drafted",
        ("tests/bench/test_oracle.py",),
    ),
    Mutant(
        "calibration: the row after the token",
        "bench/calibration.py",
        "len(prompt) - 1 : -1",
        "len(prompt) :",
        ("tests/bench/test_calibration.py",),
    ),
)
ENGINE = (
    Mutant(
        "verifier: a row that is no numbers is judged",
        "verifier/judging.py",
        "if not target.are_finite:",
        "if False:",
        ("tests/verifier/test_faults.py",),
    ),
    Mutant(
        "drafter: a row that is no numbers is drawn from",
        "drafter/draws.py",
        "if not finite[at]:",
        "if False:",
        ("tests/drafter/test_faults.py",),
    ),
    Mutant(
        "a request takes the likeliest tokens of its neighbour's rows",
        "verifier/judging.py",
        "TargetRows(logits[own], likeliest[own],",
        "TargetRows(logits[own], likeliest[:count],",
        VERIFIER,
    ),
    Mutant(
        "graphs: a replay writes where the first step did",
        "paceline/engine/graphs.py",
        "            graph.batch.load(batch)\n",
        "",
        ("tests/engine/test_graphs.py",),
    ),
    Mutant(
        "graphs: padding writes into a block of the pool",
        "paceline/engine/graphs.py",
        "pad(plan, shape, self._scratch,",
        "pad(plan, shape, 0,",
        ("tests/engine/test_graphs.py",),
    ),
)
RAY = (
    Mutant(
        "drafters stay although nobody wants drafts",
        "deploy/ray/scaling.py",
        "    if not demand.num_speculative:\n        return 0",
        "    if not demand.num_speculative:\n        return num_replicas",
        SCALING,
    ),
    Mutant(
        "a stalled pool asks for nothing more",
        "deploy/ray/scaling.py",
        "wanted = max(wanted, num_replicas + 1)\n    return max(1,",
        "wanted = max(wanted, num_replicas)\n    return max(1,",
        SCALING,
    ),
    Mutant(
        "a queue calls for no verifier",
        "deploy/ray/scaling.py",
        "    if demand.num_waiting:\n",
        "    if demand.num_waiting > 10:\n",
        SCALING,
    ),
    Mutant(
        "no coordinator is taken for no demand",
        "deploy/ray/policies.py",
        "            if entries:\n",
        "            if True:\n",
        ("tests/deploy/ray/test_policies.py",),
    ),
    Mutant(
        "a resting drafter counts as a stall",
        "coordinator/demand.py",
        "return request_id in self._speculative and request_id not in self._resting",
        "return request_id in self._speculative",
        ("tests/coordinator/test_demand.py",),
    ),
    Mutant(
        "a coordinator that stays is registered with anew",
        "paceline/registrations.py",
        "            if address not in self._tasks:\n",
        "            if address:\n",
        ("tests/paceline/test_registrations.py",),
    ),
    Mutant(
        "a rank outlives whoever started it",
        "paceline/engine/parallel.py",
        "        _die_with(sys.stdin.buffer)\n        order, connection",
        "        order, connection",
        ("tests/engine/test_guests.py", "-k", "whoever"),
    ),
)
SURVIVAL = (
    Mutant(
        "costs: any finite number is believed",
        "paceline/fields.py",
        "if not 0 <= value <= MAX_MS:",
        "if not 0 <= value < float('inf'):",
        ("tests/paceline/test_codec.py", "-k", "costs"),
    ),
    Mutant(
        "gain: nothing at all is possible",
        "coordinator/core/gain.py",
        "return max(_LEAST, plain_s",
        "return max(0.0, plain_s",
        ("tests/coordinator/test_gain.py",),
    ),
    Mutant(
        "a bug in the core throws away what was decided",
        "coordinator/core/pipeline.py",
        "raise CoreFailed([*commands, *self",
        "raise CoreFailed([*self",
        FEED,
    ),
    Mutant(
        "placement: a verifier gets back what it has failed",
        "coordinator/core/placement.py",
        "if worker.name in rather_not:",
        "if False:",
        PLACES,
    ),
    Mutant(
        "a verifier that fails requests never rests",
        "coordinator/core/pipeline.py",
        "        self.pools.full(event.worker, now_s)\n        return",
        "        return",
        SHARING,
    ),
    Mutant(
        "a worker whose engine hangs says that all is well",
        "paceline/worker.py",
        "if busy_s <= most_s:",
        "if True:",
        ("tests/paceline/test_worker.py", "-k", "hangs"),
    ),
    Mutant(
        "time in the inbox is in no figure",
        "paceline/engine_thread.py",
        "time.monotonic() - came_s)",
        "0.0)",
        ("tests/paceline/test_worker.py", "-k", "inbox"),
    ),
    Mutant(
        "one coordinator takes a worker away from all",
        "paceline/worker.py",
        "if all(each in",
        "if any(each in",
        ("tests/paceline/test_worker.py", "-k", "refuses"),
    ),
    Mutant(
        "passes: a prompt takes all the room there is",
        "verifier/batcher.py",
        "most = room if wish.is_running else min(room, prompt_room)",
        "most = room",
        ("tests/verifier/test_batcher.py",),
    ),
    Mutant(
        "passes: who waits for a draft is not reckoned with",
        "verifier/engine.py",
        "if entry.session.is_running]",
        "if entry.session.is_running and entry.session.work()]",
        ("tests/verifier/test_engine.py", "-k", "lengthens"),
    ),
    Mutant(
        "registration: drafters keep verifiers out",
        "coordinator/registry.py",
        "sum(link.info.role is info.role for link",
        "sum(True for link",
        ADMISSION,
    ),
    Mutant(
        "retry-after: a burst counts as the pace",
        "coordinator/core/turnover.py",
        "(now_s - self._served_s[0]) / (len(self._served_s) - 1)",
        "self._served_s[-1] - self._served_s[-2]",
        ("tests/coordinator/test_turnover.py",),
    ),
    Mutant(
        "whoever is being admitted holds no place",
        "coordinator/service.py",
        "with self.coordinator.place(request.client):",
        "if True:",
        ("tests/coordinator/test_service.py",),
    ),
    Mutant(
        "HTTP: a body is read before the key",
        "coordinator/http/door.py",
        "        if name is None:\n            raise Unauthenticated(NEEDS_KEY)\n        return name",
        "        return name or ''",
        HTTP,
    ),
    Mutant(
        "HTTP: without keys a page comes in by a name of its own",
        "coordinator/http/host.py",
        "return named is not None and is_loopback(named[1].lower())",
        "return named is not None",
        HTTP,
    ),
    Mutant(
        "HTTP: a request may come ever so slowly",
        "coordinator/http/connection.py",
        "if self._reading is None and not",
        "if False and not",
        HTTP,
    ),
    Mutant(
        "a worker may say more than it was asked for",
        "coordinator/server.py",
        "if link.num_owed < 0:",
        "if False:",
        ("tests/system/test_hostile.py", "-k", "floods"),
    ),
    Mutant(
        "what is no step plan fails as it likes",
        "paceline/engine/plan.py",
        "except (TypeError, ValueError, msgpack.UnpackException) as error:",
        "except msgpack.OutOfData as error:",
        ("tests/bench/test_fuzz.py",),
    ),
    Mutant(
        "a stream's end frees nothing",
        "paceline/worker.py",
        "                self._engine.drop(peer)\n",
        "",
        ("tests/system/test_failure.py", "-k", "lost_coordinator and kill"),
    ),
    Mutant(
        "the relay says everything once",
        "bench/relay.py",
        'if fault == "repeat":',
        "if False:",
        ("tests/bench/test_relay.py",),
    ),
)

DOORS = (
    Mutant(
        "HTTP: the likeliest tokens stand beside the wrong one",
        "coordinator/http/logprobs.py",
        "top = reply.top_logprobs[at]",
        "top = reply.top_logprobs[0]",
        ("tests/coordinator/http/test_completions.py",),
    ),
    Mutant(
        "what the law cuts off is told as one of the likeliest",
        "paceline/sampling.py",
        "ids = ((row >= bound) & (row > -torch.inf)).nonzero()",
        "ids = (row >= bound).nonzero()",
        ("tests/paceline/test_sampling.py",),
    ),
    Mutant(
        "counters that are counted again at a request's end",
        "coordinator/metrics_export.py",
        "self._count(metrics, running.counted if running else {})",
        "self._count(metrics, {})",
        ("tests/coordinator/test_metrics_export.py", "-k", "not page"),  # which reads docs
    ),
    Mutant(
        "a cache's counters lose what a verifier counted that has left",
        "coordinator/metrics_state.py",
        "family.add_metric([self._model], self._sums[name])",
        "family.add_metric([self._model], sum(getattr(cache, name) for cache in caches.values()))",
        ("tests/coordinator/test_metrics_export.py", "-k", "not page"),  # which reads docs
    ),
    Mutant(
        "a request is aborted by whoever knows its id",
        "coordinator/server.py",
        "found = self.pipeline.called(request_id, client)",
        "found = [request_id]",
        HTTP,
    ),
    Mutant(
        "traces: an error's text is told",
        "coordinator/telemetry.py",
        "Status(StatusCode.ERROR, type(error).__name__)",
        "Status(StatusCode.ERROR, str(error))",
        ("tests/coordinator/test_telemetry.py",),
    ),
    Mutant(
        "traces: a receiver that is gone holds up the end",
        "coordinator/telemetry.py",
        "await asyncio.to_thread(ending.join, FLUSH_S)",
        "await asyncio.to_thread(ending.join)",
        ("tests/coordinator/test_telemetry.py", "-k", "holds_up"),
    ),
    Mutant(
        "traces: a request is not its caller's",
        "coordinator/telemetry.py",
        "self._callers.pop(spec.request_id, {})",
        "{}",
        ("tests/coordinator/test_telemetry.py",),
    ),
    Mutant(
        "the drafter is told the verifier's seed",
        "coordinator/service.py",
        "draft_seed=secrets.randbits(63)",
        "draft_seed=sampling.seed or secrets.randbits(63)",
        ("tests/coordinator/test_service.py",),
    ),
    Mutant(
        "a stop string that comes with the last token is no reason",
        "coordinator/service.py",
        "reason = FinishReason.STOP if self._is_stopped else reason",
        "pass",
        HTTP,
    ),
    Mutant(
        "the outputs of one call share a seed",
        "coordinator/http/face.py",
        "seed=(seed + i) %",
        "seed=(seed + 0) %",
        HTTP,
    ),
    Mutant(
        "what is not supported is ignored",
        "coordinator/http/unserved.py",
        "        if not any(type(asking[name])",
        "        if False and not any(type(asking[name])",
        HTTP,
    ),
    Mutant(
        "a client that leaves is not noticed",
        "coordinator/http/face.py",
        "await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)",
        "await asyncio.wait((task,))",
        HTTP,
    ),
    Mutant(
        "a route without the key",
        "coordinator/http/app.py",
        "for part in (completions, chat, tokens, abort, probes, playground, traces):",
        "app.include_router(playground.router)\n    for part in (completions, chat, tokens, abort, probes, traces):",
        HTTP,
    ),
    Mutant(
        "HTTP: the key's name is lost",
        "coordinator/http/face.py",
        "request.state.client = name",
        'request.state.client = ""',
        HTTP,
    ),
    Mutant(
        "HTTP: who does not read holds its request for good",
        "coordinator/http/sse.py",
        "asyncio.timeout(self._stall_s)",
        "asyncio.timeout(None)",
        HTTP,
    ),
    Mutant(
        "HTTP: beyond this machine with neither certificates nor keys",
        "coordinator/http/server.py",
        "config.tls is None or keys is not None or config.insecure",
        "True",
        HTTP,
    ),
    Mutant(
        "resume: text that the client has is written again",
        "coordinator/service.py",
        "await asyncio.to_thread(_push, text, spec.resumed, spec)",
        "pass",
        ("tests/coordinator/test_service.py",),
    ),
    Mutant(
        "places in drafts counted from the wrong end",
        "coordinator/core/metrics.py",
        "i = draft.start + at - start",
        "i = at",
        ("tests/coordinator/test_metrics.py",),
    ),
)

FACES = (
    Mutant(
        "metrics: drafts in flight pass for judged ones",
        "coordinator/core/metrics.py",
        "if draft.epoch == verdict.epoch), verdict.num_drafts)",
        "if draft.epoch == verdict.epoch), None)",
        ("tests/coordinator/test_metrics.py",),
    ),
    Mutant(
        "queue: who waits is turned away although it moves",
        "coordinator/core/pipeline.py",
        "if request.verifier is None and now_s < self._moved_s + self.limits.queue_timeout_s:",
        "if False:",
        ("tests/coordinator/test_request.py", "-k", "queue"),
    ),
    Mutant(
        "HTTP: a stop string within min_tokens ends the text",
        "paceline/text.py",
        "return self._held.find(stop, max(0, self._free - len(stop) + 1))",
        "return self._held.find(stop)",
        ("tests/paceline/test_text.py",),
    ),
    Mutant(
        "HTTP: a bound on drafts passes for their length",
        "coordinator/core/controller.py",
        "tuple(sorted({min(length, self._max_length) for length in lengths}))",
        "(self._max_length,)",
        ("tests/coordinator/test_planner.py",),
    ),
    Mutant(
        "traces: a request is told to whoever knows its id",
        "coordinator/recent.py",
        "            if found and found.spec.client == client:",
        "            if found:",
        RECENT,
    ),
    Mutant(
        "traces: all requests are listed to everybody",
        "coordinator/recent.py",
        "return [one for one in self.all() if one.spec.client == client]",
        "return self.all()",
        RECENT,
    ),
    Mutant(
        "traces: one request may take all the room",
        "coordinator/recent.py",
        "if recent.weight + weight > self._max_of_one or ",
        "if ",
        RECENT,
    ),
    Mutant(
        "traces: what was forgotten weighs on",
        "coordinator/recent.py",
        "            self._weight -= recent.weight",
        "            pass",
        RECENT,
    ),
    Mutant(
        "traces: a wait for the request's own pass passes for the network's",
        "coordinator/chrome_trace.py",
        "if request.end >= request.owed and not ask.preverify:",
        "if request.end >= request.owed:",
        ("tests/coordinator/test_chrome_trace.py",),
    ),
    Mutant(
        "traces: bars are drawn over one another",
        "coordinator/chrome_trace.py",
        "if not ends or bar.end_s <= ends[-1]:",
        "if True:",
        ("tests/coordinator/test_chrome_trace.py",),
    ),
    Mutant(
        "options: the environment wins over the flag",
        "deploy/options.py",
        "    if hasattr(given, option.name):",
        "    if hasattr(given, option.name) and not any(map(environ.get, option.twins)):",
        CONFIG,
    ),
    Mutant(
        "options: a shared key wins over the command's own",
        "deploy/config_file.py",
        "found |= own",
        "found = own | found",
        CONFIG,
    ),
    Mutant(
        "options: a secret is printed",
        "deploy/config_file.py",
        "if option.name in SECRETS and value is not None:",
        "if False:",
        CONFIG,
    ),
    Mutant(
        "compatibility: a worker of another wire is taken in",
        "coordinator/registry.py",
        "        check_wire(info.wire_version, info.model)\n",
        "",
        COMPATIBILITY,
    ),
    Mutant(
        "compatibility: a version that is too new passes",
        "paceline/compatibility.py",
        "if fits and not (package.below and _numbers(version) >= _numbers(package.below)):",
        "if fits:",
        COMPATIBILITY,
    ),
    Mutant(
        "doctor: a gain within chance is advice",
        "deploy/doctor_forecast.py",
        "return fastest if fastest.speed_up >= PAYS else",
        "return fastest if True else",
        ("tests/deploy/test_doctor.py", "-k", "chance"),
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
    mutants = (
        *SAMPLING,
        *ROWS_AND_TRUST,
        *WHOLE,
        *PROTOCOL,
        *PLACEMENT,
        *BRANCHES,
        *LEAVING,
        *AUTO,
        *BENCH,
        *ENGINE,
        *SURVIVAL,
        *RAY,
        *DOORS,
        *FACES,
    )
    chosen = [mutant for mutant in mutants if given.only in mutant.what]
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
