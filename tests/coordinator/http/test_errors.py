"""What is refused, in which words, with which status."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.core.events import Verified, WorkerDown
from coordinator.core.limits import Limits
from coordinator.http.server import HttpServer
from coordinator.http.unserved import REFUSED
from coordinator.service import GenerationRequest, Service
from paceline.errors import InvalidInput, Overloaded, PeerFault, Unavailable, UnknownRequest, Unsupported
from tests.coordinator.http.conftest import Called, Keys, client
from tests.coordinator.toy import VERIFIER, Toy

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
JSON = {"content-type": "application/json"}
USER = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("body", "param", "part"),
    [
        ({"temprature": 1}, "temprature", "did you mean temperature?"),
        ({"speculative": {"mod": "off"}}, "speculative.mod", "did you mean mode?"),
        ({"max_tokens": "7"}, "max_tokens", "valid integer"),
        ({"max_tokens": True}, "max_tokens", "valid integer"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"max_tokens": 999}, "max_tokens", "the context 128"),
        ({"prompt": ""}, "prompt", "is empty"),
        ({"prompt": []}, "prompt", "is empty"),
        ({"prompt": {"a": 1}}, "prompt", "valid string"),
        ({"prompt": ["a", 1]}, "prompt", "valid string"),
        ({"prompt": [1, 10_000]}, "prompt", "vocabulary's size"),
        ({"prompt": [-1]}, "prompt", "vocabulary's size"),
        ({"prompt": "\ud800"}, "prompt", "surrogate"),
        ({"temperature": -1}, "temperature", "from 0 (greedy)"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"top_k": -2}, "top_k", "0 (off)"),
        ({"seed": -1}, "seed", "from 0 to"),
        ({"n": 0}, "n", "from 1 to 128"),
        ({"n": 65, "prompt": ["a", "b"]}, "prompt", "at most 128"),
        ({"best_of": 2}, "best_of", "use n"),
        ({"logprobs": 21}, "logprobs", "from 0 to 20"),
        ({"logprobs": -1}, "logprobs", "from 0 to 20"),
        ({"stop": [""]}, "stop", "1 to 256 characters"),
        ({"stop": ["a"] * 17}, "stop", "at most 16"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "the keys are token ids"),
        ({"logit_bias": {"9999": 1}}, "logit_bias", "vocabulary's size"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "from -100 to 100"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens", "at most max_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options", '"stream": true'),
        ({"speculative": {"mode": "fast"}}, "speculative.mode", "must be auto, off"),
        ({"speculative": {"rule": "lossy"}}, "speculative.rule", "must be auto, match"),
        ({"speculative": {"max_length": 0}}, "speculative.max_length", 'mode "off"'),
        ({"speculative": {"length_policy": "guess"}}, "speculative.length_policy", "unknown"),
        ({"speculative": {"length_policy": "svip:zzz=3"}}, "speculative.length_policy", "svip:zzz"),
        ({"speculative": {"window": 65}}, "speculative.window", "at most 64"),
        *(({"request_id": bad}, "request_id", "visible ASCII") for bad in ("x" * 129, "a b", "a\nb", "é", "\ud800")),
        ({"logit_bias": {"\ud800": 1}}, "logit_bias", "the keys are token ids"),
        ({"speculative": {"mode": "\ud800"}}, "speculative.mode", "must be auto, off"),
        ({"speculative": {"length_policy": "\ud800"}}, "speculative.length_policy", "unknown"),
        ({"speculative": {"length_policy": "svip:\ud800=3"}}, "speculative.length_policy", "svip:\\ud800"),
    ],
)
async def test_what_is_wrong_is_named(called: Called, body: dict[str, Any], param: str, part: str) -> None:
    # Not by the client's `json=`, which would not send half of a surrogate pair.
    content = json.dumps({"prompt": "abc"} | body)
    response = await called.http.post(COMPLETIONS, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert part in error["message"]
    assert not called.toy.opened


async def test_what_asks_for_nothing_is_taken_whatever_its_name(called: Called) -> None:
    nothing = {"ignore_eos": None, "of_tomorrow": None, "prompt_cache_key": "a", "safety_identifier": "b"}
    sent_back: dict[str, Any] = {"role": "assistant", "content": "yes", "tool_calls": [], "function_call": None}
    await called.post(CHAT, messages=[*USER, sent_back, *USER], max_tokens=1, **nothing)
    error = await called.refusal(CHAT, messages=USER, of_tomorrow=False)
    assert "unknown field" in error["message"]


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_not_supported_is_refused_by_name_unless_it_asks_for_nothing(called: Called, name: str) -> None:
    error = await called.refusal(CHAT, 400, messages=USER, **{name: {"ask": "for something"}})
    assert error["param"] == name
    assert "is not supported" in error["message"]
    for neutral in (None, *REFUSED[name][0]):
        await called.post(CHAT, messages=USER, max_tokens=1, **{name: neutral})


async def test_what_asks_for_nothing_is_taken_where_texts_are_tokenized_too(called: Called) -> None:
    for path, body in (("/tokenize", {"messages": USER}), ("/detokenize", {"tokens": [65]})):
        await called.post(path, **body, continue_final_message=False, tools=None, of_tomorrow=None)
        error = await called.refusal(path, **body, continue_final_message=True)
        assert (error["param"], "is not supported" in error["message"]) == ("continue_final_message", True)


@pytest.mark.parametrize(
    ("body", "param", "part"),
    [
        ({"messages": []}, "messages", "at least one"),
        ({"messages": [{"role": "critic", "content": "x"}]}, "messages", "system"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages", "tools are not served"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "messages", "tools are not served"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages", "text"),
        ({"messages": [{"role": "user", "content": "refuse"}]}, "messages", "the chat template says: not that"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "from 0 to 20"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "max_completion_tokens", "differs from max_tokens"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "field of its own"),
    ],
)
async def test_what_is_wrong_with_a_chat_is_named(called: Called, body: dict[str, Any], param: str, part: str) -> None:
    error = await called.refusal(CHAT, **({"messages": USER} | body))
    assert error["param"] == param
    assert part in error["message"]


async def test_a_target_without_a_chat_template_says_so(model: Path) -> None:
    toy = Toy(model)
    toy.add_verifier()
    async with client(toy) as http:
        error = await Called(toy, http).refusal(CHAT, messages=USER)
    assert "has no chat template: use /v1/completions" in error["message"]


async def test_another_model_and_another_path_are_not_found(called: Called) -> None:
    error = await called.refusal(COMPLETIONS, 404, model="gpt-9", prompt="a")
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "'toy'" in error["message"]
    await called.refusal("/v1/embeddings", 404, input="a")
    assert (await called.http.get(COMPLETIONS)).status_code == 405


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000])
async def test_a_body_that_is_no_object_is_the_callers_fault(called: Called, content: bytes) -> None:
    response = await called.http.post(COMPLETIONS, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_json_must_be_called_json(called: Called) -> None:
    """What a foreign page's form can send is no request."""
    response = await called.http.post(COMPLETIONS, content=b'{"prompt": "a"}', headers={"content-type": "text/plain"})
    assert response.status_code == 400
    assert "application/json" in response.json()["error"]["message"]


