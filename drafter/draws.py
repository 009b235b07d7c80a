"""Each request's next token from its row of a pass: together for all requests that have the same law.

Under rejection sampling what is drawn from is what is sent: the row truncated and quantised (`paceline.rows`). A
request whose row is spoilt, or that fails in any other way, costs the others nothing: its place in the answer holds
what went wrong.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from drafter.session import Session
from paceline import noise, rows
from paceline import sampling as law
from paceline.errors import Unavailable
from paceline.noise import Domain
from paceline.rows import CountRows
from paceline.types import Rule, SamplingParams


class Drawn(NamedTuple):
    token_id: int
    row: CountRows | None  # [1, width], what it was drawn from; None where the rule asks for ids alone


class _Waiting(NamedTuple):
    at: int  # its place in the answer
    session: Session[CountRows]
    row: Tensor  # [1, vocab], adjusted


@dataclass(frozen=True, slots=True)
class RowShape:
    """What is kept of a draft row, and how finely; `temperature`: of what is drawn, None = the request's own."""

    width: int
    bits: int
    temperature: float | None = None

    def law(self, given: SamplingParams) -> SamplingParams:
        """The law to draft by. Exact whatever it is: its rows are sent as they are sampled, and judged by."""
        if self.temperature is None or given.is_greedy:
            return given
        return replace(given, temperature=self.temperature)


def draw(waiting: Sequence[tuple[Session[CountRows], Tensor]], shape: RowShape) -> list[Drawn | Exception]:
    """A token for each of n sessions from its logits [vocab], or why there is none."""
    if not waiting:
        return []
    sessions = [session for session, _ in waiting]
    logits = torch.stack([row for _, row in waiting])
    best = logits.max(-1)  # of a row with a NaN it is NaN
    likeliest, finite = best.indices.tolist(), best.values.isfinite().tolist()
    found: dict[int, Drawn | Exception] = {}
    same_law: defaultdict[tuple[float, ...], list[_Waiting]] = defaultdict(list)
    for at, session in enumerate(sessions):
        given = shape.law(session.ask.sampling)
        try:
            if not finite[at]:
                raise Unavailable(f"the drafter's logits for position {len(session.tokens)} are not finite")
            row = law.adjusted_logits(
                logits[at : at + 1], given, session.tokens, num_prompt_tokens=session.num_prompt_tokens
            )
            if session.ask.rule.needs_rows:
                key = (given.temperature, given.top_k, given.top_p, given.min_p)
                same_law[key].append(_Waiting(at, session, row))
            else:
                found[at] = Drawn(_draw_id(session, given, row, likeliest[at]), None)
        except Exception as error:
            found[at] = error
    at_once = law.rows_at_once(logits)
    for group in same_law.values():
        for first in range(0, len(group), at_once):
            found |= _draw_rows(group[first : first + at_once], shape)
    return [found[at] for at in range(len(sessions))]


def _draw_id(session: Session[CountRows], given: SamplingParams, row: Tensor, likeliest: int) -> int:
    """The token that the target is likeliest to draw itself; `likeliest` is that of the row before it was adjusted."""
    ask, position = session.ask, len(session.tokens)
    if ask.rule is Rule.MATCH or given.is_greedy:
        return int(row.argmax()) if given.adjusts_logits else likeliest
    gumbel = noise.gumbel(ask.seed, Domain.COUPLED, [position], row.shape[-1], device=row.device)
    return int(law.sample_log_probs(law.target_log_probs(row, given), gumbel))


def _draw_rows(group: Sequence[_Waiting], shape: RowShape) -> dict[int, Drawn | Exception]:
    """A token from each sparse row of a group with one law; if that fails, of each alone, to find out whose fault."""
    try:
        probs = law.target_probs(torch.cat([one.row for one in group]), shape.law(group[0].session.ask.sampling))
        kept = rows.truncate(probs, shape.width, shape.bits)
        uniforms = [_uniform(one.session) for one in group]
        token_ids = rows.sample_rows(kept, uniforms)
    except Exception as error:
        if len(group) == 1:
            return {group[0].at: error}
        return {at: drawn for one in group for at, drawn in _draw_rows([one], shape).items()}
    return {
        one.at: Drawn(token_id, CountRows(kept.ids[i : i + 1], kept.counts[i : i + 1]))
        for i, (one, token_id) in enumerate(zip(group, token_ids, strict=True))
    }


def _uniform(session: Session[CountRows]) -> float:
    """The coin of this position, thrown anew in every run: a rejected block has looked beyond its end."""
    return noise.uniform(session.ask.seed, Domain.DRAFT, len(session.tokens), epoch=session.epoch)
