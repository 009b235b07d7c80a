"""Counter-based noise: every coin is a function of (seed, domain, position, epoch, token) alone.

There is no generator and no state, so a coin can be thrown again after a lost message, on another machine or
in another batch, and falls the same way. Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy
as 1, 2, 3") turns a 128-bit counter and a 64-bit key into four 32-bit words:

    key      seed, low word first
    counter  (token // 2, position, domain, epoch); where there is no token, the branch's number for it
    words    0 and 1 belong to the even token of the block, 2 and 3 to the odd one

A word pair gives 52 bits n and the half-step uniform (n + 1/2) / 2^52: exact in float64, and never 0 or 1. A
token's noise depends on its own id only, so neither the batch's shape nor a padded vocabulary changes it.

The integer part is exact in torch's wrapping int64 arithmetic. `torch.log` differs in the last bit between
devices, and even between the body and the tail of one vector; `_log` therefore uses single IEEE operations,
each rounded correctly everywhere, and CPU and CUDA agree bit for bit.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

Word = TypeVar("Word", int, Tensor)

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


class Domain(enum.IntEnum):
    """What a coin is for. No two uses share a domain, so no coin is used twice (docs/algorithms.md, A.6)."""

    DRAFT = 0  # the drafter draws a token from its row; keyed by the epoch as well
    ACCEPT = 1  # the verifier keeps or rejects a drafted token
    RECOVER = 2  # the verifier draws the token that replaces a rejected one
    SAMPLE = 3  # the target's own token: match, bonus, self-decode
    COUPLED = 4  # shared by drafter and verifier under `coupled`
    BLOCK = 5  # the verifier scans a block; keyed by the epoch as well


def uniform(seed: int, domain: Domain, position: int, *, epoch: int = 0, branch: int = 0) -> float:
    """One number of 52 bits, strictly between 0 and 1: for the chain the uniform behind token 0's Gumbel noise.

    `branch`: the number of the branch that it is for; 0 = the chain.
    """
    _check(seed, epoch, [position, branch])
    word_0, word_1, _, _ = philox((branch, position, int(domain), epoch), _key(seed))
    return (((word_0 << 20) | (word_1 >> 12)) + 0.5) * 2.0**-52


def gumbel(
    seed: int,
    domain: Domain,
    positions: Sequence[int],
    vocab_size: int,
    *,
    epoch: int = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard Gumbel noise [len(positions), vocab_size], float64."""
    _check(seed, epoch, positions)
    at = torch.tensor(list(positions), dtype=torch.int64, device=device)[:, None]
    blocks = torch.arange((vocab_size + 1) // 2, device=device)[None, :]
    even, odd = _bits(seed, domain, at, blocks, epoch)
    bits = torch.stack((even, odd), dim=-1).flatten(1)
    return _gumbel(bits[:, :vocab_size])


def gumbel_at(seed: int, domain: Domain, position: int, token_ids: Tensor, *, epoch: int = 0) -> Tensor:
    """The same noise for `token_ids` [n] only, [n] float64: exactly `gumbel(…, [position], …)[0,
    token_ids]`."""
    _check(seed, epoch, [position])
    at = torch.full_like(token_ids, position, dtype=torch.int64)
    even, odd = _bits(seed, domain, at, token_ids.long() >> 1, epoch)
    return _gumbel(torch.where((token_ids & 1).bool(), odd, even))


def philox(counter: tuple[Word, Word, Word, Word], key: tuple[int, int]) -> tuple[Word, Word, Word, Word]:
    """Philox4x32-10 of `counter` under `key`, on Python integers or on int64 tensors that broadcast.

    A product's low word is left unmasked until it has been xored, and the high word's sign bits go with the
    same mask; words stay broadcastable for as long as they can, so that the first two rounds cost almost
    nothing.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product_0, product_1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = ((product_1 >> 32) ^ (c1 ^ k0)) & _MASK
        c2 = ((product_0 >> 32) ^ (c3 ^ k1)) & _MASK
        c1, c3 = product_1, product_0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1 & _MASK, c2, c3 & _MASK


def _bits(seed: int, domain: Domain, at: Tensor, blocks: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
    """52 bits each for the even and for the odd token of every block, as int64."""
    one = torch.ones((), dtype=torch.int64, device=at.device)
    word_0, word_1, word_2, word_3 = philox((blocks, at, one * int(domain), one * epoch), _key(seed))
    return (word_0 << 20) | (word_1 >> 12), (word_2 << 20) | (word_3 >> 12)


def _gumbel(bits: Tensor) -> Tensor:
    """-log(-log u) of u = (bits + 1/2) / 2^52."""
    u = bits.to(torch.float64).add_(0.5).mul_(2.0**-52)
    return _log(_log(u).neg_()).neg_()


# log(1 + f) = s (2 + R(s²)) with s = f / (2 + f): the coefficients of fdlibm's e_log.c, smallest power last.
_LOG_SERIES = (
    1.479819860511658591e-01,
    1.531383769920937332e-01,
    1.818357216161805012e-01,
    2.222219843214978396e-01,
    2.857142874366239149e-01,
    3.999999999940941908e-01,
    6.666666666666735130e-01,
    2.0,
)
_SQRT_HALF_BITS = 0x3FE6A09E << 32  # a little below sqrt(1/2)
_MANTISSA = (1 << 52) - 1


def _log(x: Tensor) -> Tensor:
    """The natural logarithm of normal positive float64 numbers to about 2 ulp, in reproducible steps.

    x = 2^k m with m in [sqrt(1/2), sqrt(2)). No step may be fused into another (no `addcmul`, no `alpha=`).
    """
    bits = x.contiguous().view(torch.int64) - _SQRT_HALF_BITS
    exponent = (bits >> 52).to(torch.float64)
    f = bits.bitwise_and_(_MANTISSA).add_(_SQRT_HALF_BITS).view(torch.float64).sub_(1.0)
    s = f / (f + 2.0)
    z = s * s
    series = z * _LOG_SERIES[0]
    for coefficient in _LOG_SERIES[1:-1]:
        series.add_(coefficient).mul_(z)
    series.add_(_LOG_SERIES[-1])
    return series.mul_(s).add_(exponent.mul_(math.log(2.0)))


def _key(seed: int) -> tuple[int, int]:
    return seed & _MASK, seed >> 32


def _check(seed: int, epoch: int, positions: Sequence[int]) -> None:
    """Anything wider than its word would silently repeat another's noise."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed}: must be from 0 to 2^63 - 1")
    if not 0 <= epoch <= _MASK:
        raise ValueError(f"epoch={epoch}: must be from 0 to 2^32 - 1")
    if positions and (min(positions) < 0 or max(positions) > _MASK):
        raise ValueError(f"positions from {min(positions)} to {max(positions)}: must be from 0 to 2^32 - 1")
