"""Options of who is taken in, and of how long one waits for it: a coordinator's, and what a refused drafter does."""

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
        "--lease-s",
        kind=options.number(1, 3600),
        default=10,
        metavar="S",
        help="seconds after which a silent worker counts as gone; workers call thrice in them",
    )
    group.add(
        "--admit-any",
        kind=options.boolean,
        default=False,
        help="take in drafters that could help no verifier here even if each of their tokens were accepted; without "
        "it they are refused, with the figures",
    )


def add_queue(group: Group) -> None:
    """How many requests wait for a verifier, and for how long."""
    group.add(
        "--max-waiting",
        kind=options.whole(1, 1_000_000),
        default=1024,
        metavar="N",
        help="requests queued for a verifier; over it clients are told at once to come back later",
    )
    group.add(
        "--queue-timeout-s",
        kind=options.number(0.1, 86400),
        default=60,
        metavar="S",
        help="longest wait for a verifier; over it a request fails as unavailable. Give more than a verifier takes to "
        "load its model where one verifier alone serves, and requests are to outlast its restart",
    )


def add_exit_if_refused(group: Group) -> None:
    group.add(
        "--exit-if-refused",
        kind=options.boolean,
        default=False,
        help="end with exit code 2 when a coordinator has no use for this drafter, instead of asking it now and then",
    )
