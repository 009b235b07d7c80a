"""The verifier's log: every ask may be repeated, overtaken or stale, and the answer is a piece of the log."""

from __future__ import annotations

from paceline.types import Decode, Draft, OpenVerify, Rule, SamplingParams, Source, Verdict, Verify
from verifier.session import Need, Session


def session(rule: Rule = Rule.MATCH, num_decode: int = 1) -> Session[str]:
    ask = OpenVerify("r", (1, 2, 3), SamplingParams(temperature=0), rule, seed=1, num_decode=num_decode)
    return Session(ask, 0.0)


def verify(start: int, *tokens: int, epoch: int = 0, is_open: bool = False, preverify: bool = False) -> Verify:
    return Verify(Draft("r", epoch, start, tokens, is_open), preverify)


def decode(it: Session[str], token: int) -> Verdict:
    work = it.work()
    assert work is not None
    assert work.need is Need.DECODE
    return it.judged(work, 0, token, Source.SELF_DECODED, None)


def judge(it: Session[str], accepted: int, token: int | None) -> Verdict:
    work = it.work()
    assert work is not None
    assert work.need is Need.JUDGE
    source = Source.BONUS if accepted == len(work.draft_ids) else Source.RECOVERED
    return it.judged(work, accepted, token, source, "row")


def test_the_prompt_and_the_first_token_take_one_pass() -> None:
    it = session()
    work = it.work()
    assert work is not None
    assert (work.start, work.token_ids, work.num_rows) == (0, (1, 2, 3), 1)
    assert decode(it, 7).token_ids == (7,)
    assert it.work() is None, "the next move is the coordinator's"


def test_a_draft_is_forwarded_after_the_one_pending_token() -> None:
    it = session()
    decode(it, 7)
    it.verify(verify(4, 8, 9), 0.0)
    work = it.work()
    assert work is not None
    assert (work.start, work.token_ids, work.num_rows) == (3, (7, 8, 9), 3)
    assert judge(it, 1, 5).token_ids == (8, 5)
    assert it.log == [1, 2, 3, 7, 8, 5]
    assert it.computed == 5, "the recovered token is not in the cache"
    assert it.retained is None, "so no row predicts the next position"


def test_drafts_that_queued_up_are_judged_as_one_chain() -> None:
    it = session()
    decode(it, 7)
    it.verify(verify(4, 8, 9), 0.0)
    it.verify(verify(6, 10), 0.0)
    work = it.work()
    assert work is not None
    assert work.draft_ids == (8, 9, 10)


def test_after_a_rejection_drafts_of_that_epoch_are_stale() -> None:
    it = session()
    decode(it, 7)
    it.verify(verify(4, 8, 9), 0.0)
    judge(it, 0, 5)
    it.verify(verify(5, 10), 0.0)
    it.verify(verify(6, 10), 0.0)
    assert it.work() is None
    it.verify(verify(5, 11, epoch=1), 0.0)
    work = it.work()
    assert work is not None
    assert work.draft_ids == (11,)


def test_an_ask_that_is_repeated_gets_the_same_answer_from_the_log() -> None:
    it = session()
    decode(it, 7)
    ask = verify(4, 8, 9)
    it.verify(ask, 0.0)
    first = judge(it, 1, 5)
    again = it.verify(ask, 0.0)
    assert again is not None
    assert (again.start, again.token_ids, again.sources) == (first.start, first.token_ids, first.sources)
    assert it.decode(Decode("r", 0, 3, 1), 0.0) is not None
    assert it.work() is None


def test_a_draft_that_arrives_ends_a_decoding_run() -> None:
    it = session(num_decode=100)
    decode(it, 7)
    it.verify(verify(4, 8), 0.0)
    judge(it, 1, 9)
    assert it.work() is None


def test_a_decoding_run_that_was_asked_for_behind_a_draft_outlives_it() -> None:
    """The coordinator has given the draft up meanwhile, and waits for the tokens that it asked for."""
    it = session(num_decode=1)
    decode(it, 7)
    it.verify(verify(4, 8), 0.0)
    it.decode(Decode("r", 1, 4, 5), 0.0)
    judge(it, 0, 9)
    work = it.work()
    assert work is not None
    assert work.need is Need.DECODE


