"""The engine between sessions and rules, with a toy target: what it commits is what the rule says of the right rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from drafter.engine import DrafterEngine
from paceline import noise, rows, sampling
from paceline.cache_use import CacheUse
from paceline.engine.room import Claim, Sharing, share
from paceline.engine.runner import Chunk
from paceline.errors import Overloaded
from paceline.length_policy import LengthPolicy
from paceline.noise import Domain
from paceline.types import (
    Blame,
    Close,
    Draft,
    Fault,
    OpenDraft,
    OpenVerify,
    Role,
    Rule,
    SamplingParams,
    StepCost,
    Tokens,
    Verdict,
    Verify,
    WorkerInfo,
)
from tests.verifier.test_rules import chain
from verifier.engine import VerifierEngine
from verifier.rules import Judgement, PhiloxCoins, judge, judge_blocks

VOCAB = 6
PENALISED = SamplingParams(repetition_penalty=1.5, frequency_penalty=0.5, logit_bias=((1, 1.0),))


@dataclass
class ToyRunner:
    """The runner's interface over `row_after`: it keeps tokens where a real one keeps keys and values."""

    info: Any
    row_after: Callable[[Tokens], Tensor] = lambda prefix: chain(prefix, VOCAB)
    held: dict[str, list[int]] = field(default_factory=dict)
    num_passes: int = 0
    lost: str | None = None

    def room(self) -> int:
        return 1000

    def cache_use(self, num_preemptions: int = 0) -> CacheUse:
        return CacheUse(1000, sum(map(len, self.held.values())), num_preemptions=num_preemptions)

    def open(self, sequence: str) -> None:
        self.held[sequence] = []

    def adopt(self, sequence: str, token_ids: Sequence[int]) -> int:
        return 0

    def restart(self, sequence: str) -> None:
        self.held[sequence] = []

    def close(self, sequence: str) -> None:
        del self.held[sequence]

    def forget(self, sequence: str) -> None:
        self.held[sequence].clear()

    def length(self, sequence: str) -> int:
        return len(self.held[sequence])

    def claim(self, sequence: str, num_tokens: int) -> Claim:
        return Claim(sequence, len(self.held[sequence]), num_tokens)

    def share(self, claims: Sequence[Claim]) -> Sharing:
        return share(claims, 1000, lambda sequence: len(self.held[sequence]))

    def forward(self, chunks: Sequence[Chunk]) -> Tensor:
        self.num_passes += 1
        out = []
        for chunk in chunks:
            held = self.held[chunk.sequence]
            assert chunk.start <= len(held), "a position was skipped"
            held[chunk.start :] = chunk.token_ids
            ends = range(len(held) - chunk.num_rows + 1, len(held) + 1)
            out += [self.row_after(tuple(held[:end])) for end in ends]
        return torch.stack(out) if out else torch.zeros(0, self.info.vocab_size)


def engine() -> VerifierEngine:
    info = WorkerInfo(Role.VERIFIER, "h:1", 1, "m", "0" * 64, "0" * 64, VOCAB, 1000, 8, (), "float32", "cpu")
    runner: Any = ToyRunner(info)
    return VerifierEngine(runner, info)


def draft_of(prefix: Tokens, length: int, epoch: int, given: SamplingParams, *, is_open: bool) -> Draft:
    """A draft as a drafter makes it."""
    ids: Tokens = ()
    kept = []
    for at in range(length):
        logits = sampling.adjusted_logits(
            chain(prefix + ids, VOCAB, "draft")[None], given, prefix + ids, num_prompt_tokens=2
        )
        kept.append(rows.truncate(sampling.target_probs(logits, given), 3))
        coin = noise.uniform(5, Domain.DRAFT, len(prefix) + at, epoch=epoch)
        ids += (rows.sample_row(kept[-1].ids[0], kept[-1].counts[0], coin),)
    packed = rows.pack(torch.cat([row.ids for row in kept]), torch.cat([row.counts for row in kept]))
    return Draft("r", epoch, len(prefix), ids, is_open, packed)


