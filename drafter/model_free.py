"""The engine of the drafters without a model: many requests, one thread, no torch, no weights, up at once.

It takes the asks of `drafter.engine` and gives the same answers, whatever the target's vocabulary: it only ever
proposes tokens that it was told. Where nothing was seen before that the text ends like, it passes, and the verifier
decodes on at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from drafter.guess import Guesser, Method
from drafter.lookup import PromptLookup
from drafter.requests import Entry, Replies, Requests
from drafter.session import Session
from drafter.suffix import SuffixDecoding
from paceline.length_policy import LengthPolicy, offered
from paceline.types import DrafterReply, OpenDraft, Rows, Rule, SamplingParams, StepCost, WorkerInfo

# What `--model` may name instead of a model.
METHODS: Mapping[str, type[PromptLookup] | type[SuffixDecoding]] = {
    "prompt-lookup": PromptLookup,
    "suffix": SuffixDecoding,
}

MAX_LEARNED = 1024  # tokens of a prompt a step: about ten milliseconds, for which the other requests wait
_MEMORY = 256.0  # drafted tokens until what a token took counts for a third


@dataclass(slots=True)
class _Entry(Entry[None]):
    guesser: Guesser


class ModelFreeEngine(Requests[_Entry]):
    """See the top of the file. Belongs to one thread."""

    def __init__(self, method: Method, info: WorkerInfo, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__(replace(info, policies=offered(has_head=False)), info.max_model_len, clock)
        self._method = method
        self._ms, self._num_tokens = 0.0, 0.0  # spent on how many drafted tokens, fading
        self._measure()

    def _measure(self) -> None:
        """Draft for a made-up request, so that there is a cost to register with."""
        text = tuple(range(64)) * 8
        ask = OpenDraft(
            "cost", 0, text[: self._longest - 1], SamplingParams(0), Rule.MATCH, 0, LengthPolicy(), window=4, end=4096
        )
        if ask.token_ids:
            self.handle(0, ask)
            while self.has_work():
                self.step()
            self.drop(0)

    # --- asks

    def _open(self, key: str, peer: int, ask: OpenDraft) -> _Entry:
        return _Entry(peer, Session(ask), self._make(ask.policy), self._method.begin(peer, ask))

    def _close(self, key: str) -> _Entry | None:
        if entry := super()._close(key):
            entry.guesser.finish(entry.session.tokens, entry.session.num_committed)
        return entry

    def drop(self, peer: int) -> None:
        super().drop(peer)
        self._method.forget(peer)

    # --- work

    def step(self) -> Replies:
        """A draft more for every request that has room for one."""
        wanting = [entry for entry in self._entries.values() if entry.session.wants_token()]
        return [(entry.peer, reply) for entry in wanting for reply in self._draft(entry)]

    def _draft(self, entry: _Entry) -> list[DrafterReply]:
        """The next draft, or that there is none; nothing yet while a long prompt is taken in."""
        session, guesser = entry.session, entry.guesser
        started_s = self._clock()
        guesser.learn(session.tokens, min(session.num_committed, guesser.num_learned + MAX_LEARNED))
        if guesser.num_learned < session.num_committed:
            return []
        while guess := guesser.guess(session.tokens):
            if session.draft_length and entry.policy.stops_before(guess.before(session.draft_length)):
                break
            stop = entry.policy.stops_after(guess.after(session.draft_length + 1))
            if session.push(guess.token_id, stop=stop):
                break
        # Said in advance, as an open draft must: whether its successor will be drafted.
        if guesser.guess(session.tokens) is None:
            session.exhaust()
        if not session.draft_length:
            return [*session.passes()]
        session.draft_ms = 1e3 * (self._clock() - started_s)
        self._count(session.draft_ms, session.draft_length)
        drafted = tuple(session.tokens[-session.draft_length :])
        return [session.send(Rows.certain(drafted) if session.ask.rule.needs_rows else None)]

    def _count(self, ms: float, num_tokens: int) -> None:
        kept = max(0.0, 1 - num_tokens / _MEMORY)
        self._ms, self._num_tokens = kept * self._ms + ms, kept * self._num_tokens + num_tokens
        self.info = replace(self.info, cost=StepCost(0.0, self._ms / self._num_tokens, 0.0, 0.0))