def test_a_late_draft_that_disagrees_does_not_end_a_decoding_run() -> None:
    it = session(num_decode=100)
    decode(it, 7)
    decode(it, 8)
    it.verify(verify(4, 99, 100), 0.0)
    work = it.work()
    assert work is not None
    assert work.need is Need.DECODE


def test_a_late_draft_that_still_fits_is_cut_and_judged() -> None:
    it = session(num_decode=100)
    decode(it, 7)
    decode(it, 8)
    it.verify(verify(4, 8, 9, 10), 0.0)
    work = it.work()
    assert work is not None
    assert work.draft_ids == (9, 10)


def test_an_open_draft_kept_whole_leaves_a_row_that_judges_its_successor() -> None:
    it = session(Rule.TOKEN)
    decode(it, 7)
    it.verify(verify(4, 8, is_open=True), 0.0)
    assert judge(it, 1, None).token_ids == (8,)
    assert (it.retained, it.computed) == ("row", 5)
    it.verify(verify(5, 9, 10, is_open=True), 0.0)
    work = it.work()
    assert work is not None
    assert (work.start, work.token_ids, work.num_rows) == (5, (9, 10), 2), "the first token's row is there already"


def test_nothing_is_chained_to_a_closed_draft_that_is_judged_as_a_block() -> None:
    """A bonus comes after it, and the next draft must begin with that."""
    it = session(Rule.BLOCK)
    decode(it, 7)
    it.verify(verify(4, 8, is_open=True), 0.0)
    it.verify(verify(5, 9, is_open=False), 0.0)
    it.verify(verify(6, 10, 11), 0.0)
    work = it.work()
    assert work is not None
    assert (work.draft_ids, work.take_bonus) == ((8, 9), True)
    judge(it, 2, 10)
    work = it.work()
    assert work is not None
    assert work.draft_ids == (11,)


def test_a_missing_successor_is_decoded_from_the_retained_row_without_a_pass() -> None:
    it = session(Rule.TOKEN)
    decode(it, 7)
    it.verify(verify(4, 8, is_open=True), 0.0)
    judge(it, 1, None)
    it.decode(Decode("r", 0, 5, 1), 0.0)
    work = it.work()
    assert work is not None
    assert (work.need, work.token_ids, work.num_rows) == (Need.DECODE, (), 0)


def test_preverify_forwards_the_recovered_token_at_once() -> None:
    """Under match the row gives a token of the target's own; under rejection sampling it waits for the redraft."""
    for rule, need in ((Rule.MATCH, Need.DECODE), (Rule.TOKEN, Need.PREFILL)):
        it = session(rule)
        decode(it, 7)
        it.verify(verify(4, 8, 9, preverify=True), 0.0)
        judge(it, 0, 5)
        work = it.work()
        assert work is not None
        assert (work.need, work.token_ids) == (need, (5,))


def test_a_draft_that_overtakes_the_one_before_it_waits_for_it() -> None:
    it = session()
    decode(it, 7)
    assert it.verify(verify(6, 10), 0.0) is None
    assert it.work() is None
    assert it.verify(verify(7, 11), 0.0) is None
    it.verify(verify(4, 8, 9), 0.0)
    work = it.work()
    assert work is not None
    assert work.draft_ids == (8, 9, 10, 11)


def test_a_draft_that_overtakes_is_forgotten_with_its_epoch() -> None:
    it = session()
    decode(it, 7)
    it.verify(verify(5, 99), 0.0)
    it.verify(verify(4, 8, epoch=1), 0.0)
    work = it.work()
    assert work is not None
    assert work.draft_ids == (8,)


def test_drafts_that_overtake_are_kept_up_to_a_bound() -> None:
    it = session()
    decode(it, 7)
    for start in range(5, 40):
        it.verify(verify(start, start), 0.0)
    it.verify(verify(4, 8), 0.0)
    work = it.work()
    assert work is not None
    assert 1 < len(work.draft_ids) < 20


def test_an_ask_for_what_the_log_holds_changes_nothing() -> None:
    """It is not asked for behind a draft: that one still ends the run."""
    it = session(num_decode=100)
    decode(it, 7)
    it.verify(verify(4, 8), 0.0)
    told = it.decode(Decode("r", 1, 3, 1), 0.0)
    assert told is not None
    assert told.token_ids == (7,)
    judge(it, 1, 9)
    assert it.work() is None
