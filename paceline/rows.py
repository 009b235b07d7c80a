"""Sparse draft rows: what a drafter samples from, sends, and is judged by is one and the same law.

Rejection sampling is exact if the row at the verifier is the law the token was drawn from
(docs/algorithms.md, A.6, traps 4 and 5). So the drafter first truncates its row to the likeliest `width`
tokens, then rounds it to integer counts that sum to 65535, and only then samples, from the counts.
`paceline.types.Rows` carries ids and counts; the verifier reads exactly the law count / 65535. A token that
was kept with count 0 is never drafted.

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
from paceline.types import Rows

TOTAL = 65535  # sum of a row's counts: the largest uint16, so that a certain token has a count too
MAX_WIDTH = 1024


class CountRows(NamedTuple):
    """n truncated and quantised rows; a row's counts sum to `TOTAL`."""

    ids: Tensor  # [n, width] int64, distinct within a row, likeliest first
    counts: Tensor  # [n, width] int64, 0 to TOTAL


class DraftRows(NamedTuple):
    """The same n rows as the verifier reads them."""

    ids: Tensor  # [n, width] int64
    probs: Tensor  # [n, width] float64, count / TOTAL


@dataclass(frozen=True, slots=True)
class ReadRows(Rows):
    """Rows that were read, and so checked, already: they carry their law along, wherever their draft goes."""

    law: DraftRows = field(compare=False)

    def drop(self, num_rows: int) -> ReadRows:
        """The same rows without the first `num_rows`."""
        cut = Rows(self.width, self.ids, self.counts).drop(num_rows)
        return ReadRows(cut.width, cut.ids, cut.counts, DraftRows(*(part[num_rows:] for part in self.law)))


def truncate(probs: Tensor, width: int) -> CountRows:
    """The likeliest `width` tokens of `probs` [n, vocab], quantised by largest remainder.

    `width` is clamped to the vocabulary and to 1024.

    Every count is the floor of its share of 65535; what is left over goes, one each, to the largest
    remainders, the likelier token first among equals and the lower id first among equally likely ones. (Which
    of several tokens tied at the cut are kept is up to `topk`.) For example 0.5, 0.3, 0.2 at width 2: shares
    40959.4 and 24575.6, counts 40959 and 24576.
    """
    width = min(width, MAX_WIDTH, probs.shape[-1])
    ids = probs.topk(width, dim=-1).indices.sort(dim=-1).values
    kept, order = probs.double().gather(-1, ids).sort(dim=-1, descending=True, stable=True)
    shares = kept / kept.sum(-1, keepdim=True) * TOTAL
    counts = shares.floor()
    by_remainder = (shares - counts).sort(dim=-1, descending=True, stable=True).indices
    missing = TOTAL - counts.sum(-1, keepdim=True)
    extra = (torch.arange(width, device=probs.device) < missing).double().expand_as(counts)
    return CountRows(ids.gather(-1, order), counts.scatter_add_(-1, by_remainder, extra).long())


def sample_row(ids: Tensor, counts: Tensor, uniform: float) -> int:
    """`sample_rows` of one row [width]."""
    return sample_rows(CountRows(ids[None], counts[None]), [uniform])[0]


def sample_rows(kept: CountRows, uniforms: Sequence[float]) -> list[int]:
    """Of each row the token at integer floor(65535 uniform) of its counts laid end to end, given n uniforms.

    Exact on integers: token v is drawn for counts[v] of the 65535 values. A 52-bit uniform hits each of them
    equally often but for one part in 2^36.
    """
    values = [[min(int(uniform * TOTAL), TOTAL - 1)] for uniform in uniforms]
    at = torch.searchsorted(kept.counts.cumsum(-1), torch.tensor(values, device=kept.counts.device), right=True)
    found: list[int] = kept.ids.gather(-1, at).squeeze(-1).tolist()
    return found


def pack(ids: Tensor, counts: Tensor) -> Rows:
    """Rows for the wire from `ids` and `counts`, both [n, width]."""
    return Rows(
        width=ids.shape[-1],
        ids=ids.cpu().numpy().astype("<u4").tobytes(),
        counts=counts.cpu().numpy().astype("<u2").tobytes(),
    )


def unpack(
    rows: Rows,
    vocab_size: int,
    *,
    token_ids: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> DraftRows:
    """Read rows from the wire, believing nothing; with `token_ids` check that each can come from its own row.

    Raises `PeerFault` unless both fields have the length that `width` says, `width` is 1 to 1024, ids are
    inside the vocabulary and distinct within a row, counts sum to 65535, there is one row for each drafted
    token and its count there is not 0.
    """
    _check_sizes(rows)
    ids = np.frombuffer(rows.ids, "<u4").reshape(-1, rows.width).astype(np.int64)
    counts = np.frombuffer(rows.counts, "<u2").reshape(-1, rows.width).astype(np.int64)
    if ids.size and int(ids.max()) >= vocab_size:
        raise PeerFault(f"draft rows: token id {ids.max()} is outside the vocabulary of {vocab_size}")
    ordered = np.sort(ids, axis=-1)
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        raise PeerFault("draft rows: a token id stands twice in one row")
    if (counts.sum(-1) != TOTAL).any():
        raise PeerFault(f"draft rows: the counts of a row do not sum to {TOTAL}")
    if token_ids is not None:
        _check_drafted(ids, counts, token_ids)
    return DraftRows(torch.from_numpy(ids).to(device), torch.from_numpy(counts / TOTAL).to(device))


def read(rows: Rows, vocab_size: int, *, token_ids: Sequence[int], device: torch.device | str = "cpu") -> ReadRows:
    """`rows` with the law that `unpack` finds in them, which raises PeerFault if there is none."""
    law = unpack(rows, vocab_size, token_ids=token_ids, device=device)
    return ReadRows(rows.width, rows.ids, rows.counts, law)


def dense(ids: Tensor, probs: Tensor, vocab_size: int) -> Tensor:
    """[n, vocab] rows of `probs`' dtype, zero outside the kept `ids`; both arguments are [n, width]."""
    return torch.zeros(len(ids), vocab_size, dtype=probs.dtype, device=probs.device).scatter_(-1, ids, probs)


def _check_sizes(rows: Rows) -> None:
    if not 1 <= rows.width <= MAX_WIDTH:
        raise PeerFault(f"draft rows: width {rows.width} is not from 1 to {MAX_WIDTH}")
    if len(rows.counts) % (2 * rows.width) or len(rows.ids) != 2 * len(rows.counts):
        sizes = f"{len(rows.ids)} bytes of ids and {len(rows.counts)} of counts"
        raise PeerFault(f"draft rows: {sizes} are no rows of width {rows.width}")


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
