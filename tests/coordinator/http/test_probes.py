"""What operators ask, what the tokenizer answers, and what the page lives on."""

from __future__ import annotations

import json
import re
import threading
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from coordinator.core.events import WorkerDown
from coordinator.core.limits import Limits
from paceline import __version__
from tests.coordinator.http.conftest import Called, client
from tests.coordinator.toy import CONTEXT, END, VERIFIER, Branching, Toy

DASHBOARD = resources.files("coordinator.dashboard")
FILES = sorted(file.name for file in DASHBOARD.iterdir() if not file.name.startswith("__"))


async def test_health_and_readiness_are_the_verifiers_not_the_drafters(called: Called) -> None:
    for path in ("/health", "/ping", "/ready"):
        response = await called.http.get(path)
        assert (response.status_code, response.json()["num_drafters"]) == (200, 0)
    called.toy.feed(WorkerDown(VERIFIER))
    for path in ("/health", "/ready"):
        response = await called.http.get(path)
        assert (response.status_code, response.json()["status"]) == (503, "no verifier is connected")


async def test_a_full_queue_is_not_ready_but_in_good_health(chat_model: Path) -> None:
    toy = Toy(chat_model, limits=Limits(max_waiting=1, queue_timeout_s=0.3))
    toy.add_verifier()
    toy.num_answers = 0
    async with client(toy) as http:
        with (
            toy.generation(await _spec(toy, "a")),
            toy.generation(await _spec(toy, "b")),
            toy.generation(await _spec(toy, "c")),
            toy.generation(await _spec(toy, "d")),
            toy.generation(await _spec(toy, "e")),
        ):
            assert (await http.get("/ready")).status_code == 503
            assert (await http.get("/health")).status_code == 200
            load = (await http.get("/load")).json()
            assert load == {"server_load": 5, "num_requests_running": 4, "num_requests_waiting": 1}
            metrics = (await http.get("/metrics")).text
            assert f'vllm:num_requests_waiting{{model_name="{toy.config.tokenizer}"}} 1.0' in metrics


async def test_while_it_drains_it_is_not_ready_and_takes_no_requests(called: Called) -> None:
    called.toy.is_draining = True
    ready = await called.http.get("/ready")
    assert (ready.status_code, ready.json()["status"]) == (503, "this coordinator is shutting down")
    assert (await called.http.get("/health")).status_code == 200
    assert (await called.http.post("/v1/completions", json={"prompt": "a"})).status_code == 503


async def _spec(toy: Toy, request_id: str) -> Any:
    from coordinator.service import GenerationRequest, Service

    return await Service(toy).admit(GenerationRequest(prompt="x", request_id=request_id))


async def test_models_and_version(called: Called) -> None:
    listed = (await called.http.get("/v1/models")).json()
    (model,) = listed["data"]
    assert (listed["object"], model["id"], model["max_model_len"]) == ("list", "toy", CONTEXT)
    assert (await called.http.get("/v1/models/toy")).json() == model
    assert (await called.http.get("/v1/models/other/one")).status_code == 404
    assert (await called.http.get("/version")).json() == {"version": __version__}


async def test_the_schema_is_there_for_tools_and_no_page_that_loads_scripts_from_elsewhere(called: Called) -> None:
    schema = (await called.http.get("/openapi.json")).json()
    assert {"/v1/completions", "/v1/chat/completions", "/metrics"} <= set(schema["paths"])
    for path in ("/docs", "/redoc"):
        assert (await called.http.get(path)).status_code == 404


async def test_tokenize_and_detokenize_are_each_others_inverse(called: Called) -> None:
    told = await called.post("/tokenize", prompt="né", return_token_strs=True)
    assert (told["count"], told["max_model_len"], len(told["token_strs"])) == (3, CONTEXT, 3)
    assert await called.post("/detokenize", tokens=told["tokens"]) == {"prompt": "né"}
    ended = [*told["tokens"], END]  # special tokens are told as well, as with vLLM
    assert await called.post("/detokenize", tokens=ended) == {"prompt": "né</s>"}
    assert (await called.post("/tokenize", prompt="né</s>"))["tokens"] == ended
    chat = await called.post("/tokenize", messages=[{"role": "user", "content": "x"}])
    assert (await called.post("/detokenize", tokens=chat["tokens"]))["prompt"] == "<user>x<assistant>"
    assert (await called.refusal("/tokenize"))["message"].endswith("give either prompt or messages")
    assert (await called.refusal("/detokenize", tokens=[-1]))["param"] == "tokens"


