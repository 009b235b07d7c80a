"""When to stop a draft: one file a policy, and the table of them.

Their names and parameters are in `paceline.length_policy`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from drafter.policies.adaedl import AdaEdl
from drafter.policies.confidence import Confidence
from drafter.policies.fixed import Fixed
from drafter.policies.policy import Need, Policy, Seen
from drafter.policies.specdecpp import SpecDecPlusPlus
from drafter.policies.svip import Svip
from paceline.errors import Unsupported
from paceline.length_policy import LengthPolicy

__all__ = ["MAKERS", "Need", "Policy", "Seen", "make"]

# By cost ratio (the target's pass over the drafter's step): the threshold that is best there.
Thresholds = Mapping[float, float]


def _adaedl(given: LengthPolicy, _thresholds: Thresholds) -> Policy:
    values = dict(given.parameters)
    return AdaEdl(max_length=int(values.pop("max_length")), **values)


def _confidence(given: LengthPolicy, _thresholds: Thresholds) -> Policy:
    return Confidence(threshold=given["threshold"], max_length=int(given["max_length"]))


def _fixed(given: LengthPolicy, _thresholds: Thresholds) -> Policy:
    return Fixed(length=int(given["length"]))


def _specdecpp(given: LengthPolicy, thresholds: Thresholds) -> Policy:
    if not thresholds:
        fix = "this drafter has no acceptance head; train one with python -m models.train_acceptance_head"
        raise Unsupported("length_policy", given.name, fix)
    wanted = math.log(given["cost_ratio"])
    nearest = min(thresholds, key=lambda ratio: abs(math.log(ratio) - wanted))
    return SpecDecPlusPlus(
        threshold=given["threshold"] or thresholds[nearest],
        max_length=int(given["max_length"]),
    )


def _svip(given: LengthPolicy, _thresholds: Thresholds) -> Policy:
    return Svip(threshold_nats=given["threshold_nats"], max_length=int(given["max_length"]))


MAKERS: Mapping[str, Callable[[LengthPolicy, Thresholds], Policy]] = {
    "adaedl": _adaedl,
    "confidence": _confidence,
    "fixed": _fixed,
    "specdecpp": _specdecpp,
    "svip": _svip,
}


def make(policy: LengthPolicy, thresholds: Thresholds | None = None) -> Policy:
    """A new policy for one request. `thresholds`: of the drafter's acceptance head, if it has one.

    Raises Unsupported for a policy that needs a head where there is none.
    """
    return MAKERS[policy.name](policy, thresholds or {})
