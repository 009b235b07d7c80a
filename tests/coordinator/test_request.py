"""Behaviours of one request, seen through the commands of the core."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator.core.commands import Ask, Command, Fail
from coordinator.core.events import (
    Arrived,
    Drafted,
    Ended,
    Faulted,
    Passed,
    RequestSpec,
    Tick,
    Verified,
    WorkerDown,
    WorkerUp,
)
from coordinator.core.limits import Limits
from coordinator.core.metrics import RequestMetrics, _overlap_s
from coordinator.core.pipeline import Pipeline
from paceline.errors import InvalidInput, Overloaded, Unavailable, Unsupported
from paceline.length_policy import LengthPolicy
from paceline.types import (
    Blame,
    Close,
    Commit,
    Decode,
    Draft,
    FinishReason,
    Mode,
    OpenDraft,
    OpenVerify,
    Pass,
    Role,
    Rule,
    SamplingParams,
    Source,
    Verdict,
    Verify,
    WorkerInfo,
)
from tests.world import Network, World

GREEDY = SamplingParams(temperature=0)


def info(role: Role, places: int = 4, address: str = "", policies: tuple[str, ...] = ()) -> WorkerInfo:
    return WorkerInfo(role, address, 1, "toy", "", "", 50, 4096, places, (), "float32", "cpu", policies=policies)


def pipeline(*, drafter: bool = True, places: int = 4, limits: Limits | None = None) -> Pipeline:
    it = Pipeline(limits)
    it.handle(WorkerUp("v", info(Role.VERIFIER, places)), 0.0)
    if drafter:
        it.handle(WorkerUp("d", info(Role.DRAFTER, places), is_trusted=True), 0.0)
    return it


def spec(name: str = "r", **settings: object) -> RequestSpec:
    fields: dict[str, object] = {"max_tokens": 20, "sampling": GREEDY, "seed": 1, "draft_seed": 2, "mode": Mode.PEARL}
    return RequestSpec(name, (1, 2, 3), **(fields | settings))  # type: ignore[arg-type]


def asks(commands: list[Command]) -> list[object]:
    return [command.ask for command in commands if isinstance(command, Ask)]


def verdict(start: int, *tokens: int, source: Source = Source.SELF_DECODED) -> Verified:
    return Verified("v", Verdict("r", 0, start, tokens, (source,) * len(tokens)))


def test_both_workers_start_prefilling_at_once() -> None:
    first, second = asks(pipeline().handle(Arrived(spec()), 0.0))
    assert isinstance(first, OpenDraft)
    assert isinstance(second, OpenVerify)
    assert second.num_decode == 1, "the first token is plain target output and does not wait for a draft"


def test_in_mode_auto_nobody_waits_for_a_drafter_that_is_not_known_yet() -> None:
    drafted, verified = asks(pipeline().handle(Arrived(spec(mode=None)), 0.0))
    assert isinstance(drafted, OpenDraft)
    assert isinstance(verified, OpenVerify)
    assert verified.num_decode == 20


def test_without_a_drafter_the_verifier_decodes_on_without_being_asked_again() -> None:
    it = pipeline(drafter=False)
    (opened,) = asks(it.handle(Arrived(spec()), 0.0))
    assert isinstance(opened, OpenVerify)
    assert opened.num_decode == 20
    assert asks(it.handle(verdict(3, 7), 0.1)) == []


def test_a_drafter_that_comes_back_takes_up_the_request_where_it_is() -> None:
    it = pipeline(drafter=False)
    it.handle(Arrived(spec()), 0.0)
    it.handle(verdict(3, 7, 8), 0.1)
    (opened,) = asks(it.handle(WorkerUp("d", info(Role.DRAFTER)), 0.2))
    assert isinstance(opened, OpenDraft)
    assert opened.token_ids == (1, 2, 3, 7, 8)


def test_losing_the_drafter_lets_the_verifier_decode_the_rest() -> None:
    it = pipeline()
    it.handle(Arrived(spec()), 0.0)
    it.handle(verdict(3, 7), 0.1)
    it.handle(Drafted("d", Draft("r", 2, 4, (8, 9))), 0.15)
    it.handle(verdict(4, 8, 9, 5), 0.17)
    (decode,) = asks(it.handle(WorkerDown("d"), 0.2))
    assert decode == Decode("r", 3, 7, 16)


def test_losing_the_verifier_moves_committed_tokens_and_drafts_in_flight() -> None:
    it = pipeline()
    it.handle(Arrived(spec()), 0.0)
    it.handle(verdict(3, 7), 0.1)
    it.handle(Drafted("d", Draft("r", 2, 4, (8, 9))), 0.15)
    assert asks(it.handle(WorkerDown("v"), 0.2)) == []
    opened, again = asks(it.handle(WorkerUp("w", info(Role.VERIFIER)), 0.3))
    assert isinstance(opened, OpenVerify)
    assert opened.token_ids == (1, 2, 3, 7)
    assert isinstance(again, Verify)
    assert again.draft.token_ids == (8, 9)


def test_without_any_verifier_a_request_waits_then_fails_as_unavailable() -> None:
    it = Pipeline(Limits(queue_timeout_s=5))
    assert it.handle(Arrived(spec()), 0.0) == []
    assert it.next_deadline_s() == 5
    (fail,) = it.handle(Tick(), 5.0)
    assert isinstance(fail, Fail)
    assert isinstance(fail.error, Unavailable)


def test_a_queue_that_moves_is_waited_in_for_longer_and_one_that_stands_is_not() -> None:
    """A thousand prompts sent at once are served in turn; what waits in vain is still told so."""
    it = pipeline(places=1, drafter=False, limits=Limits(queue_timeout_s=5))
    it.handle(Arrived(spec("r", max_tokens=1)), 0.0)
    it.handle(Arrived(spec("s", max_tokens=50)), 0.0)
    it.handle(Arrived(spec("t")), 0.0)
    it.handle(verdict(3, 7), 4.0)  # r ends, and s begins
    it.handle(replace(verdict(3, 7), verdict=replace(verdict(3, 7).verdict, request_id="s")), 4.5)
    assert not [one for one in it.handle(Tick(), 5.0) if isinstance(one, Fail)]
    assert not [one for one in it.handle(Tick(), 9.4) if isinstance(one, Fail)]
    (failed,) = [one for one in it.handle(Tick(), 9.6) if isinstance(one, Fail)]
    assert failed.request_id == "t"
    assert isinstance(failed.error, Unavailable)


def test_the_thousand_prompts_that_vllms_benchmark_sends_at_once_all_find_room() -> None:
    it = pipeline(places=1, drafter=False)
    commands = [one for i in range(1000) for one in it.handle(Arrived(spec(f"{i}")), 0.0)]
    assert not [one for one in commands if isinstance(one, Fail)]
    assert it.num_waiting == 999


def test_over_the_queue_bound_clients_are_told_at_once() -> None:
    it = Pipeline(Limits(max_waiting=1))
    it.handle(Arrived(spec("a")), 0.0)
    (fail,) = it.handle(Arrived(spec("b")), 0.0)
    assert isinstance(fail, Fail)
    assert isinstance(fail.error, Overloaded)


def test_a_request_waits_for_a_free_place_and_gets_the_one_given_back() -> None:
    it = pipeline(places=1)
    it.handle(Arrived(spec("r", max_tokens=1)), 0.0)
    assert it.handle(Arrived(spec("s")), 0.0) == []
    commands = it.handle(verdict(3, 7), 0.1)
    assert [type(ask) for ask in asks(commands)] == [Close, Close, OpenDraft, OpenVerify]


def test_a_request_that_is_wrong_itself_is_not_tried_elsewhere() -> None:
    it = pipeline()
    it.handle(Arrived(spec()), 0.0)
    commands = it.handle(Faulted("v", "r", "too long", Blame.CALLER), 0.1)
    assert any(isinstance(command, Fail) and isinstance(command.error, InvalidInput) for command in commands)


def test_a_drafter_that_refuses_costs_only_its_drafts() -> None:
    it = pipeline()
    it.handle(Arrived(spec()), 0.0)
    it.handle(verdict(3, 7), 0.1)
    it.handle(Drafted("d", Draft("r", 2, 4, (8, 9))), 0.15)
    it.handle(verdict(4, 8, 9, 5), 0.17)
    commands = it.handle(Faulted("d", "r", "no place"), 0.2)
    assert any(isinstance(ask, Decode) for ask in asks(commands))


def passed(start: int, epoch: int = 2) -> Passed:
    return Passed("d", Pass("r", epoch, start))


def test_a_drafter_that_passes_is_not_waited_for() -> None:
    it = pipeline()
    it.handle(Arrived(spec()), 0.0)
    it.handle(verdict(3, 7), 0.1)
    assert asks(it.handle(passed(4), 0.101)) == [Decode("r", 2, 4, 1)]
    commands = it.handle(verdict(4, 8), 0.2)
    assert asks(commands) == [Commit("r", 3, 4, (8,))], "it is asked again after that token"


def test_a_pass_that_is_repeated_late_or_early_changes_nothing() -> None:
    it = pipeline()
    it.handle(Arrived(spec()), 0.0)
    assert asks(it.handle(passed(3, 1), 0.05)) == [], "the first token is on its way already"
    it.handle(verdict(3, 7), 0.1)
    assert asks(it.handle(passed(3, 1), 0.11)) == [], "what is committed since is on its way to the drafter"
    assert asks(it.handle(passed(5), 0.12)) == [], "no honest drafter is ahead of what is committed"
    assert len(asks(it.handle(passed(4), 0.13))) == 1
    assert asks(it.handle(passed(4), 0.14)) == []


def test_a_pass_while_a_draft_is_judged_changes_nothing() -> None:
    it = pipeline()
    it.handle(Arrived(spec()), 0.0)
    it.handle(verdict(3, 7), 0.1)
    it.handle(Drafted("d", Draft("r", 2, 4, (8, 9))), 0.15)
    assert asks(it.handle(passed(4), 0.16)) == []


def test_a_pass_of_another_drafter_is_not_heard() -> None:
    it = pipeline()
    it.handle(Arrived(spec()), 0.0)
    it.handle(verdict(3, 7), 0.1)
    assert it.handle(Passed("e", Pass("r", 2, 4)), 0.11) == []


def test_the_verifier_decodes_on_while_a_slow_drafter_has_nothing() -> None:
    """Each answer takes twice as long as a pass, so waiting for one after every token would treble the time."""
    it = pipeline()
    it.handle(Arrived(spec(max_tokens=90)), 0.0)
    now_s, lengths = 0.0, []
    for start in range(3, 9):
        it.handle(Verified("v", Verdict("r", 0, start, (7,), (Source.SELF_DECODED,), verify_ms=10)), now_s)
        now_s += 0.02
        lengths += [ask.num_tokens for ask in asks(it.handle(passed(start + 1), now_s)) if isinstance(ask, Decode)]
    (length,) = lengths
    assert length > 16, "one run, long enough for all"


HEAD = LengthPolicy.parse("specdecpp")


def with_drafters(**policies: tuple[str, ...]) -> Pipeline:
    it = pipeline(drafter=False)
    for name, offered in policies.items():
        it.handle(WorkerUp(name, info(Role.DRAFTER, places=1, policies=offered)), 0.0)
    return it


def test_a_policy_that_no_drafter_offers_is_refused_with_those_that_are_offered() -> None:
    it = with_drafters(d=("fixed",), e=("fixed", "svip"))
    (fail,) = it.handle(Arrived(spec(policy=HEAD)), 0.0)
    assert isinstance(fail, Fail)
    assert isinstance(fail.error, Unsupported)
    assert "the drafters that are here offer fixed, svip" in str(fail.error)
    assert asks(it.handle(Arrived(spec("off", policy=HEAD, mode=Mode.OFF)), 0.0)), "nothing is drafted"


def test_a_request_goes_to_a_drafter_that_offers_its_policy() -> None:
    it = with_drafters(d=("fixed",), e=("fixed", "specdecpp"))
    first = it.handle(Arrived(spec(policy=HEAD)), 0.0)[0]
    assert isinstance(first, Ask)
    assert (first.worker, type(first.ask)) == ("e", OpenDraft)


def test_a_drafter_that_has_not_said_what_it_offers_is_asked() -> None:
    first = pipeline().handle(Arrived(spec(policy=HEAD)), 0.0)[0]
    assert isinstance(first, Ask)
    assert isinstance(first.ask, OpenDraft)


def test_a_request_that_waits_for_a_drafter_of_its_policy_holds_up_no_other() -> None:
    it = with_drafters(e=("fixed", "specdecpp"))
    for name in ("a", "b"):  # one place: b waits for it
        it.handle(Arrived(spec(name, policy=HEAD)), 0.0)
    it.handle(Arrived(spec("c")), 0.0)
    (opened,) = asks(it.handle(WorkerUp("d", info(Role.DRAFTER, places=1, policies=("fixed",))), 0.1))
    assert isinstance(opened, OpenDraft)
    assert opened.request_id == "c"
    opened = next(a for a in asks(it.handle(Ended("a", FinishReason.CANCELLED), 0.2)) if isinstance(a, OpenDraft))
    assert opened.request_id == "b"


def test_a_policy_for_a_head_goes_on_without_drafts_while_there_is_no_drafter_at_all() -> None:
    it = pipeline(drafter=False)
    (opened,) = asks(it.handle(Arrived(spec(policy=HEAD)), 0.0))
    assert isinstance(opened, OpenVerify)
    it.handle(WorkerUp("d", info(Role.DRAFTER, policies=("fixed",))), 0.1)
    assert asks(it.handle(WorkerUp("e", info(Role.DRAFTER, policies=("specdecpp",))), 0.2))


@pytest.mark.parametrize(("tokens", "kept"), [((7, 9, 5, 9), (7, 9)), ((9,), (9,))])
def test_output_ends_with_the_first_stop_token_anywhere_in_a_verdict(
    tokens: tuple[int, ...], kept: tuple[int, ...]
) -> None:
    it = pipeline()
    it.handle(Arrived(spec(stop_token_ids=(9,))), 0.0)
    emit, *_, finish = it.handle(verdict(3, *tokens), 0.1)
    assert emit.token_ids == kept  # type: ignore[union-attr]
    assert finish.reason is FinishReason.STOP  # type: ignore[union-attr]


def test_never_more_than_max_tokens_are_emitted() -> None:
    it = pipeline()
    it.handle(Arrived(spec(max_tokens=2)), 0.0)
    emit, *_, finish = it.handle(verdict(3, 7, 8, 9), 0.1)
    assert emit.token_ids == (7, 8)  # type: ignore[union-attr]
    assert finish.reason is FinishReason.LENGTH  # type: ignore[union-attr]


def test_a_verdict_applied_twice_changes_nothing() -> None:
    it = pipeline()
    it.handle(Arrived(spec()), 0.0)
    assert it.handle(verdict(3, 7), 0.1)
    assert it.handle(verdict(3, 7), 0.1) == []


def test_the_drafter_hears_of_every_commit() -> None:
    it = pipeline()
    it.handle(Arrived(spec()), 0.0)
    commits = [ask for ask in asks(it.handle(verdict(3, 7), 0.1)) if isinstance(ask, Commit)]
    assert commits == [Commit("r", 2, 3, (7,))]


@pytest.mark.parametrize(
    ("sampling", "rule"),
    [
        (GREEDY, Rule.MATCH),
        (SamplingParams(temperature=1, seed=5), Rule.COUPLED),
        (SamplingParams(temperature=1), Rule.BLOCK),
    ],
)
def test_auto_chooses_an_exact_rule_for_the_sampling(sampling: SamplingParams, rule: Rule) -> None:
    opened = asks(pipeline().handle(Arrived(spec(sampling=sampling)), 0.0))
    assert {ask.rule for ask in opened} == {rule}  # type: ignore[attr-defined]


def test_only_the_coupled_rule_shares_its_seed_with_the_drafter() -> None:
    """The verifier's coins must not be visible to a drafter: it could choose drafts that suit them."""
    for sampling, shared in ((SamplingParams(seed=5), True), (SamplingParams(), False)):
        drafted, verified = asks(pipeline().handle(Arrived(spec(sampling=sampling)), 0.0))
        assert (drafted.seed == verified.seed) is shared  # type: ignore[attr-defined]


