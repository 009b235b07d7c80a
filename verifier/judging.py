"""What a pass yielded, judged request by request: sessions hold the state, rules decide, this file carries tensors.

All rows of a pass are looked at once, whoever they belong to (`share_out`). That says which token is the likeliest,
which is all that greedy decoding asks, and whether a row is spoilt: a model that overflows gives rows that are no
numbers, and no rule may make tokens of them. What else a rule needs it computes from its own request's rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from paceline import sampling as law
from paceline.errors import Unavailable
from paceline.rows import DraftRows, ReadRows
from paceline.types import Rule, SamplingParams, Source, Tokens, TopLogprobs, Verdict
from verifier.rules import Judgement, PhiloxCoins, judge, judge_blocks
from verifier.rules.match import compare
from verifier.session import NOTHING_TOLD, Logprobs, Need, Session, Work


@dataclass(slots=True)
class Entry:
    """A session, whose it is, and its coins."""

    peer: int
    session: Session[Tensor]  # a retained row is [1, vocab] float32, raw: its request's penalties come later
    coins: PhiloxCoins

    @property
    def request_id(self) -> str:
        return self.session.ask.request_id

    @property
    def takes_the_likeliest(self) -> bool:
        """Whether the likeliest token of a raw row is the target's own token."""
        ask = self.session.ask
        return ask.sampling.is_greedy and not ask.sampling.adjusts_logits and not ask.rule.needs_rows


class TargetRows(NamedTuple):
    """A request's part of a pass."""

    logits: Tensor  # [n, vocab] float32, a view of all rows of the pass
    likeliest: Sequence[int]  # n token ids
    are_finite: bool


def share_out(logits: Tensor, counts: Sequence[int]) -> list[TargetRows]:
    """The rows [sum of counts, vocab] of a pass, parted among its requests."""
    best = logits.max(-1)  # the first of equals, as argmax has it; of a row with a NaN it is NaN
    likeliest, finite = best.indices.tolist(), best.values.isfinite().tolist()
    parts, at = [], 0
    for count in counts:
        own = slice(at, at + count)
        parts.append(TargetRows(logits[own], likeliest[own], all(finite[own])))
        at += count
    return parts


def retain(entry: Entry, num_tokens: int, target: TargetRows) -> None:
    """`num_tokens` pending tokens were forwarded. The row after them is kept, as a copy: a view keeps the pass."""
    _check_finite(entry, target)
    entry.session.prefilled(num_tokens, target.logits.clone() if len(target.logits) else None)


def settle(entry: Entry, work: Work, target: TargetRows) -> Verdict:
    """Judge `work` by its rows, and commit what comes of it. Raises Unavailable if a row is spoilt."""
    _check_finite(entry, target)
    retained = entry.session.retained
    if retained is None and entry.takes_the_likeliest:
        return _commit(entry, work, compare(work.draft_ids, target.likeliest), target.logits)
    rows = target.logits if retained is None else torch.cat([retained, target.logits])
    return _commit(entry, work, _judge(entry, work, rows), rows)


def settle_by_retained_row(entry: Entry, work: Work) -> Verdict | None:
    """Commit what the retained row alone decides: a decode, or that a draft's first token fails. None: not enough."""
    row, session = entry.session.retained, entry.session
    if row is None or work.need is Need.PREFILL:
        return None
    if work.need is Need.DECODE:
        return _commit(entry, work, _judge(entry, work, row), row)
    if session.ask.rule is Rule.BLOCK:
        return None  # what becomes of the first token depends on all of the draft
    first = judge(
        session.ask.rule,
        _adjusted(entry, row),
        work.draft_ids[:1],
        session.ask.sampling,
        entry.coins,
        start=len(session.log),
        take_bonus=False,
        draft_rows=_draft_rows(work, 1),
    )
    return None if first.num_accepted else _commit(entry, work, first, row)


def _check_finite(entry: Entry, target: TargetRows) -> None:
    if not target.are_finite:
        at = len(entry.session.log)
        fix = "the model overflows on this prompt or its weights are damaged; try dtype float32 or another verifier"
        raise Unavailable(f"the target's logits from position {at} on are not finite: {fix}")


def _judge(entry: Entry, work: Work, target_rows: Tensor) -> Judgement:
    ask = entry.session.ask
    draft_rows = _draft_rows(work) if ask.rule.needs_rows else None
    start, take_bonus = len(entry.session.log), work.take_bonus
    target_rows = _adjusted(entry, target_rows, work.draft_ids)
    if ask.rule is Rule.BLOCK:
        drafts = [draft.token_ids for draft in work.drafts]
        coins = replace(entry.coins, epoch=work.drafts[0].epoch if drafts else 0)
        return judge_blocks(
            target_rows, drafts, ask.sampling, coins, start=start, take_bonus=take_bonus, draft_rows=draft_rows
        )
    return judge(
        ask.rule,
        target_rows,
        work.draft_ids,
        ask.sampling,
        entry.coins,
        start=start,
        take_bonus=take_bonus,
        draft_rows=draft_rows,
    )


def _commit(entry: Entry, work: Work, said: Judgement, target_rows: Tensor) -> Verdict:
    """Commit what was said of raw `target_rows`, and retain the last of them if no token of the target's own came."""
    told = NOTHING_TOLD
    if entry.session.ask.sampling.logprobs:
        new = work.draft_ids[: said.num_accepted] + (() if said.token_id is None else (said.token_id,))
        told = _logprobs(_adjusted(entry, target_rows, work.draft_ids)[: len(new)], new, entry.session.ask.sampling)
    source = said.source or Source.BONUS
    retained = target_rows[-1:].clone() if said.token_id is None else None
    return entry.session.judged(work, said.num_accepted, said.token_id, source, retained, told)


def _logprobs(rows: Tensor, token_ids: Tokens, sampling: SamplingParams) -> Logprobs:
    """What adjusted `rows` say of `token_ids`, one a row, and of the likeliest tokens beside them if asked."""
    own = law.log_probs_of(rows, token_ids, sampling)
    if not (sampling.top_logprobs and token_ids):
        return Logprobs(own)
    top = law.top_log_probs(rows, sampling.top_logprobs, sampling)
    return Logprobs(own, tuple(TopLogprobs(ids, values) for ids, values in top))


def _adjusted(entry: Entry, target_rows: Tensor, draft_ids: Tokens = ()) -> Tensor:
    """Rows as the request's biases and penalties want them."""
    session = entry.session
    return law.adjusted_logits(
        target_rows, session.ask.sampling, session.log, draft_ids, num_prompt_tokens=session.num_prompt_tokens
    )


def _draft_rows(work: Work, num_rows: int | None = None) -> DraftRows | None:
    """The sparse rows of all the work's drafts, read when they came; of the first `num_rows` tokens if given."""
    parts = [draft.rows.law for draft in work.drafts if isinstance(draft.rows, ReadRows)]
    if not parts:
        return None
    width = max(part.ids.shape[1] for part in parts)
    ids = torch.cat([_widen(part.ids, width) for part in parts])[:num_rows]
    probs = torch.cat([_widen(part.probs, width) for part in parts])[:num_rows]
    return DraftRows(ids, probs)


def _widen(tensor: Tensor, width: int) -> Tensor:
    """`tensor` [rows, n] padded to [rows, width] with zeros: token 0 with no further mass changes nothing."""
    return torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]))
