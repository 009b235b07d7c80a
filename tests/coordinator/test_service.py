"""What both doors share: a request's admission, its text, its end."""

from __future__ import annotations

import asyncio
import threading
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import coordinator.server
import coordinator.service
from coordinator.api import _request_from_wire
from coordinator.core.events import Drafted
from coordinator.core.limits import Limits
from coordinator.metrics_export import MetricsExport
from coordinator.registry import Link
from coordinator.service import GenerationRequest, Reply, Service
from coordinator.shares import Shares
from paceline.errors import InvalidInput, Overloaded, Unavailable
from paceline.length_policy import LengthPolicy
from paceline.types import Draft, FinishReason, Mode, Role, SamplingParams
from paceline.wire import coordinator_pb2
from tests.coordinator.toy import CONTEXT, END, Toy, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("toy") / "model")


def start(model: Path, **settings: Any) -> tuple[Toy, Service]:
    toy = Toy(model, **settings)
    toy.add_verifier()
    return toy, Service(toy)


async def run(service: Service, **asked: Any) -> list[Reply]:
    request = GenerationRequest(**({"prompt": "ab"} | asked))
    async with service.generation(request, await service.admit(request)) as generation:
        replies = []
        while reply := await generation.read():
            replies.append(reply)
    return replies


async def test_what_is_left_open_is_the_servers_choice(model: Path) -> None:
    policy = LengthPolicy.parse("fixed:length=3")
    _, service = start(model, mode=Mode.SEQUENTIAL, policy=policy, window=7)
    spec = await service.admit(GenerationRequest(prompt="ab"))
    assert (spec.mode, spec.policy, spec.window, spec.rule) == (Mode.SEQUENTIAL, policy, 7, None)
    assert spec.max_tokens == CONTEXT - 2
    assert spec.stop_token_ids == (END,)
    spec = await service.admit(GenerationRequest(prompt="ab", mode=Mode.OFF, window=2, ignore_eos=True))
    assert (spec.mode, spec.window, spec.stop_token_ids) == (Mode.OFF, 2, ())


async def test_a_bound_on_drafts_comes_over_the_wire_and_none_is_the_policys(model: Path) -> None:
    _, service = start(model)
    for given, want in ((6, 6), (0, None)):
        wire = coordinator_pb2.GenerateRequest(prompt="ab", max_tokens=2, max_draft_length=given)
        assert (await service.admit(_request_from_wire(wire, ""))).max_draft_length == want


async def test_the_drafters_seed_is_never_the_verifiers(model: Path) -> None:
    _, service = start(model)
    given = await service.admit(GenerationRequest(prompt="a", sampling=SamplingParams(seed=5)))
    drawn = await service.admit(GenerationRequest(prompt="a"))
    assert given.seed == 5
    assert len({given.seed, given.draft_seed, drawn.seed, drawn.draft_seed}) == 4