def said_by_the_rule(rule: Rule, log: Tokens, drafts: Sequence[Draft], seed: int, given: SamplingParams) -> Judgement:
    """What the rule says of these drafts, by rows computed one prefix at a time."""
    ids: Tokens = sum((draft.token_ids for draft in drafts), ())
    befores = [log + ids[:at] for at in range(len(ids) + 1)]
    logits = torch.cat(
        [sampling.adjusted_logits(chain(b, VOCAB)[None], given, b, num_prompt_tokens=2) for b in befores]
    )
    parts = [rows.unpack(draft.rows, VOCAB) for draft in drafts if draft.rows]
    draft_rows = rows.DraftRows(torch.cat([part.ids for part in parts]), torch.cat([part.probs for part in parts]))
    common: Any = {"start": len(log), "take_bonus": not drafts[-1].is_open, "draft_rows": draft_rows}
    if rule is Rule.BLOCK:
        coins = PhiloxCoins(seed, drafts[0].epoch)
        return judge_blocks(logits, [draft.token_ids for draft in drafts], given, coins, **common)
    return judge(rule, logits, ids, given, PhiloxCoins(seed), **common)


@pytest.mark.parametrize("rule", [Rule.TOKEN, Rule.BLOCK])
@pytest.mark.parametrize("given", [SamplingParams(), PENALISED], ids=["plain", "penalised"])
def test_what_is_committed_is_what_the_rule_says_of_each_positions_own_row(rule: Rule, given: SamplingParams) -> None:
    """Open and closed drafts, one or two a pass, after a retained row and after a pending token, over epochs."""
    for seed in range(25):
        rng = random.Random(seed)
        it = engine()
        it.handle(0, OpenVerify("r", (1, 2), given, rule, seed, num_decode=1))
        ((_, first),) = it.step()
        assert isinstance(first, Verdict)
        log: Tokens = (1, 2, *first.token_ids)
        for epoch in range(4):
            for _ in range(3):
                drafts = [draft_of(log, rng.randint(1, 3), epoch, given, is_open=True)]
                if rng.random() < 0.5:
                    then = log + drafts[0].token_ids
                    drafts.append(draft_of(then, rng.randint(1, 3), epoch, given, is_open=rng.random() < 0.5))
                want = said_by_the_rule(rule, log, drafts, seed, given)
                for draft in drafts:
                    assert it.handle(0, Verify(draft)) == []
                ((_, verdict),) = it.step()
                assert isinstance(verdict, Verdict)
                ids: Tokens = sum((draft.token_ids for draft in drafts), ())
                own = () if want.token_id is None else (want.token_id,)
                assert verdict.token_ids == ids[: want.num_accepted] + own, seed
                log += verdict.token_ids
                if want.num_accepted < len(ids):
                    break


def test_under_block_the_first_token_is_not_judged_by_the_retained_row_alone() -> None:
    """Under token a first token that fails needs no pass. A block may keep it for what follows it."""
    num_passes: dict[Rule, list[int]] = {}
    for rule in (Rule.TOKEN, Rule.BLOCK):
        for seed in range(30):
            it = engine()
            runner: Any = it.runner
            it.handle(0, OpenVerify("r", (1, 2), SamplingParams(), rule, seed, num_decode=1))
            it.step()
            log = tuple(it._entries["0/r"].session.log)
            it.handle(0, Verify(draft_of(log, 1, 0, SamplingParams(), is_open=True)))
            it.step()
            log = tuple(it._entries["0/r"].session.log)
            if it._entries["0/r"].session.retained is None:
                continue
            before = runner.num_passes
            it.handle(0, Verify(draft_of(log, 3, 0, SamplingParams(), is_open=True)))
            it.step()
            num_passes.setdefault(rule, []).append(runner.num_passes - before)
    assert set(num_passes[Rule.TOKEN]) == {0, 1}
    assert set(num_passes[Rule.BLOCK]) == {1}


def test_nothing_that_is_asked_reaches_beyond_the_context() -> None:
    """It would fail the whole step, and so every request in it: a peer's mistake may cost only its own."""
    it = engine()
    it.handle(0, OpenVerify("r", (1, 2), SamplingParams(temperature=0), Rule.MATCH, 1, num_decode=5000))
    while it.has_work():
        replies = it.step()
    assert it._entries["0/r"].session.decode_until == it.runner.room()
    assert not any(isinstance(reply, Fault) for _, reply in replies)
    draft = Draft("r", 0, it.runner.room() - 1, (1, 2, 0))
    ((_, fault),) = it.handle(0, Verify(draft))
    assert isinstance(fault, Fault)
    assert fault.blame is Blame.DRAFTER


