"""`fixed`: every draft has the same length (Leviathan et al. 2023, gamma)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fixed:
    """Stop after `length` tokens."""

    length: int

    @property
    def needs_entropy(self) -> bool:
        return False

    def stops(self, draft_length: int, entropy_nats: float) -> bool:
        return draft_length >= self.length

    def observe(self, num_tested: int, num_accepted: int) -> None:
        """Outcomes change nothing."""
