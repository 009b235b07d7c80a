"""What a rule says of a draft."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.types import Source


@dataclass(frozen=True, slots=True)
class Judgement:
    """The first `num_accepted` drafted tokens stand; then comes `token_id`, the target's own.

    `token_id` and `source` are None only after an open draft that was kept whole under a rule with rows: the row after
    it is retained and judges the successor.
    """

    num_accepted: int
    token_id: int | None
    source: Source | None  # RECOVERED, BONUS or SELF_DECODED

    @property
    def num_tested(self) -> int:
        """Drafted tokens accepted, plus the one rejected; `block` looks at the others too, but they decide nothing of
        their own."""
        return self.num_accepted + (self.source is Source.RECOVERED)
