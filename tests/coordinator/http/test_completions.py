"""`/v1/completions` and `/v1/chat/completions`, in the shapes that OpenAI's clients read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from coordinator.service import GenerationRequest, Service
from paceline.types import Mode, Rule
from tests.coordinator.http.conftest import Called
from tests.coordinator.toy import CONTEXT, END, LOGPROB

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = [{"role": "user", "content": "hi"}]
TEXT = "héllo"
NUM_TOKENS = len(TEXT.encode()) + 1  # and the end


async def test_a_completion_has_text_usage_and_what_speculation_did(called: Called) -> None:
    answer = await called.post(COMPLETIONS, model="toy", prompt="abc", max_tokens=20)
    (choice,) = answer["choices"]
    assert choice == {"index": 0, "text": TEXT, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": NUM_TOKENS, "total_tokens": 3 + NUM_TOKENS}
    assert (answer["object"], answer["model"]) == ("text_completion", "toy")
    assert answer["id"].startswith("cmpl-")
    assert answer["metrics"]["num_self_decoded_tokens"] == NUM_TOKENS
    told = answer["metrics"]["speculative_decoding"]
    assert (told["num_draft_tokens"], told["acceptance_histogram"], told["num_spec_tokens"]) == (0, [0], 0)


async def test_sixteen_tokens_are_the_default_and_length_is_the_reason(called: Called) -> None:
    answer = await called.post(COMPLETIONS, prompt="abc", ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 16
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_a_stream_adds_up_to_the_answer(called: Called) -> None:
    chunks = await called.stream(COMPLETIONS, prompt="abc", max_tokens=20)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == TEXT
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[-2:]] == [None, "stop"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert "usage" not in chunks[0]
    assert "metrics" in chunks[-1]


async def test_usage_comes_by_itself_after_the_choices_if_it_is_asked_for(called: Called) -> None:
    options = {"include_usage": True}
    for path, prompt in ((COMPLETIONS, {"prompt": "abc"}), (CHAT, {"messages": USER})):
        *chunks, last = await called.stream(path, max_tokens=20, stream_options=options, **prompt)
        assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == NUM_TOKENS
        assert last["metrics"]["num_generated_tokens"] == NUM_TOKENS
        assert not any("metrics" in chunk for chunk in chunks)


async def test_several_prompts_and_several_choices_each_have_their_place(called: Called) -> None:
    answer = await called.post(COMPLETIONS, prompt=[[65], [66, 67], [65, 66, 67]], n=2, max_tokens=4)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3, 4, 5]
    assert answer["usage"]["prompt_tokens"] == 1 + 2 + 3
    assert answer["usage"]["completion_tokens"] == 6 * 4
    assert "metrics" not in answer
    assert [len(ask.token_ids) for ask in called.toy.opened] == [1, 1, 2, 2, 3, 3]
    chunks = await called.stream(COMPLETIONS, prompt=["a", "bc"], n=2, max_tokens=4)
    assert {chunk["choices"][0]["index"] for chunk in chunks} == {0, 1, 2, 3}


async def test_a_prompt_is_tokenized_once_and_others_have_their_turn_between_two(
    called: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call with a hundred outputs stopped the event loop for the time of tokenizing its prompt a hundred times."""
    turns, encode = 0, called.toy.tokenizer.encode
    tokenized: list[tuple[str, int]] = []

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def noted(text: str, **how: Any) -> Any:
        if text in "abc":
            tokenized.append((text, turns))
        return encode(text, **how)

    monkeypatch.setattr(called.toy.tokenizer, "encode", noted)
    task = asyncio.create_task(others())
    answer = await called.post(COMPLETIONS, prompt=["a", "b", "c"], n=2)
    task.cancel()
    assert len(answer["choices"]) == 6
    assert [text for text, _ in tokenized] == ["a", "b", "c"]
    assert len({turn for _, turn in tokenized}) == 3


