"""Tokens that grow into a draft: what the chain of a request and its branches have in common. No tensors, no clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from paceline.types import Draft, OpenDraft, Rows

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Choice:
    """What a row says of the token that was drawn from it."""

    doubt: float  # the mass beside the row's likeliest token
    others: tuple[tuple[int, float], ...]  # the likeliest tokens but the drawn one, and their shares of what it leaves


class Chain(Generic[Row]):
    """`Row` is whatever the engine keeps of a draft row until the draft is sent."""

    number = 0  # of a branch; the request's own chain has none

    def __init__(self, ask: OpenDraft, token_ids: Iterable[int], epoch: int) -> None:
        self.ask = ask
        self.tokens = list(token_ids)  # what the draft follows, then its own
        self.computed = 0  # invariant: <= len(tokens); the KV cache is valid for tokens[:computed]
        self.epoch = epoch  # of the run
        self.rows: list[Row] = []  # of the draft being made
        self.draft_ms = 0.0  # spent on it
        self.choices: dict[int, Choice] = {}  # by the position of a drawn token, where branches are wanted
        self._start = len(self.tokens)  # where the draft being made starts
        self._ended = False  # an end-of-sequence token was drafted

    @property
    def draft_length(self) -> int:
        """Tokens in the draft being made."""
        return len(self.tokens) - self._start

    @property
    def num_prompt_tokens(self) -> int:
        return self.ask.num_prompt_tokens or len(self.ask.token_ids)

    def push(self, token_id: int, *, stop: bool, choice: Choice | None = None) -> bool:
        """Append a drafted token; True if the draft is complete, because `stop` or nothing can follow."""
        if choice:
            self.choices[len(self.tokens)] = choice
        self.tokens.append(token_id)
        self._ended = token_id in self.ask.stop_token_ids
        return stop or self._ended or len(self.tokens) >= self.ask.end

    @property
    def _may_go_on(self) -> bool:
        return not self._ended and len(self.tokens) < self.ask.end

    def _draft(self, rows: Rows | None) -> Draft:
        """The draft being made, as it is."""
        is_open = self.ask.window > 1 and self._may_go_on
        tokens = tuple(self.tokens[self._start :])
        return Draft(self.ask.request_id, self.epoch, self._start, tokens, is_open, rows, self.draft_ms)
