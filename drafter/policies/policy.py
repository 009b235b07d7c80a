"""The seam of the length policies: when to stop a draft.

Rules. A policy is asked after a token has been kept, and sees only what could be known before it was drawn:
its place in the draft and its row, never the token or its own probability. A draft may end after such a
token; dropping it would change the output's law under rejection sampling (docs/exactness.md, Traps).
"""

from __future__ import annotations

from typing import Protocol


class Policy(Protocol):
    """One request's policy. Created for the request by `drafter.policies.make`, and lost with it."""

    @property
    def needs_entropy(self) -> bool:
        """Whether `stops` looks at the entropy; if not, the caller may pass 0 and save the computation."""
        ...

    def stops(self, draft_length: int, entropy_nats: float) -> bool:
        """Whether the draft ends here, asked after its `draft_length`-th token was kept (1 for the first).

        `entropy_nats` is that of the row the token was drawn from: the unscaled softmax over the whole
        vocabulary.
        """
        ...

    def observe(self, num_tested: int, num_accepted: int) -> None:
        """The outcome of drafted tokens: how many the verifier looked at, and how many of these it kept."""
        ...