async def test_choices_have_seeds_of_their_own_and_the_first_has_the_one_given(called: Called) -> None:
    given: dict[str, Any] = {"prompt": "a", "max_tokens": 2, "temperature": 1}
    await called.post(COMPLETIONS, n=3, seed=7, **given)
    await called.post(COMPLETIONS, n=3, **given)
    assert [ask.seed for ask in called.toy.opened[:3]] == [7, 8, 9]
    assert len({ask.seed for ask in called.toy.opened}) == 6
    assert {ask.rule for ask in called.toy.opened[:3]} == {Rule.COUPLED}


async def test_a_chat_goes_through_the_template_and_comes_as_a_message(called: Called) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": parts}]
    given = {"suffix": "!", "self": 1, "more": 2}  # whatever they are called
    answer = await called.post(CHAT, messages=messages, max_completion_tokens=20, chat_template_kwargs=given)
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": TEXT, "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert answer["object"] == "chat.completion"
    prompt = called.toy.tokenizer.decode(called.toy.opened[0].token_ids)
    assert prompt == "<system>S<user>ab<assistant>!"


async def test_a_chat_stream_begins_with_the_role_and_ends_with_the_reason(called: Called) -> None:
    chunks = await called.stream(CHAT, messages=USER, max_tokens=20)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta["content"] for delta in deltas[1:-1]) == TEXT
    assert deltas[-1] == {}
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


async def test_a_chat_without_a_limit_may_fill_the_context(called: Called) -> None:
    answer = await called.post(CHAT, messages=USER, ignore_eos=True)
    assert answer["usage"]["total_tokens"] == CONTEXT


async def test_a_message_may_be_sent_back_as_it_came(called: Called) -> None:
    message = (await called.post(CHAT, messages=USER, max_tokens=20))["choices"][0]["message"]
    as_clients_dump_it = message | {"annotations": None, "audio": None, "function_call": None, "tool_calls": None}
    await called.post(CHAT, messages=[*USER, as_clients_dump_it, *USER], max_tokens=2)


async def test_logprobs_are_there_for_every_token_and_offsets_count_characters(called: Called) -> None:
    answer = await called.post(COMPLETIONS, prompt="a", max_tokens=20, logprobs=0)
    logprobs = answer["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"] == [LOGPROB] * NUM_TOKENS
    assert logprobs["text_offset"] == [0, 1, 1, 2, 3, 4, 5]  # é is two tokens, and text with the second
    chunks = await called.stream(COMPLETIONS, prompt="a", max_tokens=20, logprobs=0)
    offsets = [offset for chunk in chunks for offset in chunk["choices"][0]["logprobs"]["text_offset"]]
    assert offsets == logprobs["text_offset"]
    answer = await called.post(CHAT, messages=USER, max_tokens=20, logprobs=True, top_logprobs=0)
    content = answer["choices"][0]["logprobs"]["content"]
    assert [entry["logprob"] for entry in content] == [LOGPROB] * NUM_TOKENS
    assert content[0] == {"token": "h", "logprob": LOGPROB, "bytes": [104], "top_logprobs": []}
    assert [entry["bytes"] for entry in content[1:3]] == [[195], [169]]  # é, a half each


async def test_the_likeliest_tokens_stand_beside_each_in_the_shapes_of_both_apis(called: Called) -> None:
    answer = await called.post(COMPLETIONS, prompt="a", max_tokens=20, logprobs=2)
    told = answer["choices"][0]["logprobs"]["top_logprobs"]
    assert told[0] == {"x": -0.25, "y": -3.0, "h": LOGPROB}  # and the token itself
    assert told[3] == {"x": -0.25, "z": -2.0, "l": LOGPROB}  # of its own place
    assert len(told) == NUM_TOKENS
    chunks = await called.stream(COMPLETIONS, prompt="a", max_tokens=20, logprobs=2)
    assert [one for chunk in chunks for one in chunk["choices"][0]["logprobs"]["top_logprobs"] or []] == told
    answer = await called.post(CHAT, messages=USER, max_tokens=20, logprobs=True, top_logprobs=2)
    assert answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == [
        {"token": "x", "logprob": -0.25, "bytes": [120]},
        {"token": "y", "logprob": -3.0, "bytes": [121]},
    ]
    assert {ask.sampling.top_logprobs for ask in called.toy.opened} == {2}


