"""What plain decoding and speculation keep of their promises at one verifier, whoever drafts for it.

A drafter's own figures (`Pace`) say what its requests gained. In a crowd that is not the whole: every request that
speculates makes the others' passes longer. So all requests of a verifier count here, and while most of them speculate
even those that do not: their loss is part of the price. Prompts that share the passes slow down everything, whatever is
chosen; they come in waves, so their time must not count, or whatever is tried in a wave would be to blame.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MOST_SHARING = 8  # requests that lengthen the memory: tokens of many come so much faster
_MEMORY_TOKENS = 512
_PRIOR_TOKENS = 100  # promises are taken to have been kept over so many before
_FEW, _MOST = 0.1, 0.5  # of the requests: while fewer speculate decoding is plain, while more do it is not
# Plain decoding takes a pass a token, which is measured: what is slower is a worker between two passes.
_PLAIN, _DRAFTED = (0.95, 1.1), (0.1, 1.5)
_LEAST_DECODING = 0.3  # of a stretch: that prompts take is estimated, and may have been saved by a cache


@dataclass(slots=True)
class Goodput:
    """Sums, not means of ratios: a stretch ends behind tokens that have come, and a stall must count in full."""

    prompts_s: float = 0.0  # of its time, all in all
    _share: float = 0.0  # of the requests that speculate, of late
    _plain: list[float] = field(default_factory=lambda: [0.0, 0.0])  # tokens: what came, what was promised
    _drafted: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def kept(self, num_tokens: float, num_promised: float, num_seqs: int, *, is_drafted: bool) -> None:
        """A stretch of one of `num_seqs` requests has yielded so many tokens where so many were promised."""
        self._share += (is_drafted - self._share) / num_seqs
        memory = _MEMORY_TOKENS * min(num_seqs, MOST_SHARING)
        if self._share <= _FEW:
            _add(self._plain, num_tokens, num_promised, memory)
            _fade(self._drafted, num_tokens / (4 * memory))
        elif self._share >= _MOST:
            _add(self._drafted, num_tokens, num_promised, memory)
            _fade(self._plain, num_tokens / (16 * memory))

    def decoding_s(self, seconds: float, prompts_s: float) -> float:
        """What is left of the last `seconds` for decoding, where `prompts_s` was the figure at their beginning."""
        return max(_LEAST_DECODING * seconds, seconds - (self.prompts_s - prompts_s))

    @property
    def plain(self) -> float:
        return _ratio(self._plain, _PLAIN)

    @property
    def drafted(self) -> float:
        return _ratio(self._drafted, _DRAFTED)


def _add(sums: list[float], num_tokens: float, num_promised: float, memory: float) -> None:
    _fade(sums, num_tokens / memory)
    sums[0] += num_tokens
    sums[1] += num_promised


def _fade(sums: list[float], share: float) -> None:
    rest = max(0.0, 1 - share)
    sums[:] = [rest * each for each in sums]


def _ratio(sums: list[float], bounds: tuple[float, float]) -> float:
    ratio = (sums[0] + _PRIOR_TOKENS) / (sums[1] + _PRIOR_TOKENS)
    return min(max(ratio, bounds[0]), bounds[1])