@pytest.mark.parametrize("says_its_length", [True, False])
async def test_a_body_beyond_the_bound_is_refused(called: Called, says_its_length: bool) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b" " * 2**20

    content = b" " * 5 * 2**20 if says_its_length else chunks()
    response = await called.http.post(COMPLETIONS, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_without_a_key_nothing_is_done_or_told_but_probes_and_the_page(chat_model: Path) -> None:
    toy = Toy(chat_model)
    toy.add_verifier()
    async with client(toy, Keys()) as http:
        closed = [("POST", path) for path in (COMPLETIONS, CHAT, "/tokenize", "/detokenize", "/paceline/generate")] + [
            ("GET", path) for path in ("/v1/models", "/metrics", "/load", "/version", "/paceline/pools")
        ]
        for method, path in closed:
            response = await http.request(method, path, json={"prompt": "a"})
            assert response.status_code == 401, path
            assert response.json()["error"]["code"] == "invalid_api_key"
        for path in ("/health", "/ready", "/"):
            assert (await http.get(path)).status_code == 200
        headers = {"authorization": "Bearer sesame"}
        assert (await http.post(COMPLETIONS, json={"prompt": "a"}, headers=headers)).status_code == 200


async def test_requests_are_counted_by_the_name_of_their_key(chat_model: Path) -> None:
    toy = Toy(chat_model, max_requests_per_key=1)
    toy.add_verifier()
    toy.num_answers = 0
    bodies: dict[str, Any] = {
        COMPLETIONS: {"prompt": "a"},
        CHAT: {"messages": [{"role": "user", "content": "a"}]},
        "/paceline/generate": {"prompt": "a"},
    }
    async with client(toy, Keys()) as http:
        with toy.generation(await Service(toy).admit(GenerationRequest(prompt="x", client="alice"))):
            for path, body in bodies.items():
                response = await http.post(path, json=body, headers={"authorization": "Bearer sesame"})
                assert response.status_code == 429, path
                assert "requests of the key alice" in response.json()["error"]["message"]


async def test_a_full_queue_says_when_to_come_back_and_no_verifier_is_unavailable(chat_model: Path) -> None:
    toy = Toy(chat_model, limits=Limits(max_waiting=1, queue_timeout_s=0.05))
    async with client(toy) as http:
        response = await http.post(COMPLETIONS, json={"prompt": "a", "n": 2})
        assert response.status_code == 429
        assert response.headers["retry-after"] == "1"
        assert response.json()["error"]["type"] == "rate_limit_error"
        for stream in (False, True):  # before the first event the status can still tell
            response = await http.post(COMPLETIONS, json={"prompt": "a", "stream": stream})
            assert response.status_code == 503
            assert "no verifier was free" in response.json()["error"]["message"]
    assert toy.pipeline.num_waiting == 0


async def test_what_fails_in_the_middle_of_a_stream_is_its_last_event(called: Called) -> None:
    """The verifier answers once and is then lost; nobody takes its place."""
    called.toy.pipeline.limits = Limits(queue_timeout_s=0.05)
    called.toy.text = "x"

    class Loses:
        def observe(self, event: Any, commands: Any, now_s: float) -> None:
            if isinstance(event, Verified):
                called.toy.observers.remove(self)
                called.toy.feed(WorkerDown(VERIFIER))

    called.toy.observers.append(Loses())
    events = await called.stream(COMPLETIONS, prompt="a", ignore_eos=True)
    assert events[0]["choices"][0]["text"] == "x"
    assert events[-1]["error"]["type"] == "server_error"
    assert "no verifier" in events[-1]["error"]["message"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidInput("a", 1, "b"), 400),
        (Unsupported("a", 1, "b"), 422),
        (UnknownRequest("a"), 404),
        (Overloaded("a", 1, 2.5), 429),
        (Unavailable("a"), 503),
        (PeerFault("a"), 500),
        (ZeroDivisionError("secret"), 500),
    ],
)
async def test_every_kind_of_error_has_its_status_and_bugs_tell_nothing(
    called: Called, error: Exception, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr("coordinator.service.Service.admit", fail)
    told = await called.refusal(COMPLETIONS, status, prompt="a")
    assert "secret" not in told["message"]
    assert ("the server's log" in told["message"]) == isinstance(error, ZeroDivisionError)


async def test_without_a_key_no_body_is_read(chat_model: Path) -> None:
    """Nor parsed: what is no JSON is refused for want of the key, not for that."""

    toy = Toy(chat_model)
    async with client(toy, Keys()) as http:
        for path in (COMPLETIONS, CHAT, "/tokenize", "/nowhere"):
            assert (await http.post(path, content=b"{", headers=JSON)).status_code == 401, path
        headers = {"authorization": "Bearer sesame", **JSON}
        assert (await http.post(COMPLETIONS, content=b"{", headers=headers)).status_code == 400
    scope: Any = {"type": "http", "method": "POST", "path": COMPLETIONS, "headers": [], "query_string": b""}
    sent: list[Any] = []

    async def receive() -> Any:
        pytest.fail("the body was asked for")

    async def send(message: Any) -> None:
        sent.append(message)

    await HttpServer(toy, Keys()).app(scope, receive, send)
    assert sent[0]["status"] == 401


async def test_every_response_is_counted_by_route_and_status(chat_model: Path) -> None:
    """What is refused at the door reaches no request, and so no other metric."""
    toy = Toy(chat_model, served_model_name="m")
    toy.add_verifier()
    async with client(toy, Keys()) as http:
        key = {"authorization": "Bearer sesame"}
        await http.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 1}, headers=key)
        await http.post(COMPLETIONS, json={"prompt": ""}, headers=key)
        await http.post(COMPLETIONS, json={"prompt": "a"})
        await http.get("/v1/models/nobody's", headers=key)
        await http.get("/made/up", headers=key)
        await http.post(COMPLETIONS, json={"prompt": " " * 5 * 2**20}, headers=key)
        page = (await http.get("/metrics", headers=key)).text
    told = dict(re.findall(r'^paceline_http_responses_total\{model_name="m",(.*)\} (\S+)$', page, re.MULTILINE))
    assert told == {
        'path="/v1/completions",status="200"': "1.0",
        'path="/v1/completions",status="400"': "1.0",
        'path="other",status="401"': "1.0",
        'path="/v1/models/{name:path}",status="404"': "1.0",
        'path="other",status="404"': "1.0",
        'path="other",status="413"': "1.0",  # by its length, before any route is looked for, as for want of a key
    }
