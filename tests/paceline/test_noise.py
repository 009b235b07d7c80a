"""Noise: Philox against its published answers, and every promise of `paceline.noise`'s docstring."""

from __future__ import annotations

import hashlib
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scipy import stats

from paceline import noise
from paceline.noise import Domain

FULL = 0xFFFFFFFF
# Random123's kat_vectors, philox4x32 10: counter, key, answer.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((FULL,) * 4, (FULL,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], answer: tuple[int, int, int, int]
) -> None:
    assert noise.philox(counter, key) == answer


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_on_tensors_gives_the_same(
    counter: tuple[int, int, int, int], key: tuple[int, int], answer: tuple[int, int, int, int]
) -> None:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    assert tuple(word.item() for word in noise.philox((c0, c1, c2, c3), key)) == answer


def plain_gumbel(seed: int, domain: Domain, position: int, token: int, epoch: int) -> float:
    """The slow twin: one token, Python integers, `math.log`."""
    words = noise.philox((token // 2, position, int(domain), epoch), (seed & FULL, seed >> 32))
    high, low = words[2 * (token % 2)], words[2 * (token % 2) + 1]
    u = ((high << 20 | low >> 12) + 0.5) / 2**52
    return -math.log(-math.log(u))


def test_gumbel_equals_its_plain_twin() -> None:
    seed, positions = 2**63 - 12345, [0, 7, 2**32 - 1]
    got = noise.gumbel(seed, Domain.COUPLED, positions, 301, epoch=5)
    want = [[plain_gumbel(seed, Domain.COUPLED, at, token, 5) for token in range(301)] for at in positions]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-13, atol=1e-13)


def test_gumbel_of_some_tokens_is_the_same_to_the_last_bit() -> None:
    token_ids = torch.tensor([999, 0, 1, 1, 512, 37, 998, 4])
    whole = noise.gumbel(3, Domain.SAMPLE, [10, 11, 12], 1000, epoch=2)
    assert torch.equal(noise.gumbel_at(3, Domain.SAMPLE, 11, token_ids, epoch=2), whole[1, token_ids])


@pytest.mark.parametrize("vocab_size", [1, 2, 63, 64, 65, 1001, 1024])
def test_neither_batch_nor_padded_vocabulary_changes_a_token(vocab_size: int) -> None:
    whole = noise.gumbel(3, Domain.SAMPLE, range(5), 1024)
    assert torch.equal(noise.gumbel(3, Domain.SAMPLE, range(5), vocab_size), whole[:, :vocab_size])
    assert torch.equal(noise.gumbel(3, Domain.SAMPLE, [4, 2], vocab_size), whole[[4, 2], :vocab_size])


def test_no_positions_give_no_rows() -> None:
    assert noise.gumbel(3, Domain.SAMPLE, [], 10).shape == (0, 10)


def test_uniform_is_the_one_behind_token_0() -> None:
    u = noise.uniform(99, Domain.RECOVER, 17, epoch=1)
    want = noise.gumbel(99, Domain.RECOVER, [17], 1, epoch=1).item()
    assert -math.log(-math.log(u)) == pytest.approx(want, rel=1e-13)


def test_seed_domain_position_and_epoch_each_change_the_noise() -> None:
    coins = {
        noise.uniform(seed, domain, position, epoch=epoch)
        for seed in (0, 1, 2**32, 2**63 - 1)
        for domain in Domain
        for position in (0, 1, 2**20)
        for epoch in (0, 1, 2**31)
    }
    assert len(coins) == 4 * len(Domain) * 3 * 3


GOLDEN_UNIFORM = 0.027452234704932743
GOLDEN_GUMBEL = [0.2901309710258382, 0.5312318070074197, 0.6944976226651697]


def test_golden_values() -> None:
    """Outputs of seeded requests depend on these numbers; a change here breaks every recorded seed."""
    assert noise.uniform(1, Domain.ACCEPT, 0) == GOLDEN_UNIFORM
    assert noise.gumbel(1, Domain.COUPLED, [5], 3).tolist() == [GOLDEN_GUMBEL]


def test_extreme_bits_give_finite_noise_and_open_bounds() -> None:
    bits = torch.tensor([0, 2**52 - 1])
    u = bits.to(torch.float64).add(0.5).mul(2.0**-52)
    assert 0 < u[0].item() < u[1].item() < 1
    low, high = noise._gumbel(bits).tolist()
    assert low == pytest.approx(-math.log(53 * math.log(2)))
    assert high == pytest.approx(53 * math.log(2))  # fp32 would stop near 17


def test_log_is_within_two_ulp() -> None:
    torch.manual_seed(0)
    x = torch.cat([torch.rand(20_000, dtype=torch.float64), torch.logspace(-16, 2, 20_000).double()])
    want = x.log()
    assert ((noise._log(x) - want).abs() <= 4.5e-16 * want.abs().clamp(min=1e-300)).all()


def test_noise_has_the_gumbel_law() -> None:
    seed = 20_11
    got = noise.gumbel(seed, Domain.SAMPLE, range(10), 5000).flatten().numpy()
    p_value = stats.kstest(got, "gumbel_r").pvalue
    assert p_value > 1e-3, f"seed {seed}: p = {p_value}"


def test_neighbours_are_uncorrelated() -> None:
    seed = 5
    got = noise.gumbel(seed, Domain.SAMPLE, range(64), 512)
    centred = got - got.mean()
    for shifted in (centred.roll(1, 0), centred.roll(1, 1), centred.roll(2, 1)):
        correlation = (centred * shifted).mean() / centred.square().mean()
        assert abs(correlation.item()) < 4 / math.sqrt(got.numel()), f"seed {seed}"


@pytest.mark.parametrize(("seed", "position", "epoch"), [(-1, 0, 0), (2**63, 0, 0), (0, -1, 0), (0, 2**32, 0)])
def test_a_key_too_wide_for_its_word_is_refused(seed: int, position: int, epoch: int) -> None:
    with pytest.raises(ValueError, match="must be from 0"):
        noise.uniform(seed, Domain.DRAFT, position, epoch=epoch)
    with pytest.raises(ValueError, match="must be from 0"):
        noise.gumbel(seed, Domain.DRAFT, [position], 4, epoch=epoch)


def fingerprint() -> str:
    """SHA-256 of noise of every kind, as this process and its vector units compute it."""
    digest = hashlib.sha256()
    for domain in Domain:
        digest.update(struct.pack("<d", noise.uniform(2**63 - 1, domain, 12345, epoch=7)))
        digest.update(noise.gumbel(77, domain, range(5), 4097, epoch=3).numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize(
    "environment",
    [{"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "2"}, {"ATEN_CPU_CAPABILITY": "default"}],
    ids=lambda given: next(iter(given)),
)
def test_another_process_draws_the_same_bits(environment: dict[str, str]) -> None:
    """With another number of threads, and with other vector instructions than this one."""
    program = "from tests.paceline.test_noise import fingerprint; print(fingerprint())"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=root,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == fingerprint()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_bit_for_bit() -> None:
    here = noise.gumbel(77, Domain.COUPLED, range(8), 4097)
    there = noise.gumbel(77, Domain.COUPLED, range(8), 4097, device="cuda")
    assert torch.equal(here, there.cpu())
    some = torch.tensor([4096, 0, 17, 18])
    assert torch.equal(noise.gumbel_at(77, Domain.COUPLED, 3, some.cuda()).cpu(), here[3, some])
