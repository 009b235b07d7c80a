"""The program itself: what it refuses, and one small run of real processes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import policies
from bench.policies import main
from paceline.errors import InvalidInput, Unavailable, UsageError
from tests.deploy.conftest import paceline
from tests.tiny import write_pair


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--policies", "psychic"], "psychic is unknown; choose from fixed, svip"),
        (["--mode", "off"], "off is unknown; choose from sequential, pearl"),
        (["--mode", ""], "'' names nothing"),
        (["--ratio", "0"], "must be numbers from 1 to 1000"),
        (["--temperature", "-1"], "must be numbers from 0 to 10"),
        (["--temperature", "cold"], "cold must be a number"),
        (["--max-minutes", "0"], "0 must be over 0"),
        (["--num-prompts", "1"], "1 must be a whole number from 2 on"),
        (["--rules", "token", "--lengths", "0"], "0 must be a whole number from 1 on"),
        (["--lengths", ""], "must be a whole number from 1 on"),
    ],
)
def test_a_wrong_option_is_refused_with_the_fix(argv: list[str], part: str) -> None:
    with pytest.raises(UsageError, match=re.escape(part)):
        main(argv)


def test_what_would_fail_after_the_measurements_fails_before_them(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="--plot"):
        main(["--plot", "entropy.svg"])
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('"only one"\n')
    with pytest.raises(InvalidInput, match="needs two prompts of at most 960 tokens"):
        main(["--prompts", str(prompts)])


def test_rules_need_a_temperature_to_differ() -> None:
    with pytest.raises(InvalidInput, match="rules differ in sampling only"):
        main(["--rules", "token,block", "--temperature", "0"])
    with pytest.raises(InvalidInput, match="leave it out with --rules"):
        main(["--rules", "token,block", "--ratio", "12"])


def test_the_help_teaches_by_examples_and_explains_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert "\n  paceline bench policies --ratio 6,12,25" in out
    assert "cells[]" in out
    assert policies.__doc__ is not None


def test_a_run_that_breaks_off_keeps_what_it_has(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell: dict[str, Any] = {
        "temperature": 0.0,
        "num_prompts": 3,
        "ratio": None,
        "served": None,
        "rows": [],
        "calibration": None,
        "left_out": [],
    }

    def cells(_: object) -> Iterator[dict[str, Any]]:
        yield cell
        raise Unavailable("the verifier is gone")

    monkeypatch.setattr(policies, "cells", cells)
    assert main(["--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["cells"] == [cell]
    assert document["left_out"] == ["ended early: the verifier is gone"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A tiny pair and four prompts, as options."""
    folder = tmp_path_factory.mktemp("pair")
    target, drafter = write_pair(folder)
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(f"Say the number {i}.") + "\n" for i in range(4)))
    options = ["--target", str(target), "--drafter", str(drafter), "--prompts", str(prompts), "--dtype", "float32"]
    return [*options, "--max-tokens", "12", "--json"]


@pytest.mark.slow
def test_a_sweep_of_real_processes_reports_every_policy_at_both_temperatures(pair: list[str], tmp_path: Path) -> None:
    plot = tmp_path / "entropy.png"
    options = ("--policies", "fixed,svip", "--ratio", "1", "--max-minutes", "2", "--plot", str(plot))
    result = paceline("bench", "policies", *pair, *options, timeout_s=300)
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert [found["temperature"] for found in document["cells"]] == [0, 1]
    for found in document["cells"]:
        assert found["ratio"]["reached"] > 0
        rows = {(entry["mode"], entry["policy"]): entry for entry in found["rows"]}
        names = [("off", "off")]
        names += [(mode, name) for mode in ("sequential", "pearl") for name in ("fixed", "svip", "oracle")]
        assert list(rows) == names
        assert all(entry["tokens_per_s"] > 0 for entry in rows.values())
        for mode in ("sequential", "pearl"):
            fixed = rows[mode, "fixed"]
            # Drafts that were never judged count too, or a mean could exceed the length that all of them have.
            assert 0 < fixed["mean_draft_length"] <= float(fixed["parameters"].partition("=")[2])
        assert rows["off", "off"]["passes_per_token"] == 1
        assert found["calibration"]["num_tested"] > 0
        assert len({entry["parameters"] for entry in found["tuning"] if entry["policy"] == "fixed"}) == 6
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "over fixed" in result.err  # the table


@pytest.mark.slow
def test_rules_are_compared_by_real_processes(pair: list[str]) -> None:
    result = paceline("bench", "policies", *pair, "--rules", "token,block", "--lengths", "2,4", timeout_s=300)
    assert result.code == 0, result.err
    entries = json.loads(result.out)["rules"]
    assert [(entry["length"], entry["rule"]) for entry in entries] == [
        (2, "token"),
        (2, "block"),
        (4, "token"),
        (4, "block"),
    ]
    for entry in entries:
        assert 0 < entry["accepted_per_draft"] <= entry["length"]
        assert ("over_token" in entry) == (entry["rule"] == "block")