@pytest.mark.parametrize("rule", [Rule.TOKEN, Rule.BLOCK, Rule.MATCH])
def test_a_seed_that_the_client_gave_stays_with_the_verifier(rule: Rule) -> None:
    drafted, verified = asks(pipeline().handle(Arrived(spec(sampling=SamplingParams(seed=5), seed=5, rule=rule)), 0.0))
    assert 5 not in (drafted.seed, drafted.sampling.seed)  # type: ignore[attr-defined]
    assert verified.seed == 5  # type: ignore[attr-defined]


def test_metrics_account_for_every_token() -> None:
    world = World(3, network=Network(delay_s=0.0005))
    world.verifier()
    world.drafter(agreement=0.8)
    client = world.request(max_tokens=300)
    world.run().check_lossless()
    metrics = client.metrics
    assert metrics is not None
    assert metrics.num_generated_tokens == 300 == sum(metrics.sources.values())
    assert metrics.num_accepted_tokens <= metrics.num_tested_tokens <= metrics.num_judged_tokens
    histogram = metrics.acceptance_histogram
    assert sum(histogram) == metrics.num_drafts
    assert sum(i * num_drafts for i, num_drafts in enumerate(histogram)) == metrics.num_accepted_tokens
    assert metrics.num_judged_tokens < metrics.num_draft_tokens  # a rejection leaves drafts behind that nobody judges
    assert metrics.num_tested_tokens - metrics.num_accepted_tokens >= metrics.sources[Source.RECOVERED]
    assert 0.2 < metrics.overlap_share <= 1


def test_overlap_is_measured_against_the_union_of_verifications() -> None:
    assert _overlap_s([(0, 4)], [(1, 2), (1.5, 2.5), (3, 9)]) == 2.5
    assert _overlap_s([(0, 1), (2, 3)], [(0.5, 2.5)]) == 1.0
    assert RequestMetrics("off", "match", "", 1, 3).overlap_share == 0


@pytest.mark.parametrize(("rule", "is_judged"), [(Rule.TOKEN, False), (Rule.BLOCK, False), (Rule.MATCH, True)])
def test_a_drafter_that_was_silent_before_the_request_came_begins_anew_where_rows_are_needed(
    rule: Rule, is_judged: bool
) -> None:
    """The verifier decodes without waiting for it, and a draft would be judged, or overtaken, by when it comes."""
    it = pipeline()
    it.pools.pace("d").is_silent = True
    opened = asks(it.handle(Arrived(spec(rule=rule, mode=Mode.PEARL)), 0.0))
    (epoch,) = (ask.epoch for ask in opened if isinstance(ask, OpenDraft))
    judged = asks(it.handle(Drafted("d", Draft("r", epoch, 3, (7, 8))), 0.05))
    assert any(isinstance(ask, Verify) for ask in judged) is is_judged
