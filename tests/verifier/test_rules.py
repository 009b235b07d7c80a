"""The rules as clients of their equations: hand-made cases, marginals in float64, and laws by sampling.

`test_enumeration` proves `token` exact; here are the other rules, the edges, and the whole chain with real
coins.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from scipy import stats
from torch import Tensor

from paceline import noise, rows, sampling
from paceline.noise import Domain
from paceline.rows import CountRows, DraftRows
from paceline.types import Rule, SamplingParams, Source, Tokens
from verifier.rules import RULES, Judgement, PhiloxCoins, judge, token
from verifier.rules.match import own_sample

GREEDY = SamplingParams(temperature=0)


@dataclass
class FixedCoins:
    """The same uniform for every use of a domain, and no Gumbel noise."""

    accept: float = 0.5
    recover: float = 0.5
    sample: float = 0.5

    def uniform(self, domain: Domain, position: int) -> float:
        given = {Domain.ACCEPT: self.accept, Domain.RECOVER: self.recover, Domain.SAMPLE: self.sample}
        return given[domain]

    def gumbel(self, domain: Domain, positions: Sequence[int], vocab_size: int, device: torch.device) -> Tensor:
        return torch.zeros(len(positions), vocab_size, dtype=torch.float64)


def as_logits(*laws: list[float]) -> Tensor:
    return torch.tensor(laws).log()


def as_rows(*laws: list[float]) -> DraftRows:
    ids, counts = rows.truncate(torch.tensor(laws), len(laws[0]))
    return rows.unpack(rows.pack(ids, counts), len(laws[0]))


def one_hot(draft_ids: Tokens, vocab_size: int) -> DraftRows:
    return as_rows(*([float(v == x) for v in range(vocab_size)] for x in draft_ids))


def test_every_rule_has_its_function() -> None:
    assert RULES.keys() == set(Rule)


# All rules at temperature 0.

LOGITS = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0], [0.0, 1.0, 5.0]])  # argmax 1, 0, 2


@pytest.mark.parametrize("rule", list(Rule))
@pytest.mark.parametrize(
    ("draft_ids", "want"),
    [
        ((1, 0), Judgement(2, 2, Source.BONUS)),
        ((1, 2), Judgement(1, 0, Source.RECOVERED)),
        ((0, 0), Judgement(0, 1, Source.RECOVERED)),
        ((2, 2), Judgement(0, 1, Source.RECOVERED)),
        ((), Judgement(0, 1, Source.SELF_DECODED)),
    ],
)
def test_greedy_keeps_the_argmax_and_nothing_else(rule: Rule, draft_ids: Tokens, want: Judgement) -> None:
    draft_rows = one_hot(draft_ids, 3) if draft_ids else None
    logits = LOGITS[: len(draft_ids) + 1]
    got = judge(rule, logits, draft_ids, GREEDY, PhiloxCoins(1), start=7, draft_rows=draft_rows)
    assert got == want


def test_tested_are_the_accepted_and_the_rejected_one() -> None:
    assert Judgement(2, 5, Source.BONUS).num_tested == 2
    assert Judgement(2, 5, Source.RECOVERED).num_tested == 3
    assert Judgement(3, None, None).num_tested == 3
    assert Judgement(0, 5, Source.SELF_DECODED).num_tested == 0


@pytest.mark.parametrize("rule", list(Rule))
@pytest.mark.parametrize("num_rows", [0, 1, 2, 4])
def test_a_missing_or_extra_row_is_refused(rule: Rule, num_rows: int) -> None:
    with pytest.raises(ValueError, match="target rows for 2 drafted tokens"):
        judge(rule, torch.zeros(num_rows, 3), (1, 0), GREEDY, PhiloxCoins(1), start=0, draft_rows=one_hot((1, 0), 3))


# token


def test_token_keeps_strictly_below_the_ratio() -> None:
    """target 0.25 against draft 0.5: kept for uniforms below one half. The counts make it 0.25 / 0.50001."""
    logits, draft_rows = as_logits([0.25, 0.75], [0.5, 0.5]), as_rows([0.5, 0.5])
    for accept, num_accepted in ((0.4999, 1), (0.5, 0), (0.9, 0)):
        coins = FixedCoins(accept=accept)
        got = token.judge(logits, (0,), SamplingParams(), coins, start=0, draft_rows=draft_rows)
        assert got.num_accepted == num_accepted


def test_token_rejects_at_the_ratio_itself() -> None:
    logits, draft_rows = as_logits([0.25, 0.75], [0.5, 0.5]).double(), as_rows([0.5, 0.5])
    target_probs = sampling.target_probs(logits, SamplingParams())
    ratio = token.accept_probs(target_probs, (0,), draft_rows).item()
    for accept, num_accepted in ((math.nextafter(ratio, 0), 1), (ratio, 0)):
        coins = FixedCoins(accept=accept)
        got = token.judge(logits, (0,), SamplingParams(), coins, start=0, draft_rows=draft_rows)
        assert got.num_accepted == num_accepted


def test_each_use_of_a_coin_has_its_own_domain() -> None:
    """Replacement and bonus are drawn from opposite ends here, by RECOVER and by SAMPLE."""
    logits, draft_rows = as_logits([0.5, 0.25, 0.25], [0.5, 0.25, 0.25]), as_rows([1.0, 0.0, 0.0])
    for coins, want in (
        (FixedCoins(accept=0.9, recover=0.1, sample=0.9), Judgement(0, 1, Source.RECOVERED)),
        (FixedCoins(accept=0.9, recover=0.9, sample=0.1), Judgement(0, 2, Source.RECOVERED)),
        (FixedCoins(accept=0.1, recover=0.1, sample=0.9), Judgement(1, 2, Source.BONUS)),
        (FixedCoins(accept=0.1, recover=0.9, sample=0.1), Judgement(1, 0, Source.BONUS)),
    ):
        assert token.judge(logits, (0,), SamplingParams(), coins, start=0, draft_rows=draft_rows) == want


def test_token_never_keeps_what_the_target_forbids() -> None:
    logits, draft_rows = as_logits([0.0, 1.0], [0.5, 0.5]), as_rows([1.0, 0.0])
    got = token.judge(logits, (0,), SamplingParams(), FixedCoins(accept=2.0**-53), start=0, draft_rows=draft_rows)
    assert got == Judgement(0, 1, Source.RECOVERED)


def test_token_never_keeps_what_its_row_could_not_draw() -> None:
    logits, draft_rows = as_logits([0.5, 0.5], [0.5, 0.5]), as_rows([1.0, 0.0])
    got = token.judge(logits, (1,), SamplingParams(), FixedCoins(accept=2.0**-53), start=0, draft_rows=draft_rows)
    assert got == Judgement(0, 1, Source.RECOVERED)


def test_an_open_draft_kept_whole_emits_nothing_of_its_own() -> None:
    logits = as_logits([0.5, 0.5], [0.5, 0.5])
    got = [
        token.judge(
            logits[:num_rows],
            (0,),
            SamplingParams(),
            FixedCoins(),
            start=0,
            take_bonus=False,
            draft_rows=as_rows([0.5, 0.5]),
        )
        for num_rows in (1, 2)
    ]
    assert got == [Judgement(1, None, None)] * 2


def test_token_without_its_rows_is_refused() -> None:
    for draft_rows in (None, as_rows([0.5, 0.5]), as_rows([0.5, 0.5], [0.5, 0.5], [0.5, 0.5])):
        with pytest.raises(ValueError, match="need as many draft rows"):
            token.judge(torch.zeros(3, 2), (0, 1), SamplingParams(), FixedCoins(), start=0, draft_rows=draft_rows)


def test_equal_laws_leave_no_residual_and_fall_back_to_the_target() -> None:
    row = torch.tensor([0.25, 0.75])
    got = token.residual(row, torch.tensor([1, 0]), torch.tensor([0.75, 0.25], dtype=torch.float64))
    assert got.tolist() == [0.25, 0.75]


@pytest.mark.parametrize("width", [1, 3, 20, 200])
@pytest.mark.parametrize("given", [SamplingParams(), SamplingParams(0.7, 20, 0.9), GREEDY], ids=str)
def test_kept_or_replaced_a_token_has_the_targets_law(width: int, given: SamplingParams) -> None:
    """sum_x draft(x) [accept(x) 1_x + (1 - accept(x)) residual] = target, within 1e-12 in float64."""
    torch.manual_seed(width)
    vocab_size = 200
    target = sampling.target_probs(torch.randn(1, vocab_size, dtype=torch.float64) * 2, given)
    ids, counts = rows.truncate(sampling.target_probs(torch.randn(1, vocab_size) * 2, given), width)
    draft = rows.unpack(rows.pack(ids, counts), vocab_size)
    every = DraftRows(draft.ids.expand(vocab_size, -1), draft.probs.expand(vocab_size, -1))
    accept = token.accept_probs(target.expand(vocab_size, -1), tuple(range(vocab_size)), every)
    mass = rows.dense(draft.ids, draft.probs, vocab_size)[0]
    rejected = (mass * (1 - accept)).sum()
    law = mass * accept + rejected * token.residual(target[0], draft.ids[0], draft.probs[0])
    assert (law - target[0]).abs().max() < 1e-12
    # accepted with probability 1 - TV, the best possible
    assert abs(rejected - (mass - target[0]).abs().sum() / 2) < 1e-12


def chain(prefix: Tokens, vocab_size: int, name: str = "target") -> Tensor:
    """A toy model: logits that depend on the last two tokens."""
    torch_seed = random.Random(f"{name} {prefix[-2:]}").getrandbits(32)
    generator = torch.Generator().manual_seed(torch_seed)
    return torch.randn(vocab_size, generator=generator) * 1.5


def chain_rows(prefix: Tokens, draft_ids: Tokens, vocab_size: int, name: str = "target") -> Tensor:
    return torch.stack([chain(prefix + draft_ids[:at], vocab_size, name) for at in range(len(draft_ids) + 1)])


def sampled_draft(
    prefix: Tokens, length: int, vocab_size: int, given: SamplingParams, seed: int, epoch: int
) -> tuple[Tokens, DraftRows]:
    """A draft as a drafter makes it: truncate, quantise, sample from the counts, pack."""
    draft_ids: Tokens = ()
    kept: list[CountRows] = []
    for at in range(length):
        probs = sampling.target_probs(chain(prefix + draft_ids, vocab_size, "draft")[None], given)
        kept.append(rows.truncate(probs, 3))
        coin = noise.uniform(seed, Domain.DRAFT, len(prefix) + at, epoch=epoch)
        draft_ids += (rows.sample_row(kept[-1].ids[0], kept[-1].counts[0], coin),)
    packed = rows.pack(torch.cat([row.ids for row in kept]), torch.cat([row.counts for row in kept]))
    return draft_ids, rows.unpack(packed, vocab_size, token_ids=draft_ids)


def p_value_of(outputs: list[Tokens], law: dict[Tokens, float]) -> float:
    """Chi-square of outputs against their law; cells below 5 expected are put together."""
    assert set(outputs) <= {tokens for tokens, weight in law.items() if weight > 0}
    expected = {tokens: weight * len(outputs) for tokens, weight in law.items()}
    large = [tokens for tokens, count in expected.items() if count >= 5]
    seen = [outputs.count(tokens) for tokens in large]
    rest = len(outputs) - sum(expected[tokens] for tokens in large)
    cells = [expected[tokens] for tokens in large]
    if rest >= 5:
        seen.append(len(outputs) - sum(seen))
        cells.append(rest)
    total = sum(cells)
    return float(stats.chisquare(seen, [cell * sum(seen) / total for cell in cells]).pvalue)


def chain_law(num_tokens: int, vocab_size: int, given: SamplingParams) -> dict[Tokens, float]:
    law: dict[Tokens, float] = {}
    for tokens in itertools.product(range(vocab_size), repeat=num_tokens):
        weight = 1.0
        for at, x in enumerate(tokens):
            weight *= sampling.target_probs(chain(tokens[:at], vocab_size)[None], given)[0, x].item()
        law[tokens] = weight
    return law


@pytest.mark.parametrize("given", [SamplingParams(), SamplingParams(0.8, 3, 0.9)], ids=str)
def test_token_with_real_coins_has_the_targets_law(given: SamplingParams) -> None:
    """One seed feeds the drafter and the verifier, so a coin used for two things would show."""
    vocab_size, num_runs, base = 4, 1500, 20_260_101
    outputs = []
    for seed in range(base, base + num_runs):
        prefix: Tokens = ()
        epoch = 0
        while len(prefix) < 2:
            draft_ids, draft_rows = sampled_draft(prefix, 2, vocab_size, given, seed, epoch)
            logits = chain_rows(prefix, draft_ids, vocab_size)
            got = token.judge(logits, draft_ids, given, PhiloxCoins(seed), start=len(prefix), draft_rows=draft_rows)
            assert got.token_id is not None
            prefix += (*draft_ids[: got.num_accepted], got.token_id)
            epoch += 1
        outputs.append(prefix[:2])
    p_value = p_value_of(outputs, chain_law(2, vocab_size, given))
    assert p_value > 1e-3, f"seeds from {base}: p = {p_value}"


# match and coupled


def decode(rule: Rule, num_tokens: int, given: SamplingParams, seed: int, vocab_size: int) -> Tokens:
    """Plain decoding: an empty draft, again and again."""
    prefix: Tokens = ()
    while len(prefix) < num_tokens:
        logits = chain(prefix, vocab_size)[None]
        got = judge(rule, logits, (), given, PhiloxCoins(seed), start=len(prefix))
        assert got.source is Source.SELF_DECODED
        assert got.token_id is not None
        prefix += (got.token_id,)
    return prefix


def shared_noise_draft(prefix: Tokens, length: int, given: SamplingParams, seed: int, vocab_size: int) -> Tokens:
    """Another model's guess with the same noise, through the helpers that a drafter uses."""
    draft_ids: Tokens = ()
    for at in range(length):
        probs = sampling.target_probs(chain(prefix + draft_ids, vocab_size, "draft")[None], given)
        gumbel = noise.gumbel(seed, Domain.COUPLED, [len(prefix) + at], vocab_size)
        draft_ids += (sampling.sample(probs[0], gumbel[0]),)
    return draft_ids