async def test_more_tokens_than_fit_the_context_are_not_made_text(called: Called) -> None:
    """Two million ids took eight seconds of the event loop, in which workers' leases ran out."""
    assert await called.post("/detokenize", tokens=[97] * CONTEXT) == {"prompt": "a" * CONTEXT}
    refused = await called.refusal("/detokenize", tokens=[97] * (CONTEXT + 1))
    assert refused["param"] == "tokens"
    assert f"at most {CONTEXT} fit the context" in refused["message"]


async def test_many_tokens_are_made_text_beside_the_loop(called: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    for name in ("decode_long", "pieces"):
        inner = getattr(called.toy.tokenizer, name)

        def noted(token_ids: Any, inner: Any = inner) -> Any:
            threads.append(threading.current_thread())
            return inner(token_ids)

        monkeypatch.setattr(called.toy.tokenizer, name, noted)
    await called.post("/detokenize", tokens=[97])
    await called.post("/tokenize", prompt="a", return_token_strs=True)
    assert len(threads) == 2
    assert threading.current_thread() not in threads


async def test_the_playground_tells_source_text_and_time_of_every_token(called: Called) -> None:
    response = await called.http.post("/paceline/generate", json={"prompt": "a", "max_tokens": 20})
    events = [(match[1], json.loads(match[2])) for match in re.finditer(r"event: (\w+)\ndata: (.+)\n\n", response.text)]
    assert [name for name, _ in events] == ["start", "tokens", "tokens", "tokens", "end"]
    told = [data for _, data in events[1:]]
    assert "".join(data["text"] for data in told) == "héllo"
    for data in told:
        assert len(data["sources"]) == len(data["text_lengths"]) == len(data["token_ids"])
    times = [data["at_ms"] for data in told]
    assert times == sorted(times)
    spans = [span for data in told for span in data["spans"]]
    assert [span["role"] for span in spans] == ["verifier"] * 3
    assert all(span["end_ms"] - span["start_ms"] == pytest.approx(1, abs=0.01) for span in spans)
    assert told[-1]["finish_reason"] == "stop"
    assert told[-1]["metrics"]["num_generated_tokens"] == 7
    assert not called.toy._watched


async def test_the_playground_tells_branches_apart_from_drafts(chat_model: Path) -> None:
    toy = Branching(chat_model, served_model_name="toy")
    toy.add_verifier()
    async with client(toy) as http:
        response = await http.post("/paceline/generate", json={"prompt": "a", "max_tokens": 20})
    told = [json.loads(data) for data in re.findall(r"event: tokens\ndata: (.+)\n\n", response.text)]
    drafted, *passes = [span for data in told for span in data["spans"]]
    assert (drafted["role"], drafted["num_tokens"], drafted["is_branch"]) == ("drafter", 2, True)
    assert drafted["end_ms"] - drafted["start_ms"] == pytest.approx(Branching.BRANCH_MS, abs=0.01)
    assert {(span["role"], span["is_branch"]) for span in passes} == {("verifier", False)}


async def test_the_pools_are_told_with_what_was_measured_and_nothing_else(called: Called) -> None:
    before = (await called.http.get("/paceline/pools")).json()
    (worker,) = before["workers"]
    assert (worker["role"], worker["step_ms"], worker["acceptance"]) == ("verifier", None, None)
    assert before["has_chat_template"]
    assert {"off", "pearl"} <= set(before["modes"])
    await called.post("/v1/completions", prompt="a", max_tokens=20)
    (worker,) = (await called.http.get("/paceline/pools")).json()["workers"]
    assert worker["step_ms"] == pytest.approx(1)
    assert worker["num_tokens"] > 0


@pytest.mark.parametrize("name", FILES)
async def test_every_file_of_the_page_is_served_and_asks_for_nothing_from_elsewhere(called: Called, name: str) -> None:
    response = await called.http.get(f"/dashboard/{name}")
    assert response.status_code == 200
    assert response.content == DASHBOARD.joinpath(name).read_bytes()
    assert "script-src 'self'" in response.headers["content-security-policy"]
    # The one address that is no request is the name of SVG.
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", response.text)
    assert not re.findall(r"innerHTML|insertAdjacentHTML|eval\(| style=| on\w+=", response.text)


async def test_the_page_uses_only_files_that_are_there_and_nothing_else_is_served(called: Called) -> None:
    page = (await called.http.get("/")).text
    scripts = "".join(DASHBOARD.joinpath(name).read_text() for name in FILES if name.endswith(".js"))
    assert set(re.findall(r"/dashboard/([\w.]+)", page)) | set(re.findall(r'"\./([\w.]+)"', scripts)) == {
        name for name in FILES if name != "index.html"
    }
    assert not set(re.findall(r'\$\("([\w-]+)"\)', scripts)) - set(re.findall(r'id="([\w-]+)"', page))
    for name in ("__init__.py", "..%2Fserver.py", "%2e%2e/server.py"):
        assert (await called.http.get(f"/dashboard/{name}")).status_code == 404
