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
    longest_gap_s: float = 0.0  # between two pieces of a request's output, as the coordinator sent them

    @property
    def acceptance(self) -> float | None:
        """Accepted over tested; None if nothing was tested."""
        return self.num_accepted / self.num_tested if self.num_tested else None


def tell(records: Iterable[Record], passages: list[Passage]) -> None:
    """Count every verdict, and every wait for one, into the passage in which it came."""
    told_s: dict[str, float] = {}  # by request, when its client was last sent tokens
    for record in records:
        if not isinstance(record, Step):
            continue
        passage = next((each for each in reversed(passages) if each.from_s <= record.at_s), None)
        for command in record.commands:
            if command["is"] == "Emit":
                gap_s = record.at_s - told_s.get(command["request_id"], record.at_s)
                told_s[command["request_id"]] = record.at_s
                if passage:
                    passage.num_tokens += len(command["token_ids"])
                    passage.longest_gap_s = max(passage.longest_gap_s, gap_s)
        if passage and record.event["is"] == "Verified":
            verdict = record.event["verdict"]
            passage.num_tested += verdict["num_tested"]
            passage.num_accepted += sum(source == "accepted" for source in verdict["sources"])
            took_s = (verdict["verify_ms"] + verdict["queue_ms"]) / 1e3
            passage.longest_verify_s = max(passage.longest_verify_s, took_s)
