"""`paceline bench serve` against a real socket: the toy coordinator, and a server that knows less."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import math
import random
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from rich.console import Console

from bench import serve
from bench.serving.call import STREAM_OPTIONS, Outcome, agree
from bench.serving.compare import Side, doubts
from bench.serving.datasets import Ask
from bench.serving.load import arrivals_s, run
from bench.serving.settings import parse
from coordinator.core.limits import Limits
from coordinator.http.server import HttpServer
from paceline.errors import Unavailable
from tests.coordinator.toy import Toy, write_model

NUM_TOKENS = 7  # of the toy's answer: six bytes and the end


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[HttpServer]:
    toy = Toy(write_model(tmp_path / "model"), port=0, served_model_name="toy")
    toy.add_verifier()
    it = HttpServer(toy)
    await it.start()
    yield it
    await toy.close()
    await it.stop()


async def measured(server: HttpServer, *options: str) -> tuple[int, str]:
    """The exit code and what was printed."""
    given = parse(["--base-url", server.url, "--disable-tqdm", *options], "")
    console = Console(file=io.StringIO(), record=True, width=130)
    code = await serve.measure(given, console)
    return code, console.export_text()


SHORT = ("--num-prompts", "5", "--random-input-len", "4", "--random-output-len", "16")


async def test_a_run_prints_vllms_table_and_saves_its_keys(server: HttpServer, tmp_path: Path) -> None:
    saved = ("--save-detailed", "--result-dir", str(tmp_path / "out"), "--label", "mine", "--metadata", "who=me")
    code, told = await measured(server, *SHORT, "--max-concurrency", "2", "--goodput", "ttft:60000", *saved)
    assert code == 0
    for line in ("Serving Benchmark Result", "Successful requests:", "P99 TPOT (ms):", "Inter-token Latency"):
        assert line in told
    assert "Speculative Decoding" not in told  # the toy has no drafter
    (file,) = (tmp_path / "out").iterdir()
    assert file.name.startswith("mine-infqps-concurrency2-toy-")
    result = json.loads(file.read_text())
    assert (result["completed"], result["failed"], result["who"]) == (5, 0, "me")
    assert result["total_output_tokens"] == 5 * NUM_TOKENS
    assert result["total_input_tokens"] == 5 * 4
    assert [len(gaps) for gaps in result["itls"]] == [NUM_TOKENS - 1] * 5  # one a token, not one a chunk
    assert result["request_goodput"] == result["request_throughput"] > 0
    assert result["max_concurrent_requests"] <= 2
    names = {
        f"{kind}_{name}_ms" for kind in ("mean", "median", "std", "p99") for name in ("ttft", "tpot", "itl", "e2el")
    }
    assert names <= set(result)


async def test_requests_that_fail_are_counted_told_and_the_exit_code(server: HttpServer, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, ("short", "long" * 100))))  # beyond the toy's context
    code, told = await measured(server, "--dataset-path", str(file), "--num-prompts", "4", "--output-len", "8")
    assert code == 1
    assert re.search(r"Failed requests: +2 ", told)
    assert "shorten it" in told


async def test_modes_are_compared_round_by_round_and_must_be_confessed(server: HttpServer, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    code, told = await measured(server, *SHORT, "--compare", "off,pearl", "--max-concurrency", "2", "--json", str(file))
    assert code == 0
    modes = json.loads(file.read_text())["modes"]
    assert [of["mode"] for of in modes] == ["off", "pearl"]
    assert modes[0]["ratio"] == 1
    assert [len(of["ratios"]) for of in modes] == [3, 3]  # five prompts, two at a time
    assert [of["num_same_text"] for of in modes] == [5, 5]
    assert "over off's" in told
    assert "pearl: no draft was tested, so this was plain decoding; is a drafter connected?" in told
    assert [of["num_by_mode"] for of in modes] == [{"off": 5}, {"pearl": 5}]


def test_a_row_whose_mode_was_not_the_one_that_ran_is_told() -> None:
    def side(mode: str, *ran: str, num_tested: int = 3) -> Side:
        metrics = [{"mode": each, "num_tested_tokens": num_tested} for each in ran]
        return Side(mode, [[Outcome(0.0, metrics=each) for each in metrics]], [1.0])

    assert list(doubts([side("off", "off", num_tested=0), side("pearl", "pearl", "pearl")])) == []
    (told,) = doubts([side("pearl", "pearl", "off")])
    assert told.startswith("pearl: of 2 requests the server ran 1 as off")
    (told,) = doubts([side("auto", "off", "pearl", "pearl")])
    assert told == "auto chose, of 3 requests: pearl for 2, off for 1"


async def test_results_are_added_to_a_file_and_calls_have_ids_and_penalties(
    server: HttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []
    plain = httpx2.AsyncClient.stream

    def stream(self: Any, method: str, path: str, *, json: Any, headers: Any) -> Any:
        seen.append((headers.get("x-request-id", ""), json))
        return plain(self, method, path, json=json, headers=headers)

    monkeypatch.setattr(httpx2.AsyncClient, "stream", stream)
    saved = ("--append-result", "--result-filename", "it.json", "--result-dir", str(tmp_path), "--disable-shuffle")
    for _ in range(2):
        code, _ = await measured(server, *SHORT, *saved, "--request-id-prefix", "p-", "--repetition-penalty", "1.1")
        assert code == 0
    results = [json.loads(line) for line in (tmp_path / "it.json").read_text().splitlines()]
    assert [result["completed"] for result in results] == [5, 5]
    assert {number for number, _ in seen if number} == {f"p-{i}" for i in range(5)}
    assert {body["repetition_penalty"] for _, body in seen} == {1.1}
    assert all("presence_penalty" not in body for _, body in seen)


def sse(*chunks: dict[str, Any]) -> httpx2.Response:
    lines = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    return httpx2.Response(200, text=lines + "data: [DONE]\n\n")


async def test_a_server_that_knows_no_continuous_usage_is_asked_without_it() -> None:
    """Then a chunk is a gap, and the tokens are those of the usage at the end."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.content)
        if "continuous_usage_stats" in body.get("stream_options", {}):
            return httpx2.Response(400, json={"error": {"message": "stream_options.continuous_usage_stats: unknown"}})
        texts = [{"choices": [{"text": text}], "usage": None} for text in ("a", "bc", "")]
        return sse(*texts, {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}})

    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer), base_url="http://other") as http:
        caller = await agree(http, "/v1/completions", "m", {}, Ask("x", 4))
        assert caller.stream_options == STREAM_OPTIONS[1]
        outcome = await caller.call(Ask("x", 4))
    assert (outcome.text, outcome.num_output_tokens, len(outcome.arrivals)) == ("abc", 4, 2)