@pytest.mark.parametrize("role", Role)
def test_what_a_pass_takes_is_told_and_follows_a_machine_that_becomes_slower(role: Role) -> None:
    """`WorkerInfo.cost` is what the coordinator plans with: measured at the start, renewed while running."""
    now_s, pass_s = [0.0], [0.005]
    runner = slow_runner(now_s, pass_s)
    it: VerifierEngine | DrafterEngine
    if role is Role.VERIFIER:
        it = VerifierEngine(runner, runner.info, clock=lambda: now_s[0])
        it.handle(0, OpenVerify("r", (1, 2), SamplingParams(0), Rule.MATCH, 1, num_decode=900))
    else:
        it = DrafterEngine(runner, runner.info, clock=lambda: now_s[0])
        policy = LengthPolicy.parse("fixed:length=64")
        it.handle(0, OpenDraft("r", 0, (1, 2), SamplingParams(0), Rule.MATCH, 1, policy, window=64, end=900))
    assert it.info.cost is None, "nothing is known yet"
    for context, ms in ((400, 5.0), (800, 10.0)):
        pass_s[0] = ms / 1e3
        for _ in range(400):
            it.step()
        assert it.info.cost is not None
        assert it.info.cost.ms(num_tokens=1, num_seqs=1, context=context) == pytest.approx(ms, rel=0.15)


def slow_runner(now_s: list[float], pass_s: list[float]) -> Any:
    """A runner each of whose passes takes `pass_s[0]` of the clock `now_s[0]`."""
    runner: Any = engine().runner
    forward = runner.forward

    def timed(chunks: Sequence[Chunk]) -> Tensor:
        now_s[0] += pass_s[0]
        rows: Tensor = forward(chunks)
        return rows

    runner.forward = timed
    return runner


def test_its_places_are_divided_between_coordinators() -> None:
    it = engine()

    def opens(peer: int, name: str) -> None:
        it.handle(peer, OpenVerify(name, (1, 2), SamplingParams(0), Rule.MATCH, 1))

    for i in range(8):
        opens(1, f"a{i}")
    with pytest.raises(Overloaded):
        opens(2, "b")
    it.handle(1, Close("a0"))
    with pytest.raises(Overloaded):
        opens(1, "a8")
    opens(2, "b")
    it.drop(2)
    opens(1, "a8")
    assert it.num_requests == 8


def costing(ms: StepCost) -> VerifierEngine:
    """One whose passes are known to cost so much."""
    it = engine()
    it._info = replace(it._info, cost=ms)
    it.cost.seen = lambda info, chunks, ms: info  # type: ignore[method-assign]
    return it


def held(it: VerifierEngine) -> int:
    """Tokens in the cache, of all requests."""
    cache = it.info.cache
    assert cache
    return cache.num_used_tokens


@pytest.mark.parametrize("is_waiting", [False, True], ids=["decoding", "waiting for a draft"])
def test_a_long_prompt_lengthens_nobodys_pass_by_more_than_its_share(is_waiting: bool) -> None:
    it, prompt = costing(StepCost(39.0, 1.0, 0.0, 0.0)), (1,) * 300
    it.handle(0, OpenVerify("r", (1, 2), SamplingParams(), Rule.TOKEN, 0, num_decode=1 if is_waiting else 50))
    assert it.step()
    it.handle(0, OpenVerify("long", prompt, SamplingParams(), Rule.TOKEN, 0, num_decode=1))
    sizes = []
    for _ in range(3):
        before = held(it)
        assert bool(it.step()) is not is_waiting, "the one under way gets its token in each pass"
        sizes.append(held(it) - before - (not is_waiting))
    assert sizes == [80, 80, 80], "twice what a pass of one token takes"
    while all(reply.request_id != "long" for _, reply in it.step()):
        pass


def test_a_prompt_that_is_alone_is_forwarded_whole() -> None:
    it = costing(StepCost(39.0, 1.0, 0.0, 0.0))
    it.handle(0, OpenVerify("long", (1,) * 300, SamplingParams(), Rule.TOKEN, 0, num_decode=1))
    assert it.step()


def test_time_in_the_inbox_is_time_in_the_queue() -> None:
    it = engine()
    it.handle(0, OpenVerify("r", (1, 2), SamplingParams(), Rule.TOKEN, 0, num_decode=1), 0.5)
    ((_, verdict),) = it.step()
    assert isinstance(verdict, Verdict)
    assert 500 <= verdict.queue_ms < 1500
