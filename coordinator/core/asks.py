"""How a request is opened at its workers, from what it is and where it stands. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from coordinator.core.events import RequestSpec
from paceline.types import DraftPlan, OpenDraft, OpenVerify, Rule


def open_draft(spec: RequestSpec, rule: Rule, plan: DraftPlan, epoch: int, committed: Sequence[int]) -> OpenDraft:
    """Draft after `committed`, as the run `epoch`."""
    is_shared = rule is Rule.COUPLED
    sampling = spec.sampling
    if not is_shared and sampling.seed is not None:
        # A drafter must not see the verifier's coins, only that the client gave some.
        sampling = replace(sampling, seed=0)
    return OpenDraft(
        request_id=spec.request_id,
        epoch=epoch,
        token_ids=tuple(committed),
        sampling=sampling,
        rule=rule,
        seed=spec.seed if is_shared else spec.draft_seed,
        policy=plan.policy,
        window=plan.window,
        branches=plan.branches,
        end=spec.end,
        stop_token_ids=spec.stop_token_ids,
        num_prompt_tokens=len(spec.token_ids),
    )


def open_verify(spec: RequestSpec, rule: Rule, committed: Sequence[int], num_decode: int) -> OpenVerify:
    """Prefill `committed`, then decode `num_decode` tokens unless a draft comes first."""
    return OpenVerify(
        request_id=spec.request_id,
        token_ids=tuple(committed),
        sampling=spec.sampling,
        rule=rule,
        seed=spec.seed,
        num_decode=num_decode,
        num_prompt_tokens=len(spec.token_ids),
    )
