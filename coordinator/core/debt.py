"""What a request's verifier owes it, how it is asked for, and asked again.

It owes an answer while drafts are in flight or a decoding run is under way. Tokens and drafts are the request's own;
what stands here is only what was asked for. A draft ends a decoding run at both ends of the wire.
"""

from __future__ import annotations

from collections.abc import Iterator

from coordinator.core.asks import open_verify
from coordinator.core.events import RequestSpec
from coordinator.core.flight import Verifications
from coordinator.core.limits import Limits
from coordinator.core.window import Window
from paceline.types import Decode, Draft, OpenVerify, Rule, Verify

# Tokens that the verifier decodes unasked while nobody waits for drafts; asked for anew when half of them are there, so
# that it does not wait for the word to go on across a link sixteen passes long.
RUN = 32
SHORT_RUN = 8  # where the run must be over before a draft is welcome again


class Debt:
    """See the top of the file. `committed` and `window` are the request's, and change under it."""

    def __init__(self, spec: RequestSpec, rule: Rule, limits: Limits, committed: list[int], window: Window) -> None:
        self.has_answered = False  # this verifier, anything at all
        self._spec, self._rule, self._limits = spec, rule, limits
        self._committed, self._window = committed, window
        self._sent = Verifications()
        self._decode_until = 0  # tokens are owed up to here
        self._num_retries = 0
        self._repeated_at = -1  # how much was committed when all was asked for again because of a gap

    @property
    def owes(self) -> bool:
        """Whether anything is left to answer."""
        return bool(self._window.drafts) or len(self._committed) < self._decode_until

    def runs_out(self, run: int) -> bool:
        """Whether a decoding run of `run` tokens is half over: the word to go on is due."""
        return not self._window.drafts and self._decode_until < self._run_end(run) - run // 2

    def patience_s(self) -> float:
        """How long to wait for an answer before all is asked for again."""
        patience_s: float = self._limits.retry_s * 2**self._num_retries
        # A prompt may honestly take minutes; a pass does not.
        return min(patience_s, self._limits.longest_retry_s) if self.has_answered else patience_s

    def answered(self) -> None:
        """Something new has come, so whatever is outstanding has all of the patience again."""
        self._num_retries = 0

    def asked_s(self, start: int) -> float | None:
        """When the draft at `start` was sent, if it waited for no other of its request."""
        return self._sent.asked_s(start)

    # --- asks

    def open(self, num_tokens: int) -> OpenVerify:
        """Prefill what is committed at another verifier, and decode so many tokens there."""
        self.has_answered = False
        self._decode_until = self._run_end(num_tokens)
        return self._open()

    def decode(self, num_tokens: int = RUN) -> Decode:
        self._decode_until = self._run_end(num_tokens)
        return self._decode(self._num_owed)

    def verify(self, draft: Draft, now_s: float, *, preverify: bool) -> Verify:
        """Judge a draft, which counts as in flight already.

        All that are in flight share one flag. With two of them, what the verifier does after a rejection would depend
        on which drafts had reached it, and nobody here would know whether it owes a token.
        """
        if len(self._window.drafts) > 1:
            preverify = self._sent.preverifies(self._window.drafts[0])
        self._sent.asked(draft, now_s, preverify=preverify, is_alone=len(self._window.drafts) == 1)
        # By a rule that needs rows the first token is decoded in any case (`verifier/session.py`).
        is_first = self._rule.needs_rows and not self.has_answered
        self._decode_until = min(self._decode_until, len(self._committed) + is_first)
        return Verify(draft, preverify)

    def retry(self) -> list[OpenVerify | Verify | Decode]:
        """Patience has run out: what to send. Nothing, if the verifier is to be given up.

        Exactly what is outstanding, under the same epoch, with twice the patience: a retry that moved the epoch on
        would never end where an honest answer takes longer than the patience.
        """
        self._num_retries += 1
        return [] if self._num_retries > self._limits.max_retries else list(self._outstanding())

    def bridge(self) -> Decode | None:
        """A verdict has come that leaves a gap: ask for the log from there on. Once for each gap."""
        if self._repeated_at == len(self._committed):
            return None
        self._repeated_at = len(self._committed)
        return self._decode(1)

    # --- answers

    def settle(self) -> bool:
        """Hold what is newly committed against the drafts in flight. False if it contradicts one: their run is over."""
        preverifies = any(map(self._sent.preverifies, self._window.drafts))
        agrees = self._window.settle(self._committed)
        if not agrees:
            self._decode_until = 0
            if preverifies and not self._rule.needs_rows:
                self._decode_until = self._run_end(1)  # the verifier does so of its own accord
        self._sent.keep(self._window.drafts)
        return agrees

    def _outstanding(self) -> Iterator[OpenVerify | Verify | Decode]:
        if not self.has_answered:
            yield self._open()
        for draft in self._window.drafts:
            yield Verify(draft, self._sent.preverifies(draft))
        if self.has_answered and not self._window.drafts:
            yield self._decode(self._num_owed)

    def _run_end(self, num_tokens: int) -> int:
        """Up to where the verifier may decode without being asked again."""
        return min(self._spec.end, len(self._committed) + num_tokens)

    @property
    def _num_owed(self) -> int:
        return max(0, self._decode_until - len(self._committed))

    def _open(self) -> OpenVerify:
        return open_verify(self._spec, self._rule, self._committed, self._num_owed)

    def _decode(self, num_tokens: int) -> Decode:
        return Decode(self._spec.request_id, self._window.epoch, len(self._committed), num_tokens)
