"""OpenAI's own client against the real processes, with the demo pair."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from google.protobuf import json_format  # type: ignore[import-untyped]
from google.protobuf.descriptor_pool import DescriptorPool  # type: ignore[import-untyped]
from google.protobuf.message_factory import GetMessageClass  # type: ignore[import-untyped]
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from deploy.cli import main
from paceline.client import Client
from paceline.types import Role
from tests.system import processes

ROOT = Path(__file__).parents[2]
TARGET, DRAFTER = ROOT / "models/demo-target", ROOT / "models/demo-drafter"
QUESTION = "A baker makes 12 loaves every hour for 6 hours and sells 50 of them. How many loaves are left?"
PROMPT = f"Question: {QUESTION}\nAnswer:"
USER: Any = [{"role": "user", "content": QUESTION}]
NUM_TOKENS = 40


@dataclass(frozen=True)
class Served:
    coordinator: processes.Process
    drafter: processes.Process
    client: openai.OpenAI
    expected: str  # the target's own greedy answer, as gRPC has it

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.coordinator.url + path, timeout=10) as response:
            return response.read().decode()

    def metric(self, name: str) -> float:
        lines = [line for line in self.get("/metrics").splitlines() if line.startswith(f"{name}{{")]
        return sum(float(line.rpartition(" ")[2]) for line in lines)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    it = processes.coordinator(TARGET, "--port", "0", "--served-model-name", "demo")
    verifier = processes.worker(Role.VERIFIER, TARGET, it.address)
    drafter = processes.worker(Role.DRAFTER, DRAFTER, it.address)
    with (
        processes.running(it, verifier, drafter),
        Client(it.address) as plain,
        openai.OpenAI(base_url=f"{it.url}/v1", api_key="none", max_retries=0) as client,
    ):
        expected = plain.complete(PROMPT, max_tokens=NUM_TOKENS, mode="off")
        yield Served(it, drafter, client, expected.text)


def test_a_chat_is_the_targets_own_greedy_answer_whole_and_streamed(served: Served) -> None:
    (model,) = served.client.models.list().data
    asked: Any = {"model": model.id, "messages": USER, "max_tokens": NUM_TOKENS, "temperature": 0}
    answer = served.client.chat.completions.create(**asked)
    assert answer.choices[0].message.content == served.expected
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == NUM_TOKENS
    asked["extra_body"] = {"speculative": {"mode": "pearl"}}
    stream = served.client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == served.expected
    assert chunks[-1].usage == answer.usage
    metrics = chunks[-1].model_extra["metrics"] if chunks[-1].model_extra else {}
    assert metrics["speculative_decoding"]["num_accepted_draft_tokens"] > 0


def test_a_completion_with_logprobs_and_two_choices(served: Served) -> None:
    given: Any = {"model": "demo", "prompt": PROMPT, "max_tokens": NUM_TOKENS, "temperature": 0}
    whole = served.client.completions.create(**given, logprobs=0)
    assert whole.choices[0].text == served.expected
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert "".join(logprobs.tokens) == served.expected
    assert max(logprobs.token_logprobs or [1]) <= 0
    sampled: Any = {"model": "demo", "prompt": PROMPT, "max_tokens": 12, "temperature": 1, "seed": 3, "n": 2}
    texts = [
        [choice.text for choice in served.client.completions.create(**sampled, extra_body=body).choices]
        for body in ({"speculative": {"mode": "off"}}, {"speculative": {"mode": "pearl", "max_length": 2}})
    ]
    assert texts[0] == texts[1]  # a seed's tokens are the same in every mode
    assert texts[0][0] != texts[0][1]


def test_vllms_extra_fields_are_taken_and_unknown_ones_are_errors_that_name_them(served: Served) -> None:
    given: Any = {"model": "demo", "prompt": PROMPT, "max_tokens": 8, "temperature": 1}
    body = {"top_k": 1, "min_p": 0.01, "repetition_penalty": 1.0, "min_tokens": 2, "ignore_eos": True}
    answer = served.client.completions.create(**given, extra_body=body)
    assert served.expected.startswith(answer.choices[0].text)
    with pytest.raises(openai.BadRequestError) as wrong:
        served.client.completions.create(**given, extra_body={"top_q": 1})
    assert wrong.value.param == "top_q"
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        served.client.completions.create(**given | {"model": "gpt-9"})


def test_a_stream_that_is_closed_ends_its_request(served: Served) -> None:
    given: Any = {"model": "demo", "prompt": PROMPT, "max_tokens": 900, "extra_body": {"ignore_eos": True}}
    stream = served.client.completions.create(**given, stream=True)
    next(iter(stream))
    assert json.loads(served.get("/load"))["server_load"] == 1
    stream.close()
    deadline_s = time.monotonic() + 20
    while json.loads(served.get("/load"))["server_load"]:
        assert time.monotonic() < deadline_s, "the request goes on without its client"
        time.sleep(0.02)
    assert served.metric("vllm:request_success_total") > 0


def test_what_vllms_benchmark_reads_of_speculation_is_there(served: Served) -> None:
    drafts, drafted, accepted, by_place = (
        served.metric(f"vllm:spec_decode_{name}_total")
        for name in ("num_drafts", "num_draft_tokens", "num_accepted_tokens", "num_accepted_tokens_per_pos")
    )
    assert 0 < drafts <= drafted
    assert 0 < accepted <= drafted
    assert 0 < by_place <= accepted
    assert served.metric("paceline_worker_round_trip_seconds") > 0


@pytest.mark.parametrize("page", ["README.md", "docs/api.md"])
def test_the_examples_of_the_docs_work(page: str, served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / page).read_text().replace("http://127.0.0.1:8000", served.coordinator.url)
    (program,) = re.findall(r"```python\n(from openai .*?)```", text, flags=re.DOTALL)
    exec(program, {})
    assert capsys.readouterr().out.strip()
    calls = re.findall(r"^curl (?:-N )?(\S+) -H 'content-type: application/json' \\\n *-d '(.*?)'$", text, re.M | re.S)
    assert calls
    for url, body in calls:
        headers = {"content-type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(url, body.encode(), headers), timeout=30) as response:
            assert b"choices" in response.read()


def test_the_lines_for_grpcurl_work_by_reflection_alone(served: Served) -> None:
    """As grpcurl does it: no generated code, only what the server says of itself."""
    text = (ROOT / "docs/api.md").read_text()
    lines = re.findall(GRPCURL, text, re.M | re.S)
    assert len(lines) == text.count("\ngrpcurl ")
    with grpc.insecure_channel(served.coordinator.address) as channel:
        known = ProtoReflectionDescriptorDatabase(channel)
        pool = DescriptorPool(known)
        done = []
        for body, what in lines:
            if what == "list":
                assert "paceline.wire.Coordinator" in known.get_services()
            elif what.startswith("describe "):
                assert pool.FindMessageTypeByName(what.removeprefix("describe ")).fields
            else:
                done.append((what.rpartition("/")[2], call(channel, pool, what, body or "{}")))
    answers = dict(done)
    assert answers["GetModelInfo"][0].served_model_name == "demo"
    assert {worker.role for worker in answers["GetServerInfo"][0].workers} == {1, 2}
    assert answers["Generate"][-1].finish_reason == "length"
    assert answers["Check"][0].status == 1
    assert answers["Abort"] == [grpc.StatusCode.NOT_FOUND]


@pytest.mark.parametrize("line", re.findall(r"^paceline (bench serve .+)$", (ROOT / "docs/load.md").read_text(), re.M))
def test_the_commands_that_measure_load_work(line: str, served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    line = line.replace("prompts.jsonl", str(ROOT / "tests/data/gsm8k_dev_12.jsonl"))
    options = ("--base-url", served.coordinator.url, "--tokenizer", str(TARGET), "--temperature", "0", "--disable-tqdm")
    assert main([*shlex.split(line), *options]) == 0
    told = capsys.readouterr().out
    if "--compare" in line:
        assert re.search(r"pearl .* 4/4 ", told)  # the same text, token for token
    else:
        assert re.search(r"Failed requests: +0 ", told)
        assert "Mean ITL (ms)" in told


GRPCURL = r"^grpcurl -plaintext (?:-d '(.*?)' (?:\\\n *)?)?127\.0\.0\.1:50051 (.+?)$"


def call(channel: grpc.Channel, pool: DescriptorPool, method: str, body: str) -> list[Any]:
    """The replies of a method that is known by its name, or the status that it failed with."""
    service, _, name = method.partition("/")
    found = pool.FindServiceByName(service).methods_by_name[name]
    request = json_format.Parse(body, GetMessageClass(found.input_type)())
    make = channel.unary_stream if found.server_streaming else channel.unary_unary
    ask: Any = make(f"/{method}", type(request).SerializeToString, GetMessageClass(found.output_type).FromString)
    try:
        replies = ask(request, timeout=30)
        return list(replies) if found.server_streaming else [replies]
    except grpc.RpcError as error:
        return [error.code()]


async def test_the_async_client_streams_and_tells_the_likeliest_tokens(served: Served) -> None:
    url = f"{served.coordinator.url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        given: Any = {"model": "demo", "messages": USER, "max_tokens": NUM_TOKENS, "temperature": 0}
        stream = await client.chat.completions.create(**given, stream=True, logprobs=True, top_logprobs=3)
        text, entries = "", list[Any]()
        async for chunk in stream:
            (choice,) = chunk.choices
            text += choice.delta.content or ""
            entries += (choice.logprobs.content or []) if choice.logprobs else []
        assert text == served.expected
        assert len(entries) == NUM_TOKENS
        for entry in entries:  # greedy: the token is the likeliest
            assert len(entry.top_logprobs) == 3
            assert (entry.top_logprobs[0].token, entry.top_logprobs[0].logprob) == (entry.token, entry.logprob)
            likely = [one.logprob for one in entry.top_logprobs]
            assert likely == sorted(likely, reverse=True)
        many = [client.completions.create(model="demo", prompt=PROMPT, max_tokens=8, temperature=0) for _ in range(3)]
        (same,) = {answer.choices[0].text for answer in await asyncio.gather(*many)}
        assert served.expected.startswith(same)


def test_an_answer_has_the_callers_request_id_or_its_own_and_so_has_an_error(served: Served) -> None:
    given: Any = {"model": "demo", "prompt": PROMPT, "max_tokens": 2}
    own = served.client.completions.with_raw_response.create(**given)
    assert own.headers["x-request-id"] == own.parse().id
    theirs = served.client.completions.with_raw_response.create(**given, extra_headers={"x-request-id": "mine-1"})
    assert theirs.headers["x-request-id"] == "mine-1"
    with pytest.raises(openai.BadRequestError) as wrong:
        served.client.completions.create(**given, best_of=4)
    assert wrong.value.request_id


def test_without_a_drafter_all_goes_on_in_good_health(served: Served) -> None:
    """The last of the module: the drafter is ended."""
    served.drafter.stop()
    while served.metric("paceline_workers") > 1:
        time.sleep(0.02)
    assert json.loads(served.get("/health")) == {"status": "ok", "num_verifiers": 1, "num_drafters": 0}
    answer = served.client.chat.completions.create(model="demo", messages=USER, max_tokens=NUM_TOKENS, temperature=0)
    assert answer.choices[0].message.content == served.expected