def random_draft(prefix: Tokens, length: int, given: SamplingParams, seed: int, vocab_size: int) -> Tokens:
    generator = random.Random(f"{seed} {prefix}")
    return tuple(generator.randrange(vocab_size) for _ in range(length))


def perfect_draft(prefix: Tokens, length: int, given: SamplingParams, seed: int, vocab_size: int) -> Tokens:
    return decode(Rule.COUPLED, len(prefix) + length, given, seed, vocab_size)[len(prefix) :]


@pytest.mark.parametrize("rule", [Rule.COUPLED, Rule.MATCH])
@pytest.mark.parametrize("given", [SamplingParams(), SamplingParams(0.6, 5, 0.9), GREEDY], ids=str)
@pytest.mark.parametrize("drafter", [random_draft, shared_noise_draft, perfect_draft])
def test_output_is_the_plain_decode_whatever_the_draft_and_its_length(
    rule: Rule, given: SamplingParams, drafter: Callable[[Tokens, int, SamplingParams, int, int], Tokens]
) -> None:
    vocab_size, num_tokens = 11, 30
    for seed in (1, 2**62 + 5):
        lengths = random.Random(seed)
        want = decode(rule, num_tokens, given, seed, vocab_size)
        prefix: Tokens = ()
        while len(prefix) < num_tokens:
            draft_ids = drafter(prefix, lengths.randrange(6), given, seed, vocab_size)
            logits = chain_rows(prefix, draft_ids, vocab_size)
            got = judge(rule, logits, draft_ids, given, PhiloxCoins(seed), start=len(prefix), take_bonus=False)
            if drafter is perfect_draft and rule is Rule.COUPLED:
                assert got.num_accepted == len(draft_ids)
            assert got.token_id is not None
            prefix += (*draft_ids[: got.num_accepted], got.token_id)
        assert prefix[:num_tokens] == want


