"""Sparse rows: counts that sum exactly, a law both sides read alike, and no belief in a peer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from paceline import noise, rows
from paceline.errors import PeerFault
from paceline.noise import Domain
from paceline.types import Rows

TOTAL = rows.total(16)


def random_probs(n: int, vocab_size: int, scale: float, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return (torch.randn(n, vocab_size) * scale).softmax(-1)


def test_largest_remainder_by_hand() -> None:
    ids, counts = rows.truncate(torch.tensor([[0.2, 0.5, 0.3]]), 2)
    assert ids.tolist() == [[1, 2]]
    assert counts.tolist() == [[40959, 24576]]  # shares 40959.4 and 24575.6


def test_equal_shares_go_to_the_lowest_ids_first() -> None:
    ids, counts = rows.truncate(torch.full((1, 4), 0.25), 4)
    assert ids.tolist() == [[0, 1, 2, 3]]
    assert counts.tolist() == [[16384, 16384, 16384, 16383]]


@pytest.mark.parametrize("width", [1, 2, 7, 64, 300])
@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0, 40.0])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_counts_sum_exactly_and_are_within_one_of_their_share(width: int, scale: float, bits: int) -> None:
    probs = random_probs(20, 300, scale, seed=width)
    ids, counts = rows.truncate(probs, width, bits)
    assert ids.dtype == counts.dtype == torch.int64
    assert ids.shape == counts.shape == (20, width)
    assert (counts.sum(-1) == rows.total(bits)).all()
    assert (counts >= 0).all()
    kept = probs.double().gather(-1, ids)
    assert ((counts - kept / kept.sum(-1, keepdim=True) * rows.total(bits)).abs() < 1).all()
    assert (counts[:, 1:] <= counts[:, :-1]).all(), "a likelier token has never the smaller count"
    assert (probs.gather(-1, ids[:, :1]).squeeze(-1) == probs.amax(-1)).all(), "the likeliest comes first"
    assert (kept.min(-1).values == probs.double().topk(width).values.min(-1).values).all()


def test_tokens_without_mass_get_no_count() -> None:
    _, counts = rows.truncate(torch.tensor([[0.0, 1 / 3, 1 / 3, 1 / 3, 0.0]]), 5)
    assert counts.tolist() == [[21845, 21845, 21845, 0, 0]]
    _, counts = rows.truncate(torch.tensor([[0.0, 1.0, 0.0]]), 2)
    assert counts.tolist() == [[TOTAL, 0]]


def test_width_is_clamped_to_the_vocabulary_and_the_wire() -> None:
    assert rows.truncate(random_probs(1, 10, 1.0, seed=0), 64).ids.shape == (1, 10)
    assert rows.truncate(random_probs(1, 3000, 1.0, seed=0), 3000).ids.shape == (1, rows.MAX_WIDTH)


def test_what_is_packed_is_read_bit_for_bit() -> None:
    ids, counts = rows.truncate(random_probs(5, 200_000, 2.0, seed=1), 64)
    packed = rows.pack(ids, counts)
    assert (packed.width, packed.num_rows, len(packed.ids), len(packed.counts)) == (64, 5, 1280, 640)
    read = rows.unpack(packed, 200_000)
    assert torch.equal(read.ids, ids)
    assert torch.equal(read.probs, counts.double() / TOTAL)
    assert torch.equal((read.probs * TOTAL).round().long(), counts)
    assert torch.equal(rows.unpack(packed.drop(2), 200_000).ids, ids[2:])


@pytest.mark.parametrize("width", [1, 2, 3, 64])
@pytest.mark.parametrize("bits", [8, 11, 12, 16])
def test_counts_of_any_bits_come_back_as_they_were(width: int, bits: int) -> None:
    ids, counts = rows.truncate(random_probs(5, 200, 0.1, seed=width), width, bits)
    packed = rows.pack(ids, counts, bits)
    assert len(packed.counts) == 5 * ((width * bits + 7) // 8)
    assert (packed.bits, packed.num_rows) == (bits, 5)
    read = rows.unpack(packed, 200)
    assert torch.equal(read.ids, ids)
    assert torch.equal(read.probs, counts.double() / rows.total(bits))
    assert torch.equal(rows.unpack(packed.drop(3), 200).probs, read.probs[3:])


def test_the_wire_is_little_endian() -> None:
    packed = rows.pack(torch.tensor([[258]]), torch.tensor([[TOTAL]]))
    assert packed == Rows(1, b"\x02\x01\x00\x00", b"\xff\xff")
    assert rows.pack(torch.tensor([[7, 8]]), torch.tensor([[0xFED, 18]]), 12).counts == b"\xed\x2f\x01"


def test_what_was_rounded_to_nothing_in_every_row_is_not_sent() -> None:
    ids, counts = rows.truncate(torch.tensor([[0.9, 0.0999, 0.0001], [0.0, 1.0, 0.0]]), 3, bits=8)
    assert counts.tolist() == [[230, 25, 0], [255, 0, 0]]
    packed = rows.pack(ids, counts, 8)
    assert packed.width == 2
    assert rows.dense(*rows.unpack(packed, 3), 3).tolist() == [[230 / 255, 25 / 255, 0], [0, 1, 0]]


def test_no_rows_are_lawful() -> None:
    read = rows.unpack(Rows(4, b"", b""), 10, token_ids=())
    assert read.ids.shape == read.probs.shape == (0, 4)


def wire(ids: list[list[int]], counts: list[list[int]]) -> Rows:
    return rows.pack(torch.tensor(ids), torch.tensor(counts))


GOOD = wire([[3, 1], [0, 2]], [[TOTAL, 0], [1, TOTAL - 1]])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (replace(GOOD, width=0), "width 0"),
        (replace(GOOD, width=-2), "width -2"),
        (replace(GOOD, width=1025), "width 1025"),
        (replace(GOOD, bits=7), "7 bits"),
        (replace(GOOD, bits=17), "17 bits"),
        (replace(GOOD, bits=8), "8 of counts are no rows"),
        (replace(GOOD, bits=12), "8 of counts are no rows"),
        (replace(GOOD, width=3), "no rows of width 3"),
        (replace(GOOD, ids=GOOD.ids[:-1]), "15 bytes of ids"),
        (replace(GOOD, counts=GOOD.counts[:-1]), "7 of counts"),
        (replace(GOOD, counts=b""), "0 of counts"),
        (wire([[3, 4]], [[TOTAL - 1, 1]]), "token id 4 is outside"),
        (wire([[3, 2**32 - 1]], [[TOTAL - 1, 1]]), "outside the vocabulary of 4"),
        (wire([[3, 3]], [[TOTAL - 1, 1]]), "twice in one row"),
        (wire([[3, 1]], [[TOTAL, 1]]), "do not sum"),
        (wire([[3, 1]], [[TOTAL - 1, 0]]), "do not sum"),
        (wire([[3, 1], [0, 2]], [[TOTAL, 0], [0, 0]]), "do not sum"),
    ],
)
def test_rows_that_break_the_protocol_are_the_peers_fault(bad: Rows, message: str) -> None:
    with pytest.raises(PeerFault, match=message):
        rows.unpack(bad, 4)


@pytest.mark.parametrize(
    ("token_ids", "message"),
    [((3,), "2 rows for 1"), ((3, 2, 1), "2 rows for 3"), ((1, 2), "token 1 has"), ((3, 3), "token 3 has")],
)
def test_a_token_that_its_row_cannot_draw_is_the_peers_fault(token_ids: tuple[int, ...], message: str) -> None:
    assert len(rows.unpack(GOOD, 4, token_ids=(3, 0)).ids) == 2
    with pytest.raises(PeerFault, match=message):
        rows.unpack(GOOD, 4, token_ids=token_ids)


def test_random_bytes_are_refused_or_lawful() -> None:
    generator = np.random.default_rng(seed=3)
    for _ in range(300):
        width, num_bytes = int(generator.integers(0, 5)), int(generator.integers(0, 40))
        given = Rows(width, generator.bytes(2 * num_bytes), generator.bytes(num_bytes))
        try:
            read = rows.unpack(given, 2**31)
        except PeerFault:
            continue
        torch.testing.assert_close(read.probs.sum(-1), torch.ones(len(read.probs), dtype=torch.float64))


def test_dense_puts_mass_where_it_belongs() -> None:
    read = rows.unpack(GOOD, 4)
    want = [[0, 0, 0, 1.0], [1 / TOTAL, 0, (TOTAL - 1) / TOTAL, 0]]
    assert rows.dense(read.ids, read.probs, 4).tolist() == want


def test_sampling_cuts_exactly_at_the_counts() -> None:
    ids, counts = torch.tensor([9, 5, 7, 2]), torch.tensor([3, 0, TOTAL - 4, 1])
    half = [(value + 0.5) / TOTAL for value in (0, 2, 3, TOTAL - 2, TOTAL - 1)]
    assert [rows.sample_row(ids, counts, u) for u in half] == [9, 9, 7, 7, 2]
    assert rows.sample_row(ids, counts, 2.0**-53) == 9
    assert rows.sample_row(ids, counts, 1 - 2.0**-53) == 2


def test_every_integer_is_reached_once() -> None:
    ids, counts = rows.truncate(random_probs(1, 50, 3.0, seed=2), 20)
    drawn = [rows.sample_row(ids[0], counts[0], (value + 0.5) / TOTAL) for value in range(0, TOTAL, 97)]
    cdf = counts[0].cumsum(-1)
    want = [int(ids[0, int((cdf <= value).sum())]) for value in range(0, TOTAL, 97)]
    assert drawn == want


def test_samples_have_the_law_of_the_row() -> None:
    seed, n = 4, 4000
    ids, counts = rows.truncate(random_probs(1, 30, 1.0, seed=seed), 6)
    drawn = [rows.sample_row(ids[0], counts[0], noise.uniform(seed, Domain.DRAFT, at)) for at in range(n)]
    seen = [drawn.count(token) for token in ids[0].tolist()]
    p_value = stats.chisquare(seen, counts[0].double() / TOTAL * n).pvalue
    assert p_value > 1e-3, f"seed {seed}: p = {p_value}"