async def test_every_chunk_says_how_many_tokens_there_are_by_then_if_it_is_asked(called: Called) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = await called.stream(COMPLETIONS, prompt="abc", max_tokens=20, stream_options=options)
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [
        1,
        NUM_TOKENS,
        NUM_TOKENS,
    ]  # half of é is no news
    assert last["usage"] == chunks[-1]["usage"]
    chunks = await called.stream(CHAT, messages=USER, max_tokens=20, stream_options=options | {"include_usage": False})
    assert not any("usage" in chunk for chunk in chunks)


async def test_a_stop_string_ends_the_text_before_it_and_the_request_at_the_verifier(called: Called) -> None:
    answer = await called.post(COMPLETIONS, prompt="a", max_tokens=20, stop=["o", "lo"], ignore_eos=True)
    end = {"finish_reason": "stop", "stop_reason": "lo"}
    assert answer["choices"][0] == {"index": 0, "text": "hél", "logprobs": None, **end}
    assert called.toy.closed == [called.toy.opened[0].request_id]


async def test_a_stop_string_that_comes_with_the_last_token_is_the_reason(called: Called) -> None:
    answer = await called.post(COMPLETIONS, prompt="a", max_tokens=NUM_TOKENS - 1, stop="o")
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("héll", "stop")


async def test_a_token_that_ends_the_output_has_no_text(called: Called) -> None:
    stop = called.toy.tokenizer.encode("l")
    answer = await called.post(COMPLETIONS, prompt="a", max_tokens=20, stop_token_ids=stop)
    assert answer["choices"][0]["text"] == "hé"
    answer = await called.post(COMPLETIONS, prompt="a", max_tokens=20, skip_special_tokens=False)
    assert answer["choices"][0]["text"] == TEXT
    answer = await called.post(COMPLETIONS, prompt="a", max_tokens=8, skip_special_tokens=False, ignore_eos=True)
    assert answer["choices"][0]["text"] == TEXT + "</s>" + "h"


async def test_every_parameter_reaches_the_verifier(called: Called) -> None:
    law = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": -0.4,
        "min_tokens": 2,
    }
    more: dict[str, Any] = {"seed": 5, "logit_bias": {"65": 2, "7": -1.5}, "stop_token_ids": [9]}
    await called.post(COMPLETIONS, prompt="a", max_tokens=4, user="me", best_of=1, **law, **more)
    sampling = called.toy.opened[0].sampling
    assert {name: getattr(sampling, name) for name in law} == law
    assert sampling.logit_bias == ((7, -1.5), (65, 2.0))
    assert (sampling.seed, sampling.stop_token_ids) == (5, (END, 9))


async def test_defaults_are_openais_and_nulls_are_defaults(called: Called) -> None:
    nulls = dict.fromkeys(("temperature", "top_p", "n", "stop", "seed", "logit_bias", "stream", "max_tokens", "tools"))
    await called.post(COMPLETIONS, prompt="a", **nulls)
    sampling = called.toy.opened[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 1.0, 0)


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ({"mode": "off"}, (Mode.OFF, "fixed:length=8", 1)),
        ({"mode": "sequential", "max_length": 3}, (Mode.SEQUENTIAL, "fixed:length=3", 1)),
        (
            {"length_policy": "svip:threshold_nats=0.5", "max_length": 9},
            (None, "svip:threshold_nats=0.5,max_length=9", 3),
        ),
        ({"mode": "auto", "window": 2, "rule": "match"}, (None, "fixed:length=8", 2)),
        ({"mode": "pearl", "max_length": 99}, (Mode.PEARL, "fixed:length=8", 3)),
        ({"max_length": 16}, (None, "fixed:length=8", 3)),  # a bound, not a length: auto chooses as ever
    ],
)
async def test_speculation_is_each_requests_own(
    called: Called, given: dict[str, Any], want: tuple[Mode | None, str, int]
) -> None:
    called.toy.config = type(called.toy.config)(called.toy.config.tokenizer, window=3)
    answer = await called.post(COMPLETIONS, prompt="a", max_tokens=2, speculative=given)
    metrics = answer["metrics"]
    mode, policy, window = want
    assert (metrics["mode"], metrics["length_policy"]) == (mode or "pearl", policy)
    assert metrics["window"] == window
    if "rule" in given:
        assert metrics["rule"] == given["rule"]