async def test_an_error_in_the_middle_of_a_stream_and_a_refusal_are_failures() -> None:
    answers = iter(
        (
            sse({"choices": [{"text": "a"}]}, {"error": {"message": "the verifier has gone"}}),
            httpx2.Response(503, text="busy"),
        )
    )
    async with httpx2.AsyncClient(
        transport=httpx2.MockTransport(lambda _: next(answers)), base_url="http://other"
    ) as http:
        with pytest.raises(Unavailable, match="the verifier has gone"):
            await agree(http, "/v1/completions", "m", {}, Ask("x", 4))
        with pytest.raises(Unavailable, match="503: busy"):
            await agree(http, "/v1/completions", "m", {}, Ask("x", 4))


def test_arrivals_are_poisson_or_burstier_at_the_rate_asked_for_and_all_at_once_without_one() -> None:
    assert arrivals_s(3, math.inf, 1.0, random.Random(0)) == [0, 0, 0]
    for burstiness in (0.3, 1.0, 5.0):
        times = arrivals_s(20_000, 4.0, burstiness, random.Random(1))
        gaps = [b - a for a, b in itertools.pairwise(times)]
        mean = sum(gaps) / len(gaps)
        variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
        assert mean == pytest.approx(0.25, rel=0.05)
        assert variance == pytest.approx(mean**2 / burstiness, rel=0.15)


async def test_no_more_requests_run_at_a_time_than_are_allowed() -> None:
    running = most = 0

    async def call(ask: Ask) -> Outcome:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return Outcome(time.perf_counter())

    asks = [Ask(str(i), 1) for i in range(12)]
    assert len(await run(asks, call, [0.0] * 12, 3, lambda: None)) == 12
    assert most == 3


async def test_who_sends_more_than_the_queue_takes_is_told_what_to_set(tmp_path: Path) -> None:
    toy = Toy(write_model(tmp_path / "model"), port=0, served_model_name="toy", limits=Limits(max_waiting=1))
    toy.add_verifier()
    it = HttpServer(toy)
    await it.start()
    code, told = await measured(it, "--num-prompts", "80", "--random-input-len", "2", "--random-output-len", "8")
    await toy.close()
    await it.stop()
    assert code == 1
    assert "--max-waiting" in told
    assert "--max-concurrency" in told
