"""A drafter that is real in every way but what it says: a shell around the shipped engine that twists its drafts.

Which trick is played on a request is the first part of the request's id, up to a colon; requests without one of these
names are drafted honestly. No trick may change one token under `match` or `coupled`, nor under any rule at
temperature 0.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from drafter.engine import DrafterEngine
from drafter.requests import Replies
from paceline.types import Branch, Draft, DrafterAsk, Rows

_random = random.Random(1)
VOCABULARY = 4096
MAX_DRAFT = 64

Trick = Callable[[Draft, list[Draft]], list[Draft]]  # of an honest draft and those said before it


def _with_tokens(draft: Draft, *token_ids: int) -> Draft:
    """Other tokens; where rows are due, each a row in which its token is certain, as a careful liar would send."""
    rows = draft.rows and Rows(1, b"".join(x.to_bytes(4, "little") for x in token_ids), b"\xff\xff" * len(token_ids))
    return replace(draft, token_ids=token_ids, rows=rows)


def _garbage(draft: Draft) -> Draft:
    size = len(draft.token_ids)
    return replace(draft, rows=Rows(3, _random.randbytes(12 * size), _random.randbytes(6 * size)))


TRICKS: dict[str, Trick] = {
    "wrong": lambda draft, _: [_with_tokens(draft, *((x + 1) % VOCABULARY for x in draft.token_ids))],
    "longest": lambda draft, _: [_with_tokens(draft, *_random.choices(range(VOCABULARY), k=MAX_DRAFT))],
    "right-then-longest": lambda draft, _: [
        _with_tokens(draft, *draft.token_ids, *_random.choices(range(VOCABULARY), k=MAX_DRAFT - len(draft.token_ids)))
    ],
    "epoch-to-come": lambda draft, _: [replace(draft, epoch=draft.epoch + 1000), draft],
    "epoch-gone": lambda draft, _: [replace(draft, epoch=0), draft],
    "beyond-the-end": lambda draft, _: [replace(draft, start=draft.start + 400), draft],
    "beyond-the-context": lambda draft, _: [replace(draft, start=2**31)],
    "before-the-prompt": lambda draft, _: [replace(draft, start=0), draft],
    "shifted": lambda draft, _: [replace(draft, start=draft.start + 1)],
    "stale-repeats": lambda draft, said: [*said[-5:], draft, draft, *said[:2]],
    "backwards": lambda draft, said: [draft, *reversed(said[-8:])],
    "open-is-closed": lambda draft, _: [replace(draft, is_open=not draft.is_open)],
    "no-such-token": lambda draft, _: [_with_tokens(draft, *(2**31 for _ in draft.token_ids))],
    "no-such-request": lambda draft, _: [replace(draft, request_id="nobody"), draft],
    "garbage-rows": lambda draft, _: [_garbage(draft)],
    "no-rows": lambda draft, _: [replace(draft, rows=None)],
    "silent": lambda draft, _: [],
    "empty": lambda draft, _: [replace(draft, token_ids=(), rows=None)],  # malformed: it ends the whole stream
}


# Of an honest branch, and those said before it; played in mode branch.
BRANCH_TRICKS: dict[str, Callable[[Branch, list[Branch]], list[Branch]]] = {
    "branch-wrong": lambda it, _: [
        _branch(it, _with_tokens(it.draft, *((x + 1) % VOCABULARY for x in it.draft.token_ids)))
    ],
    "branch-longest": lambda it, _: [
        _branch(it, _with_tokens(it.draft, *_random.choices(range(VOCABULARY), k=MAX_DRAFT)))
    ],
    "branch-for-everything": lambda it, _: [replace(it, token_id=x) for x in range(0, VOCABULARY, 16)],
    "branch-shifted": lambda it, _: [_branch(it, replace(it.draft, start=it.draft.start + 1))],
    "branch-of-what-is-past": lambda it, _: [_branch(it, replace(it.draft, start=1)), it],
    "branch-beyond-the-end": lambda it, _: [_branch(it, replace(it.draft, start=2**31)), it],
    "branch-epoch-to-come": lambda it, _: [_branch(it, replace(it.draft, epoch=it.draft.epoch + 1))],
    "branch-epoch-gone": lambda it, _: [_branch(it, replace(it.draft, epoch=0))],
    "branch-stale-repeats": lambda it, said: [*said[-5:], it, it, *said[:2]],
    "branch-open-is-closed": lambda it, _: [_branch(it, replace(it.draft, is_open=not it.draft.is_open))],
    "branch-garbage-rows": lambda it, _: [_branch(it, _garbage(it.draft))],
    "branch-no-rows": lambda it, _: [_branch(it, replace(it.draft, rows=None))],
    "branch-withheld": lambda it, _: [],
}


def _branch(it: Branch, draft: Draft) -> Branch:
    return replace(it, draft=draft)


class HostileEngine(DrafterEngine):
    """See the top of the file."""

    def __init__(self, *worker: Any, **options: Any) -> None:
        super().__init__(*worker, **options)
        self.played: set[str] = set()
        self._history: dict[str, list[Draft]] = {}
        self._branches: dict[str, list[Branch]] = {}

    def handle(self, peer: int, ask: DrafterAsk, waited_s: float = 0.0) -> Replies:
        return self._twisted(super().handle(peer, ask, waited_s))

    def step(self) -> Replies:
        return self._twisted(super().step())

    def _twisted(self, replies: Iterable[tuple[int, object]]) -> Replies:
        said: list[tuple[int, Draft]] = []
        for peer, reply in replies:
            name = reply.request_id.partition(":")[0] if isinstance(reply, Branch) else ""
            if isinstance(reply, Branch) and name in BRANCH_TRICKS:
                self.played.add(name)
                history = self._branches.setdefault(reply.request_id, [])
                said += [(peer, branch) for branch in BRANCH_TRICKS[name](reply, history)]  # type: ignore[misc]
                history.append(reply)
                continue
            trick = TRICKS.get(reply.request_id.partition(":")[0]) if isinstance(reply, Draft) else None
            if trick is None:
                said.append((peer, reply))  # type: ignore[arg-type]
                continue
            assert isinstance(reply, Draft)
            self.played.add(reply.request_id.partition(":")[0])
            drafts = self._history.setdefault(reply.request_id, [])
            said += [(peer, draft) for draft in trick(reply, drafts)]
            drafts.append(reply)
        return said  # type: ignore[return-value]
