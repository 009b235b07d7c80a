"""What a trace says of a stretch of time: how well drafts fared, and how long the verifier made anybody wait."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from paceline.trace import Record, Step


@dataclass
class Passage:
    """From `from_s` on, until the next one."""

    name: str
    from_s: float
    num_tokens: int = 0
    num_tested: int = 0
    num_accepted: int = 0
    longest_verify_s: float = 0.0  # waiting for a pass, and the pass

    @property
    def acceptance(self) -> float | None:
        """Accepted over tested; None if nothing was tested."""
        return self.num_accepted / self.num_tested if self.num_tested else None


def tell(records: Iterable[Record], passages: list[Passage]) -> None:
    """Count every verdict into the passage in which it came."""
    for record in records:
        if isinstance(record, Step) and record.event["is"] == "Verified":
            passage = next((each for each in reversed(passages) if each.from_s <= record.at_s), None)
            if passage is None:
                continue
            verdict = record.event["verdict"]
            passage.num_tokens += sum(len(c["token_ids"]) for c in record.commands if c["is"] == "Emit")
            passage.num_tested += verdict["num_tested"]
            passage.num_accepted += sum(source == "accepted" for source in verdict["sources"])
            took_s = (verdict["verify_ms"] + verdict["queue_ms"]) / 1e3
            passage.longest_verify_s = max(passage.longest_verify_s, took_s)
