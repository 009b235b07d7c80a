"""When to stop a draft: one file a policy, and the table of them.

Their names and parameters are in `paceline.length_policy`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from drafter.policies.fixed import Fixed
from drafter.policies.policy import Policy
from drafter.policies.svip import Svip
from paceline.length_policy import LengthPolicy

__all__ = ["MAKERS", "Fixed", "Policy", "Svip", "make"]

MAKERS: Mapping[str, Callable[[LengthPolicy], Policy]] = {
    "fixed": lambda given: Fixed(length=int(given["length"])),
    "svip": lambda given: Svip(
        threshold_nats=given["threshold_nats"],
        max_length=int(given["max_length"]),
    ),
}


def make(policy: LengthPolicy) -> Policy:
    """A new policy for one request."""
    return MAKERS[policy.name](policy)