@pytest.mark.parametrize(
    ("more", "reason", "why"),
    [
        ({"stop": ["zz", "ll"]}, "stop", "ll"),
        ({"stop_token_ids": [ord("l")]}, "stop", ord("l")),
        ({}, "stop", None),  # the model's own end
        ({"stop_token_ids": [END]}, "stop", None),
        ({"stop_token_ids": [END], "ignore_eos": True}, "stop", END),
        ({"max_tokens": 2, "stop": "zz"}, "length", None),
    ],
)
async def test_a_choice_says_what_has_ended_it(called: Called, more: dict[str, Any], reason: str, why: Any) -> None:
    body = {"max_tokens": 16} | more
    (choice,) = (await called.post(COMPLETIONS, prompt="a", **body))["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == (reason, why)
    last = (await called.stream(COMPLETIONS, prompt="a", **body))[-1]["choices"][0]
    assert (last["finish_reason"], last["stop_reason"]) == (reason, why)
    chat = {"messages": USER, **body}
    (choice,) = (await called.post(CHAT, **chat))["choices"]
    assert choice["stop_reason"] == why
    last = (await called.stream(CHAT, **chat))[-1]["choices"][0]
    assert last["stop_reason"] == why


async def test_a_stop_string_that_is_complete_too_early_is_text(called: Called) -> None:
    """As with vLLM: the first min_tokens tokens are not searched; a token of the toy is a byte."""
    body: dict[str, Any] = {"prompt": "a", "max_tokens": 16, "stop": ["h", "l"]}
    texts = [(await called.post(COMPLETIONS, min_tokens=n, **body))["choices"][0]["text"] for n in (0, 1, 3, 4, 5)]
    assert texts == ["", "hé", "hé", "hél", "héllo"]


async def test_the_callers_id_is_the_requests(called: Called) -> None:
    """So `paceline trace` and /abort_request know it by the id that is in the caller's own logs."""
    headers = {"x-request-id": "mine-1"}
    response = await called.http.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 1}, headers=headers)
    assert response.headers["x-request-id"] == "mine-1"
    assert response.json()["id"] == "cmpl-mine-1"
    assert called.toy.opened[-1].request_id == "mine-1"
    chat = {"messages": USER, "max_tokens": 1}
    response = await called.http.post(CHAT, json=chat, headers={"x-request-id": "mine-2"})
    assert response.json()["id"] == "chatcmpl-mine-2"
    for body, bad in (({"request_id": "own"}, "mine-3"), ({}, "not fit"), ({}, "x" * 121)):
        response = await called.http.post(
            COMPLETIONS, json={"prompt": "a", "max_tokens": 1, **body}, headers={"x-request-id": bad}
        )
        assert response.status_code == 200
        assert bad not in response.json()["id"]
    assert called.toy.opened[-3].request_id == "own"


async def test_an_id_that_is_running_already_is_refused(called: Called) -> None:
    called.toy.num_answers = 0
    with called.toy.generation(await Service(called.toy).admit(GenerationRequest(prompt="x", request_id="mine"))):
        response = await called.http.post(COMPLETIONS, json={"prompt": "a"}, headers={"x-request-id": "mine"})
    assert response.status_code == 400
    assert "is running already" in response.json()["error"]["message"]


async def test_special_tokens_come_before_a_chat_where_they_are_asked_for(called: Called) -> None:
    chat = {"messages": USER, "max_tokens": 1}
    called.toy.tokenizer._inner.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    await called.post(CHAT, **chat)
    await called.post(CHAT, add_special_tokens=False, **chat)
    await called.post(CHAT, add_special_tokens=True, **chat)
    plain, same, more = (opened.token_ids for opened in called.toy.opened)
    assert plain == same
    assert len(more) == len(plain) + 1