def test_shared_noise_agrees_more_often_than_noise_of_ones_own() -> None:
    seed, n, vocab_size = 8, 3000, 6
    torch.manual_seed(seed)
    target, draft = torch.randn(vocab_size), torch.randn(vocab_size)
    shared = noise.gumbel(seed, Domain.COUPLED, range(n), vocab_size)
    other = noise.gumbel(seed, Domain.SAMPLE, range(n), vocab_size)
    p, q = target.softmax(-1).double(), draft.softmax(-1).double()
    drafted = sampling.sample_log_probs(q.log().expand(n, -1), shared)
    agree = (sampling.sample_log_probs(p.log().expand(n, -1), shared) == drafted).double().mean().item()
    apart = (sampling.sample_log_probs(p.log().expand(n, -1), other) == drafted).double().mean().item()
    exact = (1 / torch.maximum(p[None] / p[:, None], q[None] / q[:, None]).sum(-1)).sum().item()
    assert agree == pytest.approx(exact, abs=4 * (exact * (1 - exact) / n) ** 0.5), f"seed {seed}"
    assert apart == pytest.approx((p * q).sum().item(), abs=0.04), f"seed {seed}"
    assert agree > apart


@pytest.mark.parametrize("domain", [Domain.SAMPLE, Domain.COUPLED])
def test_the_targets_own_sample_has_its_law(domain: Domain) -> None:
    seed, n, given = 31, 20_000, SamplingParams(0.9, 6, 0.97)
    torch.manual_seed(seed)
    logits = torch.randn(8).expand(n, 8)
    own = own_sample(logits, given, PhiloxCoins(seed), start=5, domain=domain).tolist()
    law: dict[Tokens, float] = {
        (v,): w for v, w in enumerate(sampling.target_probs(logits[:1].double(), given)[0].tolist())
    }
    p_value = p_value_of([(x,) for x in own], law)
    assert p_value > 1e-3, f"seed {seed}: p = {p_value}"


def test_match_and_coupled_use_different_noise() -> None:
    given = SamplingParams()
    assert decode(Rule.MATCH, 20, given, 3, 50) != decode(Rule.COUPLED, 20, given, 3, 50)


@pytest.mark.parametrize("rule", list(Rule))
def test_judging_again_gives_the_same_answer(rule: Rule) -> None:
    draft_ids, draft_rows = sampled_draft((1, 2), 4, 9, SamplingParams(), seed=4, epoch=0)
    logits = chain_rows((1, 2), draft_ids, 9)
    first, second = (
        judge(rule, logits, draft_ids, SamplingParams(), PhiloxCoins(4), start=2, draft_rows=draft_rows)
        for _ in range(2)
    )
    assert first == second
