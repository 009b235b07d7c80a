"""Which drafts are believed: runs named by epochs, judged by content."""

from __future__ import annotations

from coordinator.core.window import Window
from paceline.types import MAX_BRANCH_TOKENS, MAX_BRANCHES, Branch, Draft

PROMPT = [1, 2, 3]


def draft(start: int, *tokens: int, epoch: int = 0) -> Draft:
    return Draft("r", epoch, start, tokens, is_open=True)


def test_a_run_is_admitted_while_it_has_no_gap() -> None:
    window = Window()
    assert window.admit(draft(3, 10, 11), PROMPT) is not None
    assert window.admit(draft(5, 12, 13), PROMPT) is not None
    assert window.admit(draft(8, 14), PROMPT) is None, "position 7 is missing"
    assert window.admit(draft(5, 12, 13), PROMPT) is None, "sent again"
    assert [d.start for d in window.drafts] == [3, 5]


def test_what_is_committed_already_is_cut_off() -> None:
    admitted = Window().admit(draft(3, 10, 11, 12), [*PROMPT, 10, 11])
    assert admitted is not None
    assert (admitted.start, admitted.token_ids) == (5, (12,))


def test_full_acceptance_of_what_was_seen_keeps_the_epoch() -> None:
    window = Window()
    window.admit(draft(3, 10, 11), PROMPT)
    assert window.settle([*PROMPT, 10, 11])
    assert window.epoch == 0
    assert not window.drafts


def test_a_bonus_beyond_the_run_issues_an_epoch_but_believes_the_run_if_it_agrees() -> None:
    """The draft that follows was on its way when the verdict came; throwing it away would cost a round trip."""
    committed = [*PROMPT, 10, 11, 99]
    window = Window()
    window.admit(draft(3, 10, 11), PROMPT)
    window.settle(committed)
    assert window.epoch == 1
    admitted = window.admit(draft(5, 99, 12), committed)
    assert admitted is not None
    assert admitted.token_ids == (12,)


def test_a_run_that_disagrees_is_never_believed_again() -> None:
    committed = [*PROMPT, 10, 11, 99]
    window = Window()
    window.admit(draft(3, 10, 11), PROMPT)
    window.settle(committed)
    assert window.admit(draft(5, 98, 12), committed) is None
    assert window.admit(draft(7, 13), committed) is None, "the same run, later"
    assert window.admit(draft(6, 13, epoch=1), committed) is not None, "the run that begins after the commit"


def test_a_rejection_ends_the_run_and_drops_what_is_in_flight() -> None:
    window = Window()
    window.admit(draft(3, 10, 11), PROMPT)
    window.admit(draft(5, 12), PROMPT)
    assert not window.settle([*PROMPT, 10, 77])
    assert not window.drafts
    assert window.admit(draft(6, 13), [*PROMPT, 10, 77]) is None
    assert window.admit(draft(5, 13, epoch=1), [*PROMPT, 10, 77]) is not None


def test_an_epoch_that_was_never_issued_is_not_believed() -> None:
    assert Window().admit(draft(3, 10, epoch=5), PROMPT) is None


def test_a_gap_within_the_committed_tokens_is_none() -> None:
    """A draft that was lost while the verifier decoded past it must not stop the run for ever."""
    window = Window()
    window.admit(draft(3, 10), PROMPT)
    committed = [*PROMPT, 10, 11, 12, 13]
    window.settle(committed)
    assert window.admit(draft(6, 13, 14), committed) is not None


def branch(outcome: int, start: int, *tokens: int, epoch: int = 0) -> Branch:
    return Branch(outcome, draft(start, *tokens, epoch=epoch))


def rejected_at_4(*branches: Branch) -> tuple[Window, list[int]]:
    """A run of four tokens with its branches, of which the second was rejected, for 77."""
    window = Window()
    window.admit(draft(3, 10, 11, 12, 13), PROMPT)
    assert not any(window.admit_branch(it, PROMPT) for it in branches)
    committed = [*PROMPT, 10, 77]
    assert not window.settle(committed)
    return window, committed


def test_the_branch_of_what_came_is_the_first_draft_of_the_next_run() -> None:
    window, committed = rejected_at_4(branch(78, 5, 1), branch(77, 5, 20, 21), branch(77, 4, 2), branch(77, 6, 3))
    promoted = window.promote(committed)
    assert promoted is not None
    assert (promoted.epoch, promoted.start, promoted.token_ids) == (1, 5, (20, 21))
    assert list(window.drafts) == [promoted]
    assert window.admit(draft(7, 22, epoch=1), committed) is not None, "the drafter goes on behind it"
    assert window.admit(draft(5, 20, 21, epoch=1), committed) is None, "what it sends again is known"
    assert window.promote(committed) is None, "once"


def test_a_branch_that_was_on_its_way_is_promoted_under_the_name_that_the_drafter_gives_it() -> None:
    window, committed = rejected_at_4()
    committed.append(20)  # the verifier has gone on by itself, and another epoch was issued
    assert window.settle(committed)
    assert window.epoch == 2
    promoted = window.admit_branch(branch(77, 5, 20, 21), committed)
    assert promoted is not None
    assert (promoted.epoch, promoted.start, promoted.token_ids) == (1, 6, (21,))


def test_a_late_branch_is_dropped_if_it_does_not_fit_or_the_next_run_has_begun() -> None:
    for late in (branch(78, 5, 20), branch(77, 4, 20), branch(10, 4, 20), branch(77, 5, 20, epoch=1)):
        window, committed = rejected_at_4()
        assert window.admit_branch(late, committed) is None
    window, committed = rejected_at_4()
    assert window.admit(draft(5, 30, epoch=1), committed) is not None
    assert window.admit_branch(branch(77, 5, 20), committed) is None


def test_a_branch_that_contradicts_what_came_after_its_outcome_is_not_believed() -> None:
    window = Window()
    window.admit(draft(3, 10, 11), PROMPT)
    window.admit_branch(branch(77, 4, 20, 21), PROMPT)
    committed = [*PROMPT, 77, 20, 99]
    window.settle(committed)
    assert window.promote(committed) is None
    assert window.admit(draft(6, 30, epoch=window.epoch), committed) is not None, "the drafter begins anew"


def test_branches_of_another_run_or_beyond_what_was_seen_of_it_are_not_kept() -> None:
    for stray in (branch(77, 5, 20, epoch=1), branch(77, 9, 20)):
        window, committed = rejected_at_4(stray)
        assert window.promote(committed) is None
    window = Window()
    window.admit(draft(3, 10, 11), PROMPT)
    window.admit_branch(branch(77, 5, 20), PROMPT)
    window.restart()
    committed = [*PROMPT, 10, 77]
    window.settle(committed)
    assert window.promote(committed) is None, "the drafter has changed"


def test_branches_are_bounded() -> None:
    window, committed = rejected_at_4(*(branch(100 + i, 5, 1) for i in range(MAX_BRANCHES)), branch(77, 5, 20))
    assert window.promote(committed) is None
    many = MAX_BRANCH_TOKENS // 64
    window, committed = rejected_at_4(*(branch(100 + i, 5, *range(64)) for i in range(many)), branch(77, 5, 20))
    assert window.promote(committed) is None
