"""`paceline trace` against a running server, and on the file that one wrote."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from deploy.cli import main
from paceline.client import Client
from tests.coordinator.test_chrome_trace import check
from tests.deploy.conftest import Served, fails, paceline

ARGUMENTS = ("--prompt", "hello", "--max-tokens", "12", "--ignore-eos", "--mode", "pearl", "--json")


def ask(served: Served) -> str:
    """A request's id, as `paceline generate` prints it."""
    result = paceline("generate", "--server", served.address, *ARGUMENTS)
    assert result.code == 0, result
    request_id: str = json.loads(result.out)["request_id"]
    return request_id


def events(trace: dict[str, Any]) -> set[tuple[str, str]]:
    return {(event["cat"], event["name"]) for event in trace["traceEvents"] if event["ph"] != "M"}


def test_a_request_becomes_a_picture(served: Served, tmp_path: Path) -> None:
    request_id = ask(served)
    file = tmp_path / "t.json"
    result = paceline("trace", request_id, "-o", str(file), "--server", served.address)
    assert (result.code, result.out) == (0, ""), result
    assert "ui.perfetto.dev" in result.err
    trace = json.loads(file.read_text())
    check(trace)
    assert trace["otherData"]["request_id"] == request_id
    assert {("client", "request"), ("drafter", "draft"), ("verifier", "verify")} <= events(trace)
    tokens = [e["args"]["tokens"] for e in trace["traceEvents"] if e["name"] == "tokens"]
    assert sum(tokens) == 12
    assert "hello" not in file.read_text()

    printed = paceline("trace", request_id, "--server", served.address)
    assert json.loads(printed.out) == trace
    with urllib.request.urlopen(f"{served.url}/paceline/traces/{request_id}", timeout=10) as response:
        assert json.load(response)["traceEvents"] == trace["traceEvents"]


def test_the_last_requests_are_listed_newest_first(served: Served) -> None:
    older, newer = ask(served), ask(served)
    result = paceline("trace", "--server", served.address, "--json")
    listed = json.loads(result.out)
    assert [one["request_id"] for one in listed[:2]] == [newer, older]
    assert listed[0]["num_generated_tokens"] == 12
    assert listed[0]["finish_reason"] == "length"
    assert listed[0]["mode"] == "pearl"
    assert newer in paceline("trace", "--server", served.address).out
    with urllib.request.urlopen(f"{served.url}/paceline/traces", timeout=10) as response:
        assert [one["request_id"] for one in json.load(response)["traces"][:2]] == [newer, older]


def test_generate_prints_the_id_to_ask_for(served: Served) -> None:
    result = paceline("generate", "--server", served.address, *ARGUMENTS[:-1])
    request_id = result.err.split("request ")[-1].strip()
    with Client(served.address):
        assert paceline("trace", request_id, "--server", served.address).code == 0


def test_an_unknown_request_names_the_nearest(served: Served) -> None:
    request_id = ask(served)
    line = fails("trace", request_id[:-1], "--server", served.address)
    assert f"did you mean {request_id}?" in line


def test_what_serve_wrote_is_drawn_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from paceline.trace import Writer
    from tests.coordinator.test_chrome_trace import steps

    file, output = tmp_path / "run.trace", tmp_path / "t.json"
    writer = Writer(str(file), unix_s=1e9, clock_s=5.0, settings={})
    for step in steps():
        writer.observe(step.event, step.commands, step.at_s)
    writer.close()
    assert main(["trace", "--file", str(file), "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["request_id"], listed["unix_s"], listed["finish_reason"]) == ("r", 1e9 + 5, "stop")
    assert main(["trace", "r", "--file", str(file), "-o", str(output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == str(output)
    trace = json.loads(output.read_text())
    check(trace)
    assert ("network", "verdict") in events(trace)
    assert main(["trace", "chatcmpl-r", "--file", str(file)]) == 0, "as OpenAI's clients know it"
    assert json.loads(capsys.readouterr().out) == trace
    assert main(["trace", "q", "--file", str(file)]) == 2
    assert "REQUEST='q'" in capsys.readouterr().err


def test_a_file_that_was_full_before_the_request_had_ended_is_told_to_be_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from paceline.trace import FULL, Writer
    from tests.coordinator.test_chrome_trace import steps

    for num, is_cut in ((4, True), (len(steps()), False)):
        file, output = tmp_path / f"{num}.trace", tmp_path / "t.json"
        writer = Writer(str(file), unix_s=1e9, clock_s=5.0, settings={})
        for step in steps()[:num]:
            writer.observe(step.event, step.commands, step.at_s)
        writer.close(FULL)
        assert main(["trace", "r", "--file", str(file), "-o", str(output)]) == 0
        assert ("events; cut, since" in capsys.readouterr().err) is is_cut
        assert json.loads(output.read_text())["otherData"]["is_cut"] is is_cut


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["trace", "-o", "x"], "--output"),
        (["trace", "--file", "missing"], "cannot be read"),
        (["trace", "r", "--fiel", "x"], "did you mean --file?"),
    ],
)
def test_wrong_input_is_one_line(argv: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert part in capsys.readouterr().err
