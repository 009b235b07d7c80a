"""`paceline simulate` from the command line: figures, pictures, traces, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.cli import main
from tests.bench.test_recorded import TRUTH, traced

FEW = ("--num-requests", "3", "--max-tokens", "20")


def simulate(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["simulate", *FEW, *arguments]) == 0
    return capsys.readouterr().out


def test_the_same_seed_prints_the_same_figures_byte_for_byte(capsys: pytest.CaptureFixture[str]) -> None:
    rough = ("--json", "--loss", "0.05", "--jitter-ms", "4", "--drafter-life-s", "0.4", "--rate", "20")
    first, second, other = (simulate(capsys, *rough, "--seed", seed) for seed in ("4", "4", "5"))
    assert first == second != other
    assert json.loads(first)["seed"] == 4


def test_every_mode_stands_at_every_distance_with_every_number_of_drafters(capsys: pytest.CaptureFixture[str]) -> None:
    out = simulate(capsys, "--json", "--rtt-ms", "0,50", "--num-drafters", "1,3", "--modes", "off,auto")
    rows = json.loads(out)["rows"]
    assert [(row["rtt_ms"], row["num_drafters"], row["mode"]) for row in rows] == [
        (rtt_ms, num, mode) for rtt_ms in (0, 50) for num in (1, 3) for mode in ("off", "auto")
    ]
    assert all(row["num_tokens"] == 60 for row in rows)
    assert rows[0]["speed_up"] == 1


def test_the_table_says_the_seed_and_what_was_checked(capsys: pytest.CaptureFixture[str]) -> None:
    out = simulate(capsys)
    assert "sequential" in out
    assert "seed 0:" in out
    assert "every output was checked against the target's own" in out


def test_given_costs_are_used(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "cost.json"
    file.write_text(json.dumps({"verifier": {"base_ms": 50}, "drafter": {"base_ms": 1, "per_token_ms": 0.1}}))
    by_file, by_option = (
        json.loads(simulate(capsys, "--json", "--modes", "off", "--hop-ms", "0", *cost))["rows"][0]["seconds"]
        for cost in (("--cost", str(file)), ("--verify-ms", "50,0"))
    )
    assert by_file == by_option == pytest.approx(3 * 20 * 0.05)


def test_a_trace_says_what_to_simulate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "run.trace"
    traced(TRUTH, path)
    capsys.readouterr()
    assert main(["simulate", "--trace", str(path), "--modes", "sequential", "--json"]) == 0
    captured = capsys.readouterr()
    (row,) = json.loads(captured.out)["rows"]
    assert (row["num_requests"], row["num_tokens"]) == (12, 720)
    assert "12 requests" in captured.err


def test_a_picture_is_drawn_of_what_was_swept(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "picture.png"
    simulate(capsys, "--rtt-ms", "0,20", "--num-drafters", "1,2", "--plot", str(file))
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--plot", "x.pdf"], ["--plot='x.pdf'", "must end in .png"]),
        (["--length-policy", "svip"], ["--length-policy", "use fixed:length=N"]),
        (["--rtt-ms", "near"], ["--rtt-ms='near'", "must be a number"]),
        (["--verify-ms", "1,2,3,4,5"], ["--verify-ms", "1 to 4 numbers"]),
        (["--modes", "off,perl"], ["--modes", "did you mean pearl?"]),
        (["--cost", "missing.json"], ["--cost='missing.json'", "cannot be read"]),
        (["--trace", "missing.trace"], ["trace='missing.trace'", "No such file"]),
        (["--num-drafters", "0"], ["--num-drafters='0'", "from 1"]),
        (["--loss", "1"], ["--loss='1'", "0 to 0.99"]),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(
    arguments: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert all(part in captured.err for part in parts), captured.err


def test_a_cost_file_is_checked_number_by_number(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "cost.json"
    for content, part in (
        ({"verifier": {"base_ms": -1}}, "verifier.base_ms must be a number of milliseconds"),
        ({"drafter": {"per_token_ms": 1}}, "drafter must have base_ms"),
        ({"verifier": {"base_ms": 1, "seconds": 2}}, "the others of"),
    ):
        file.write_text(json.dumps(content))
        assert main(["simulate", "--cost", str(file)]) == 2
        assert part in capsys.readouterr().err


def test_a_world_that_spends_its_budget_exits_with_1_and_its_seed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", *FEW, "--max-events", "50", "--seed", "9"]) == 1
    assert "seed 9: 50 events spent" in capsys.readouterr().err


def test_drafters_of_several_kinds_share_the_requests_by_what_they_are_worth(
    capsys: pytest.CaptureFixture[str],
) -> None:
    kinds = ("--json", "--modes", "off,pearl", "--concurrency", "2", "--num-requests", "8", "--max-tokens", "60")
    slow, mixed = (
        json.loads(simulate(capsys, *kinds, "--drafters", drafters))["rows"][1]
        for drafters in ("2x20", "1x1.3,2x20@50:0.5")
    )
    assert (slow["num_drafters"], mixed["num_drafters"]) == (2, 3)
    assert mixed["speed_up"] > 1.1 * slow["speed_up"]


@pytest.mark.parametrize("wrong", ["2", "0x1.3", "2x1.3:2", "2x1.3;1x8", "x3"])
def test_drafters_that_cannot_be_read_are_refused_with_an_example(
    wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "--drafters", wrong]) == 2
    assert "2x1.3,1x8@30:0.6" in capsys.readouterr().err


def test_drafters_are_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--drafters", "2x1.3", "--num-drafters", "3"]) == 2
    assert "leave --num-drafters out" in capsys.readouterr().err