async def test_a_long_text_is_tokenized_beside_the_loop_and_comes_to_the_same(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, service = start(model)
    short = await service.tokenize("né" * 9)
    monkeypatch.setattr(coordinator.service, "MAX_INLINE_CHARS", 4)
    assert await service.tokenize("né" * 9) == short


async def test_a_text_that_can_fit_no_context_is_not_tokenized(model: Path) -> None:
    _, service = start(model)
    with pytest.raises(InvalidInput, match=f"at most {64 * CONTEXT} can fit the context"):
        await service.tokenize("x" * (64 * CONTEXT + 1))


async def test_a_verifier_that_nobody_has_reached_makes_no_context_shorter(model: Path) -> None:
    toy, service = start(model)
    (verifier,) = toy.pipeline.pools
    link = Link("verifier-2", replace(verifier.info, max_model_len=7), asyncio.Queue())
    toy.links[link.name] = link
    assert service.max_model_len == CONTEXT
    link.is_up = True
    assert service.max_model_len == 7


async def test_the_text_goes_on_where_another_coordinator_left_it(model: Path) -> None:
    toy, service = start(model)
    resumed = toy.tokenizer.encode("xh")
    *replies, last = await run(service, resumed=resumed, stop=("hh",))
    assert toy.opened[0].token_ids[-2:] == resumed
    assert last.finish_reason is FinishReason.STOP
    assert "".join(reply.text for reply in (*replies, last)) == "", "the stop string began in what the client has"


async def test_what_is_resumed_is_made_text_beside_the_loop(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty thousand tokens stopped the event loop for more than a second."""
    toy, service = start(model)
    threads: list[threading.Thread] = []

    def noted(*given: Any) -> Any:
        threads.append(threading.current_thread())
        return push(*given)

    push = coordinator.service._push
    monkeypatch.setattr(coordinator.service, "_push", noted)
    request = GenerationRequest(prompt="a", resumed=toy.tokenizer.encode("xh"))
    async with service.generation(request, await service.admit(request)):
        assert len(threads) == 1
    assert threads[0] is not threading.current_thread()


async def test_an_output_that_has_ended_elsewhere_only_ends(model: Path) -> None:
    toy, service = start(model)
    (last,) = await run(service, resumed=(*toy.tokenizer.encode("h"), END))
    assert (last.text, last.finish_reason, last.metrics) == ("", FinishReason.STOP, None)
    (last,) = await run(service, resumed=toy.tokenizer.encode("h"), stop=("hx",), max_tokens=1)
    assert (last.text, last.finish_reason) == ("h", FinishReason.LENGTH), "it might have been a stop string's beginning"
    assert not toy.opened


@pytest.mark.parametrize(
    ("resumed", "fix"),
    [
        ((1, 2), "are more than max_tokens=1"),
        ((9999,), "vocabulary's size"),
        ((1,) * (CONTEXT + 1), "are more than the context's"),
    ],
)
async def test_what_cannot_be_resumed_is_refused(model: Path, resumed: tuple[int, ...], fix: str) -> None:
    _, service = start(model)
    with pytest.raises(InvalidInput, match=f"resume_token_ids=.*{fix}"):
        await service.admit(GenerationRequest(prompt="a", max_tokens=1, resumed=resumed))


async def test_replies_add_up_and_only_the_last_has_an_end(model: Path) -> None:
    _, service = start(model)
    *replies, last = await run(service)
    assert "".join(reply.text for reply in (*replies, last)) == "héllo"
    assert [reply.finish_reason for reply in replies] == [None] * len(replies)
    assert (last.finish_reason, last.token_ids) == (FinishReason.STOP, ())
    assert last.metrics is not None
    assert last.metrics.num_generated_tokens == sum(len(reply.token_ids) for reply in replies) == 7


async def test_leaving_a_generation_ends_its_request(model: Path) -> None:
    toy, service = start(model)
    toy.num_answers = 0
    request = GenerationRequest(prompt="a")
    async with service.generation(request, await service.admit(request)) as generation:
        assert toy.pipeline.num_running == 1
    assert toy.closed == [generation.spec.request_id]
    assert toy.pipeline.num_running == 0


async def test_one_request_id_cannot_run_twice(model: Path) -> None:
    toy, service = start(model)
    toy.num_answers = 0
    request = GenerationRequest(prompt="a", request_id="mine")
    spec = await service.admit(request)
    async with service.generation(request, spec):
        with pytest.raises(InvalidInput, match="request_id='mine': is running already"):
            async with service.generation(request, spec):
                pass
    assert toy.pipeline.num_running == 0


@pytest.mark.parametrize("has_ended", [False, True])
async def test_who_resumes_his_own_request_ends_the_call_that_he_has_lost(model: Path, has_ended: bool) -> None:
    """Its connection may be half open for long: nobody reads, and nobody says so."""
    toy, service = start(model)
    toy.num_answers = 3 if has_ended else 1
    request = GenerationRequest(prompt="a", request_id="mine", client="alice")
    again = replace(request, resumed=toy.tokenizer.encode("h"))
    async with AsyncExitStack() as stack:
        async with AsyncExitStack() as lost:
            former = await lost.enter_async_context(service.generation(request, await service.admit(request)))
            while toy.pipeline.num_running if has_ended else former._queue.empty():
                await asyncio.sleep(0)
            for other in (request, replace(again, client="bob")):
                with pytest.raises(InvalidInput, match="is running already"):
                    await stack.enter_async_context(service.generation(other, await service.admit(other)))
            with pytest.raises(Overloaded, match="try again in 1 s"):
                await stack.enter_async_context(service.generation(again, await service.admit(again)))
            assert toy.closed == ["mine"]
            new = await stack.enter_async_context(service.generation(again, await service.admit(again)))
            with pytest.raises(InvalidInput, match="was resumed by another call"):
                await former.read()
        async with asyncio.timeout(10):
            assert await new.read(), "the end of the former call is not its own"
    assert toy.pipeline.num_running == 0
    assert toy.held["clients"] == 0


async def test_a_client_that_does_not_read_is_told_so_and_its_request_ends(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It used to wait for ever for what was thrown away: neither an end nor an error came."""
    monkeypatch.setattr(coordinator.server, "MAX_CLIENT_QUEUE", 2)
    toy, service = start(model)
    request = GenerationRequest(prompt="a")
    async with service.generation(request, await service.admit(request)) as generation:
        while not toy.closed:
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            assert await generation.read()
            assert await generation.read()
            with pytest.raises(Overloaded, match="not read"):
                await generation.read()
    assert toy.pipeline.num_running == 0


async def test_only_a_watched_request_is_told_of_spans_and_in_order(model: Path) -> None:
    toy, service = start(model)
    request = GenerationRequest(prompt="a")
    for watch in (False, True):
        spec = await service.admit(request)
        async with service.generation(request, spec, watch=watch) as generation:
            toy.feed(Drafted("drafter-1", Draft(spec.request_id, 0, 1, (5, 6), draft_ms=4.0)))
            replies = []
            while reply := await generation.read():
                replies.append(reply)
        spans = [span for reply in replies for span in reply.spans]
        assert [span.role for span in spans] == ([Role.DRAFTER] + [Role.VERIFIER] * 3 if watch else [])
        if watch:
            assert spans[0].end_s - spans[0].start_s == pytest.approx(0.004)
            assert spans[0].num_tokens == 2


async def test_who_would_be_turned_away_is_turned_away_before_his_text_is_tokenized(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = Toy(model, limits=Limits(max_waiting=1), max_requests_per_key=1)
    service, metrics = Service(toy), MetricsExport(toy)
    toy.observers.append(metrics)
    first = await service.admit(GenerationRequest(prompt="a", client="alice"))
    monkeypatch.setattr(type(toy.tokenizer), "encode", lambda *_, **__: pytest.fail("it was tokenized"))
    with toy.generation(first):
        with pytest.raises(Overloaded, match="requests of the key alice"):
            await service.admit(GenerationRequest(prompt="a", client="alice"))
        with pytest.raises(Overloaded, match="waiting requests"):
            await service.admit(GenerationRequest(prompt="a", client="bob"))
        refused = metrics.registry.get_sample_value(
            "paceline_request_failures_total", {"model_name": toy.config.model_name, "error": "Overloaded"}
        )
        assert refused == 2
        toy.is_draining = True
        with pytest.raises(Unavailable):
            await service.admit(GenerationRequest(prompt="a", client="bob"))


async def test_the_queues_bound_turns_nobody_away_for_whom_another_gives_way(model: Path) -> None:
    toy = Toy(model, limits=Limits(max_waiting=3))
    service = Service(toy)
    with ExitStack() as stack:
        for _ in range(3):
            spec = await service.admit(GenerationRequest(prompt="a", client="alice"))
            stack.enter_context(toy.generation(spec))
        assert await service.admit(GenerationRequest(prompt="a", client="bob"))


async def test_who_is_being_admitted_holds_a_place_and_text(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of one key's requests passed while none of them had come through the tokenizer, and kept its text."""
    toy = Toy(model, max_requests_per_key=2)
    service, text, may_go_on = Service(toy), "a" * 60, threading.Event()
    encode = toy.tokenizer.encode
    monkeypatch.setattr(coordinator.service, "MAX_INLINE_CHARS", 50)
    monkeypatch.setattr(toy.tokenizer, "encode", lambda *given, **how: may_go_on.wait(5) and encode(*given, **how))
    toy.texts = Shares("characters being tokenized", 250)
    asked = GenerationRequest(prompt=text, client="alice")
    tasks = [asyncio.create_task(service.admit(asked)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="requests of the key alice"):
        await service.admit(asked)
    with pytest.raises(Overloaded, match="characters being tokenized"):
        await service.tokenize(text, client="alice")
    tasks.append(asyncio.create_task(service.admit(replace(asked, client="bob"))))
    await asyncio.sleep(0)
    may_go_on.set()
    assert [len(spec.token_ids) for spec in await asyncio.gather(*tasks)] == [60, 60, 60]
    assert not toy._held
    assert not toy.texts.held
    assert await service.admit(asked), "its places were given back"
