"""Which rule judges a request's drafts: always one that is exact for the drafters it may meet."""

from __future__ import annotations

from coordinator.core.events import RequestSpec
from paceline.errors import InvalidInput
from paceline.types import Mode, Rule, SamplingParams


def believes_rows(rule: Rule, sampling: SamplingParams) -> bool:
    """Whether false rows could change the output. At temperature 0 every rule keeps the likeliest token alone."""
    return rule.needs_rows and not sampling.is_greedy


def choose_rule(spec: RequestSpec, *, is_distrusted: bool) -> Rule:
    """The rule that the request names, or `auto`: an exact one, and of those the one that accepts most.

    `is_distrusted`: there are drafters, and none whose rows are believed. Raises InvalidInput for a rule that could
    then not be exact.
    """
    is_distrusted = is_distrusted and spec.mode is not Mode.OFF
    if spec.rule is None:
        if spec.sampling.is_greedy:
            return Rule.MATCH
        if spec.sampling.seed is not None:
            return Rule.COUPLED
        return Rule.MATCH if is_distrusted else Rule.BLOCK
    if is_distrusted and believes_rows(spec.rule, spec.sampling):
        fix = (
            "is exact only with drafters whose rows can be believed, and none of those registered is trusted; use "
            "auto, match or coupled, or start the coordinator with --trust-drafters if all drafters are your own"
        )
        raise InvalidInput("rule", spec.rule.value, fix)
    return spec.rule
