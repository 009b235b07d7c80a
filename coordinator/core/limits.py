"""Every bound of the core in one place, with its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    max_waiting: int = 256  # requests queued for a verifier; over it clients are told to come back
    queue_timeout_s: float = 60.0  # a request waits this long for a verifier, then fails as unavailable
    max_draft_wait_s: float = 0.25  # then the verifier decodes on by itself
    retry_s: float = 5.0  # an unanswered ask is repeated after this; well over the longest honest pass, then doubled
    max_retry_s: float = (
        10.0  # no pass takes longer; only a prompt may, so until its first answer patience goes on growing
    )
    max_retries: int = 6  # then the verifier counts as lost for this request: after about a minute, but for a prompt
    max_moves: int = 3  # verifiers a request may lose before it fails, drafters that may refuse it before none is asked

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be positive")

    @property
    def longest_retry_s(self) -> float:
        return max(self.retry_s, self.max_retry_s)
