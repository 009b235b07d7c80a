"""`paceline bench`: the group of benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import output
from bench.options import Parser
from deploy.bench import BENCHMARKS
from deploy.cli import main
from paceline.errors import InvalidInput, UsageError


def test_the_group_lists_its_benchmarks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in BENCHMARKS)
    assert main(["bench"]) == 2


def test_an_unknown_benchmark_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "policy"]) == 2
    assert "did you mean policies?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["serve", "--datset-name", "custom"], ["--datset-name: unknown option", "did you mean --dataset-name?"]),
        (["serve", "--backend", "opnai"], ["--backend='opnai'", "did you mean openai?", "openai-chat"]),
        (["serve", "--compare", "off,perl"], ["--compare: perl is unknown", "did you mean pearl?"]),
        (["serve", "--num-prompt", "3"], ["--num-prompt: unknown option", "did you mean --num-prompts?"]),
        (["serve", "--num-prompts", "0"], ["--num-prompts: 0 must be a whole number from 1 on"]),
        (["overload", "--jsn", "-"], ["did you mean --json?", "paceline bench overload --help"]),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_nearest(
    argv: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *argv]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1), err
    assert all(part in err for part in parts), err


def parsed(argv: list[str], **environ: str) -> Any:
    it = Parser("core", "about", environ=environ)
    it.add_argument("--num-prompts", type=int, default=7)
    it.add_argument("--goodput", nargs="+", default=[])
    it.add_argument("--logs", action="store_true")
    it.add_argument("--header", action="append", default=[])
    return it.parse_args(argv)


def test_an_option_has_an_environment_twin_that_a_flag_wins_over() -> None:
    twins = {"PACELINE_BENCH_NUM_PROMPTS": "3", "PACELINE_BENCH_GOODPUT": "ttft:1 tpot:2", "PACELINE_BENCH_LOGS": "1"}
    values = parsed([], **twins)
    assert (values.num_prompts, values.goodput, values.logs) == (3, ["ttft:1", "tpot:2"], True)
    assert parsed(["--num-prompts=5"], **twins).num_prompts == 5
    assert parsed([], PACELINE_NUM_PROMPTS="3").num_prompts == 7, "a server's setting is none of a benchmark's"
    assert not parsed([], PACELINE_BENCH_LOGS="0").logs
    with pytest.raises(UsageError, match="PACELINE_BENCH_LOGS='maybe': write 1 or 0"):
        parsed([], PACELINE_BENCH_LOGS="maybe")


def test_a_benchmark_reads_its_own_table_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "paceline.toml"
    file.write_text(
        "num-prompts = 1\n[serve]\nwindow = 3\n[bench.serve]\nnum-prompts = 2\n[bench.core]\nnum_prompts = 3\n"
        'goodput = ["ttft:1", "tpot:2"]\nlogs = true\nheader = ["a=b c", "d=e"]\n'
    )
    values = parsed(["--config", str(file)])
    assert vars(values) == {
        "num_prompts": 3,
        "goodput": ["ttft:1", "tpot:2"],
        "logs": True,
        "header": ["a=b c", "d=e"],
    }
    assert parsed([], PACELINE_BENCH_CONFIG=str(file)).num_prompts == 3
    assert parsed([f"--config={file}"], PACELINE_BENCH_NUM_PROMPTS="4").num_prompts == 4
    assert parsed([f"--config={file}", "--num-prompts", "5"], PACELINE_BENCH_NUM_PROMPTS="4").num_prompts == 5
    assert parsed([f"--config={file}", "--header", "x=y"]).header == ["x=y"], "instead of the file's"


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("[bench.core]\nnum-promts = 3", r"\[bench.core\] num-promts='3'.*did you mean --num-prompts"),
        ("[bench.core]\nconfig = 'other'", r"\[bench.core\] config='other'.*is no option"),
        ("[bench.cor]\nnum-prompts = 3", r"\[bench.cor\].*did you mean bench core"),
        ("[bench.core]\nnum-prompts = 'x'", r"--num-prompts: .*\(from .*paceline.toml: \[bench.core\] num-prompts\)"),
        ("[bench.core]\nlogs = 'maybe'", r"\[bench.core\] logs='maybe': write 1 or 0"),
    ],
)
def test_what_is_wrong_in_a_benchmarks_table_names_the_file(text: str, fix: str, tmp_path: Path) -> None:
    file = tmp_path / "paceline.toml"
    file.write_text(text)
    with pytest.raises((InvalidInput, UsageError), match=fix):
        parsed(["--config", str(file)])


def test_figures_go_to_a_file_or_for_a_dash_to_standard_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for dash in (["-"], []):
        assert main(["bench", "core", "--requests", "1", "--events", "5000", "--json", *dash]) == 0
        out, err = capsys.readouterr()
        assert json.loads(out)["us_per_event"]
        assert "requests" in err, "the table has made room"
    assert main(["bench", "core", "--requests", "1", "--events", "5000", "--json", "it.json"]) == 0
    assert json.loads(Path("it.json").read_text())["us_per_event"]
    assert [file.name for file in tmp_path.iterdir()] == ["it.json"]
    with pytest.raises(InvalidInput, match="--json='no/such': cannot be written"):
        output.save("no/such", {})


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_explains_itself_under_the_name_it_is_called_by(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"usage: paceline bench {name} " in out
    assert "--json [FILE]" in out, "one meaning everywhere"
    assert "--config FILE" in out
