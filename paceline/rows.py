"""Sparse draft rows: what a drafter samples from, sends, and is judged by is one and the same law.

Rejection sampling is exact if the row at the verifier is the law the token was drawn from
(docs/algorithms.md, A.6, traps 4 and 5). So the drafter first truncates its row to the likeliest `width`
tokens, then rounds it to integer counts of `bits` bits that sum to 2^bits - 1, and only then samples, from the
counts. `paceline.types.Rows` carries ids, counts and bits; the verifier reads exactly the law count / (2^bits - 1).
A token that was kept with count 0 is never drafted; where no row of a draft has one, it is not sent.

The order of work at the drafter: `truncate`, `sample_rows`, `pack`; at the verifier: `read`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from paceline.errors import PeerFault
from paceline.types import MAX_ROW_BITS, MIN_ROW_BITS, Rows

MAX_WIDTH = 1024


def total(bits: int) -> int:
    """The sum of a row's counts: the largest of `bits` bits, so that a certain token has a count too."""
    return int(2**bits - 1)


class CountRows(NamedTuple):
    """n truncated and quantised rows; a row's counts sum to `total(bits)`."""

    ids: Tensor  # [n, width] int64, distinct within a row, likeliest first
    counts: Tensor  # [n, width] int64, never rising


class DraftRows(NamedTuple):
    """The same n rows as the verifier reads them."""

    ids: Tensor  # [n, width] int64
    probs: Tensor  # [n, width] float64, count / total(bits)


@dataclass(frozen=True, slots=True)
class ReadRows(Rows):
    """Rows that were read, and so checked, already: they carry their law along, wherever their draft goes."""

    law: DraftRows = field(compare=False, kw_only=True)

    def drop(self, num_rows: int) -> ReadRows:
        """The same rows without the first `num_rows`."""
        cut = Rows(self.width, self.ids, self.counts, self.bits).drop(num_rows)
        law = DraftRows(*(part[num_rows:] for part in self.law))
        return ReadRows(cut.width, cut.ids, cut.counts, cut.bits, law=law)


def truncate(probs: Tensor, width: int, bits: int = MAX_ROW_BITS) -> CountRows:
    """The likeliest `width` tokens of `probs` [n, vocab], quantised to `bits` bits by largest remainder.

    `width` is clamped to the vocabulary and to 1024.

    Every count is the floor of its share of 2^bits - 1; what is left over goes, one each, to the largest
    remainders, the likelier token first among equals and the lower id first among equally likely ones. So a likelier
    token never has a smaller count. (Which of several tokens tied at the cut are kept is up to `topk`.) For example
    0.5, 0.3, 0.2 at width 2 and 16 bits: shares 40959.4 and 24575.6, counts 40959 and 24576.
    """
    width = min(width, MAX_WIDTH, probs.shape[-1])
    ids = probs.topk(width, dim=-1).indices.sort(dim=-1).values
    kept, order = probs.double().gather(-1, ids).sort(dim=-1, descending=True, stable=True)
    shares = kept / kept.sum(-1, keepdim=True) * total(bits)
    counts = shares.floor()
    by_remainder = (shares - counts).sort(dim=-1, descending=True, stable=True).indices
    missing = total(bits) - counts.sum(-1, keepdim=True)
    extra = (torch.arange(width, device=probs.device) < missing).double().expand_as(counts)
    return CountRows(ids.gather(-1, order), counts.scatter_add_(-1, by_remainder, extra).long())


def sample_row(ids: Tensor, counts: Tensor, uniform: float) -> int:
    """`sample_rows` of one row [width]."""
    return sample_rows(CountRows(ids[None], counts[None]), [uniform])[0]


def sample_rows(kept: CountRows, uniforms: Sequence[float]) -> list[int]:
    """Of each row the token at integer floor(sum uniform) of its counts laid end to end, given n uniforms.

    Exact on integers: token v is drawn for counts[v] of their sum's values. A 52-bit uniform hits each of them
    equally often but for one part in 2^36.
    """
    ends = kept.counts.cumsum(-1)
    totals = ends[:, -1].tolist()
    values = [[min(int(uniform * size), size - 1)] for uniform, size in zip(uniforms, totals, strict=True)]
    at = torch.searchsorted(ends, torch.tensor(values, device=ends.device), right=True)
    found: list[int] = kept.ids.gather(-1, at).squeeze(-1).tolist()
    return found


