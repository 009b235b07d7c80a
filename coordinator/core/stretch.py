"""A request between two choices: what its choice is judged by."""

from __future__ import annotations


class Stretch:
    """Tokens, time, and the requests that shared the verifier meanwhile."""

    def __init__(self, now_s: float, position: int, num_seqs: int, prompts_s: float) -> None:
        """`prompts_s`: what the verifier's prompts have taken by now, as `Goodput` counts it."""
        self.chosen_for = num_seqs
        self.prompts_s = prompts_s
        self._since_s, self._start = now_s, position
        self._now_s, self._position, self._num_seqs = now_s, position, num_seqs
        self._load_s = 0.0  # requests times seconds

    def saw(self, now_s: float, position: int, num_seqs: int) -> None:
        """Tokens have come, up to `position`."""
        self._load_s += (now_s - self._now_s) * (self._num_seqs + num_seqs) / 2
        self._now_s, self._position, self._num_seqs = now_s, position, num_seqs

    @property
    def num_tokens(self) -> int:
        return self._position - self._start

    @property
    def seconds(self) -> float:
        return self._now_s - self._since_s

    @property
    def num_seqs(self) -> int:
        """The mean: those of the last moment may be few because all the others have just left."""
        return max(1, round(self._load_s / self.seconds)) if self.seconds else self._num_seqs
