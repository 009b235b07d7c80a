"""Where a rule's randomness comes from; an argument, so that a test can throw every coin both ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from paceline import noise
from paceline.noise import Domain


class Coins(Protocol):
    """Noise keyed by domain and absolute position; asking twice gives the same answer."""

    def uniform(self, domain: Domain, position: int) -> float:
        """One number strictly between 0 and 1."""
        ...

    def gumbel(self, domain: Domain, positions: Sequence[int], vocab_size: int, device: torch.device) -> Tensor:
        """Standard Gumbel noise [len(positions), vocab_size], float64."""
        ...


@dataclass(frozen=True, slots=True)
class PhiloxCoins:
    """A request's coins from its seed; for a draft's judgement, those of its epoch.

    Most are not keyed by the epoch, as each position is decided once. That is safe because a rejection under
    `token` depends on no coin and no draft behind it (docs/exactness.md, Traps). Under `block` it does, so the
    coins of a block are: a rejection ends the epoch, and the next block throws new ones.
    """

    seed: int
    epoch: int = 0

    def uniform(self, domain: Domain, position: int) -> float:
        return noise.uniform(self.seed, domain, position, epoch=self.epoch if domain is Domain.BLOCK else 0)

    def gumbel(self, domain: Domain, positions: Sequence[int], vocab_size: int, device: torch.device) -> Tensor:
        return noise.gumbel(self.seed, domain, positions, vocab_size, device=device)