def pack(ids: Tensor, counts: Tensor, bits: int = MAX_ROW_BITS) -> Rows:
    """Rows for the wire from `ids` and `counts`, both [n, width], less the columns in which no count is left."""
    width = max(1, int((counts > 0).any(0).sum()))
    binary = np.unpackbits(
        counts[:, :width].cpu().numpy().astype("<u2").view(np.uint8).reshape(-1, width, 2), axis=-1, bitorder="little"
    )
    return Rows(
        width=width,
        ids=ids[:, :width].cpu().numpy().astype("<u4").tobytes(),
        counts=np.packbits(binary[:, :, :bits].reshape(len(ids), width * bits), axis=-1, bitorder="little").tobytes(),
        bits=bits,
    )


def unpack(
    rows: Rows,
    vocab_size: int,
    *,
    token_ids: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> DraftRows:
    """Read rows from the wire, believing nothing; with `token_ids` check that each can come from its own row.

    Raises `PeerFault` unless both fields have the length that `width` and `bits` say, `width` is 1 to 1024 and `bits`
    8 to 16, ids are inside the vocabulary and distinct within a row, counts sum to 2^bits - 1, there is one row for
    each drafted token and its count there is not 0.
    """
    _check_sizes(rows)
    ids = np.frombuffer(rows.ids, "<u4").reshape(-1, rows.width).astype(np.int64)
    counts = _read_counts(rows)
    if ids.size and int(ids.max()) >= vocab_size:
        raise PeerFault(f"draft rows: token id {ids.max()} is outside the vocabulary of {vocab_size}")
    ordered = np.sort(ids, axis=-1)
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        raise PeerFault("draft rows: a token id stands twice in one row")
    if (counts.sum(-1) != total(rows.bits)).any():
        raise PeerFault(f"draft rows: the counts of a row do not sum to {total(rows.bits)}")
    if token_ids is not None:
        _check_drafted(ids, counts, token_ids)
    return DraftRows(torch.from_numpy(ids).to(device), torch.from_numpy(counts / total(rows.bits)).to(device))


def read(rows: Rows, vocab_size: int, *, token_ids: Sequence[int], device: torch.device | str = "cpu") -> ReadRows:
    """`rows` with the law that `unpack` finds in them, which raises PeerFault if there is none."""
    law = unpack(rows, vocab_size, token_ids=token_ids, device=device)
    return ReadRows(rows.width, rows.ids, rows.counts, rows.bits, law=law)


def dense(ids: Tensor, probs: Tensor, vocab_size: int) -> Tensor:
    """[n, vocab] rows of `probs`' dtype, zero outside the kept `ids`; both arguments are [n, width]."""
    return torch.zeros(len(ids), vocab_size, dtype=probs.dtype, device=probs.device).scatter_add_(-1, ids, probs)


def _check_sizes(rows: Rows) -> None:
    if not 1 <= rows.width <= MAX_WIDTH:
        raise PeerFault(f"draft rows: width {rows.width} is not from 1 to {MAX_WIDTH}")
    if not MIN_ROW_BITS <= rows.bits <= MAX_ROW_BITS:
        raise PeerFault(f"draft rows: counts of {rows.bits} bits are not of {MIN_ROW_BITS} to {MAX_ROW_BITS}")
    if len(rows.counts) % rows.row_bytes or len(rows.ids) != 4 * rows.width * rows.num_rows:
        sizes = f"{len(rows.ids)} bytes of ids and {len(rows.counts)} of counts"
        raise PeerFault(f"draft rows: {sizes} are no rows of width {rows.width} and {rows.bits} bits")


def _read_counts(rows: Rows) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """[num_rows, width], from the bits of each row, the lowest of a count first."""
    packed = np.frombuffer(rows.counts, np.uint8).reshape(-1, rows.row_bytes)
    binary = np.unpackbits(packed, axis=-1, count=rows.width * rows.bits, bitorder="little")
    return binary.reshape(len(packed), rows.width, rows.bits).astype(np.int64) @ (1 << np.arange(rows.bits))


def _check_drafted(
    ids: np.ndarray[tuple[int, int], np.dtype[np.int64]],
    counts: np.ndarray[tuple[int, int], np.dtype[np.int64]],
    token_ids: Sequence[int],
) -> None:
    if len(ids) != len(token_ids):
        raise PeerFault(f"draft rows: {len(ids)} rows for {len(token_ids)} drafted tokens")
    drafted = np.asarray(token_ids, dtype=np.int64).reshape(-1, 1)
    possible = ((ids == drafted) & (counts > 0)).any(-1)
    if not possible.all():
        raise PeerFault(f"draft rows: token {token_ids[int(possible.argmin())]} has no count in its own row")
