"""Where a round goes: marks at the seams of real processes, and hops from marks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import overhead
from bench.hops import NAMES, SEAMS, rounds
from bench.marks import Mark, Stopwatch, read_marks
from paceline.types import Close, Draft, Verify
from tests.tiny import write_pair


def marks(request_id: str, start: int, begin_s: float, *, verify_ms: float = 4.0) -> list[Mark]:
    """A round in which each seam is passed a millisecond after the one before, and the verdict five later."""
    found, at_s = [], begin_s
    for seam in SEAMS:
        at_s += 0.005 if seam.message == "Verdict" and seam.seam == "answered" else 0.001
        busy_ms = {"Verdict": verify_ms, "Draft": 2.0}.get(seam.message, 0.0)
        found.append(Mark(at_s, *seam, request_id, start, 3, busy_ms))
    return found


def test_the_hops_and_the_work_of_a_round_add_up_to_it() -> None:
    first, second = marks("r", 10, 0.0), marks("r", 13, 0.019)
    (found,) = rounds([*second, *first, *marks("other", 10, 0.004)], {"r"})
    assert found.hops == pytest.approx([1.0] * (len(NAMES) - 1) + [2.0])  # the last: 20 - 16 - 2 ms of drafting
    whole_ms = 1e3 * (second[0].at_s - first[0].at_s)
    assert found.beside_ms + found.verify_ms + found.draft_ms == pytest.approx(whole_ms)


def test_a_draft_judged_by_a_pass_that_began_before_it_came_has_no_round() -> None:
    assert rounds([*marks("r", 10, 0.0, verify_ms=7.0), *marks("r", 13, 0.019)], {"r"}) == []


def test_a_stopwatch_marks_reading_before_and_writing_after_and_leaves_out_what_is_in_no_round(tmp_path: Path) -> None:
    watch = Stopwatch("verifier")
    draft = Draft("r", 1, 10, (1, 2, 3), draft_ms=2.0)

    def cross(message: object) -> object:
        watch.mark("within", message)
        return message

    watch.reading(cross)(Verify(draft))
    watch.writing(cross)(draft)
    watch.mark("taken", Close("r"))
    watch.dump(str(tmp_path / "marks"))
    found = read_marks(str(tmp_path / "marks"))
    assert sorted(found, key=lambda mark: mark.at_s) == [found[1], found[0], *found[2:]]
    assert [(mark.seam, mark.message) for mark in found] == [
        ("within", "Verify"),
        ("read", "Verify"),
        ("within", "Draft"),
        ("written", "Draft"),
    ]
    assert {(mark.request_id, mark.start, mark.num_tokens, mark.busy_ms) for mark in found} == {("r", 10, 3, 2.0)}


def test_every_hop_of_real_processes_is_seen(tmp_path: Path) -> None:
    target, drafter = write_pair(tmp_path)
    prompts, figures = tmp_path / "prompts.jsonl", tmp_path / "figures.json"
    prompts.write_text('{"prompt": "t1 t2 t3"}\n')
    options = ("--prompts", str(prompts), "--num-prompts", "1", "--max-tokens", "24", "--json", str(figures))
    assert overhead.main(["--target", str(target), "--drafter", str(drafter), *options]) == 0
    found = json.loads(figures.read_text())
    assert found["rounds"]["sequential"] > 1
    hops = found["ms"]["sequential"]
    assert all(hops[name]["p50"] >= 0 for name in NAMES[:-1])
    assert hops["all of these in a round"]["p50"] > 0
    assert hops["verdict in, client has read it"]["p50"] > 0
