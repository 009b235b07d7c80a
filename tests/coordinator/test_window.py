"""Which drafts are believed: runs named by epochs, judged by content."""

from __future__ import annotations

from coordinator.core.window import Window
from paceline.types import Draft

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
