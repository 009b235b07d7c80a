"""What a trace says of a stretch of time: how well drafts fared, and how long the verifier made anybody wait."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from paceline.trace import Record, Step

_TO_VERIFIERS = ("OpenVerify", "Verify", "Decode")


@dataclass(frozen=True, slots=True)
class Gap:
    """Between two pieces of a request's output, as the coordinator sent them, and what it was made of. Seconds."""

    request_id: str
    at_s: float  # when it ended
    whole_s: float
    unasked_s: float = 0.0  # until the verifier was asked: no draft came, and the wait for one was not over
    queue_s: float = 0.0  # then until its pass began, in the inbox and out of it
    pass_s: float = 0.0

    @property
    def rest_s(self) -> float:
        """The wire, both processes' event loops, and what held the machine up."""
        return max(0.0, self.whole_s - self.unasked_s - self.queue_s - self.pass_s)

    def __str__(self) -> str:
        parts = {"unasked": self.unasked_s, "queue": self.queue_s, "pass": self.pass_s, "rest": self.rest_s}
        shares = ", ".join(f"{name} {1e3 * part:.0f}" for name, part in parts.items())
        return f"{1e3 * self.whole_s:.0f} ms ({shares}) of {self.request_id}"


@dataclass
class Passage:
    """From `from_s` on, until the next one."""

    name: str
    from_s: float
    num_tokens: int = 0
    num_tested: int = 0
    num_accepted: int = 0
    longest_verify_s: float = 0.0  # waiting for a pass, and the pass
    longest_gap: Gap | None = None

    @property
    def longest_gap_s(self) -> float:
        return self.longest_gap.whole_s if self.longest_gap else 0.0

    @property
    def acceptance(self) -> float | None:
        """Accepted over tested; None if nothing was tested."""
        return self.num_accepted / self.num_tested if self.num_tested else None


@dataclass(slots=True)
class _Told:
    """Of a request, since its client was last sent tokens."""

    at_s: float
    asked_s: float | None = None  # when the verifier was first asked for more


def tell(records: Iterable[Record], passages: list[Passage]) -> None:
    """Count every verdict, and every wait for one, into the passage in which it came."""
    told: dict[str, _Told] = {}  # by request
    for record in records:
        if not isinstance(record, Step):
            continue
        passage = next((each for each in reversed(passages) if each.from_s <= record.at_s), None)
        verdict = record.event["verdict"] if record.event["is"] == "Verified" else {}
        for command in record.commands:
            if command["is"] == "Emit" and passage:
                passage.num_tokens += len(command["token_ids"])
        if gaps := _gaps(record, verdict, told):
            longest = max(gaps, key=lambda gap: gap.whole_s)
            if passage and longest.whole_s > passage.longest_gap_s:
                passage.longest_gap = longest
        if passage and verdict:
            passage.num_tested += verdict["num_tested"]
            passage.num_accepted += sum(source == "accepted" for source in verdict["sources"])
            took_s = (verdict["verify_ms"] + verdict["queue_ms"]) / 1e3
            passage.longest_verify_s = max(passage.longest_verify_s, took_s)


def _gaps(record: Step, verdict: Mapping[str, Any], told: dict[str, _Told]) -> list[Gap]:
    """Those that end with `record`; learns who was told, and asked, what."""
    gaps = []
    for command in record.commands:
        match command:
            case {"is": "Emit", "request_id": request_id}:
                if before := told.get(request_id):
                    gaps.append(_gap(request_id, record.at_s, before, verdict))
                told[request_id] = _Told(record.at_s)
            case {"is": "Finish" | "Fail", "request_id": request_id}:
                told.pop(request_id, None)
    for command in record.commands:
        if command["is"] == "Ask" and (ask := command["ask"])["is"] in _TO_VERIFIERS:
            about = ask["draft"] if ask["is"] == "Verify" else ask
            if (since := told.get(about["request_id"])) and since.asked_s is None:
                since.asked_s = record.at_s
    return gaps


def _gap(request_id: str, at_s: float, before: _Told, verdict: Mapping[str, Any]) -> Gap:
    whole_s = at_s - before.at_s
    pass_s, queue_s = verdict.get("verify_ms", 0.0) / 1e3, verdict.get("queue_ms", 0.0) / 1e3
    unasked_s = 0.0 if before.asked_s is None else before.asked_s - before.at_s
    if pass_s + queue_s > whole_s - unasked_s:
        unasked_s = 0.0  # what was answered had been asked before
    pass_s = min(pass_s, whole_s)
    return Gap(request_id, at_s, whole_s, unasked_s, min(queue_s, whole_s - pass_s), pass_s)
