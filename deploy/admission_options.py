"""Options of who is taken in: a coordinator's, and what a drafter does that is not."""

from __future__ import annotations

from deploy import options
from deploy.options import Group


def add_admission(group: Group) -> None:
    """Which workers a coordinator takes in."""
    group.add(
        "--max-workers",
        kind=options.whole(1, 65536),
        default=1024,
        metavar="N",
        help="workers of each role registered at a time",
    )
    group.add(
        "--admit-any",
        kind=options.boolean,
        default=False,
        help="take in drafters that could help no verifier here even if each of their tokens were accepted; without "
        "it they are refused, with the figures",
    )


def add_exit_if_refused(group: Group) -> None:
    group.add(
        "--exit-if-refused",
        kind=options.boolean,
        default=False,
        help="end with exit code 2 when a coordinator has no use for this drafter, instead of asking it now and then",
    )
