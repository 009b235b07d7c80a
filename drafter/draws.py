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

from drafter.branches import NUM_OTHERS
from drafter.chain import Chain, Choice
from drafter.look import Look
from drafter.policies import Policy
from paceline import noise, rows
from paceline import sampling as law
from paceline.errors import Unavailable
from paceline.noise import Domain
from paceline.rows import CountRows
from paceline.types import OpenDraft, Rows, Rule, SamplingParams


class Drawn(NamedTuple):
    token_id: int
    row: CountRows | None  # [1, width], what it was drawn from; None where the rule asks for ids alone
    choice: Choice | None = None  # what else the row would have; None where no branches are wanted


class _Waiting(NamedTuple):
    at: int  # its place in the answer
    session: Chain[CountRows]
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


def draw(waiting: Sequence[tuple[Chain[CountRows], Tensor]], shape: RowShape) -> list[Drawn | Exception]:
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
                found[at] = _draw_id(session, given, row, likeliest[at])
        except Exception as error:
            found[at] = error
    at_once = law.rows_at_once(logits)
    for group in same_law.values():
        for first in range(0, len(group), at_once):
            found |= _draw_rows(group[first : first + at_once], shape)
    return [found[at] for at in range(len(sessions))]


def _draw_id(session: Chain[CountRows], given: SamplingParams, row: Tensor, likeliest: int) -> Drawn:
    """The token that the target is likeliest to draw itself; `likeliest` is that of the row before it was adjusted."""
    ask, position = session.ask, len(session.tokens)
    if ask.rule is Rule.MATCH or given.is_greedy:
        token_id = int(row.argmax()) if given.adjusts_logits else likeliest
        return Drawn(token_id, None, _choice(ask, row, token_id))
    gumbel = noise.gumbel(ask.seed, Domain.COUPLED, [position], row.shape[-1], device=row.device)
    log_probs = law.target_log_probs(row, given)
    token_id = int(law.sample_log_probs(log_probs, gumbel))
    # The target adds the same noise to its own row, so what it may take instead is what comes next with it.
    return Drawn(token_id, None, _choice(ask, log_probs + gumbel, token_id))


def _choice(ask: OpenDraft, scores: Tensor, token_id: int) -> Choice | None:
    """What else might have been drawn by `scores` [1, vocab], logarithms of what is as good as probabilities."""
    if not ask.branches:
        return None
    best = scores[0].float().softmax(-1).topk(min(NUM_OTHERS + 1, scores.shape[-1]))
    probs = dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    doubt = 1 - max(probs.values())
    rest = max(1 - probs.pop(token_id, 0.0), 1e-6)
    others = list(probs.items())[:NUM_OTHERS]
    return Choice(doubt, tuple((other, min(1.0, prob / rest)) for other, prob in others if prob > 0))


def _draw_rows(group: Sequence[_Waiting], shape: RowShape) -> dict[int, Drawn | Exception]:
    """A token from each sparse row of a group with one law; if that fails, of each alone, to find out whose fault."""
    try:
        given = shape.law(group[0].session.ask.sampling)
        probs = law.target_probs(torch.cat([one.row for one in group]), given)
        kept = rows.truncate(probs, shape.width, shape.bits)
        uniforms = [_uniform(one.session) for one in group]
        token_ids = rows.sample_rows(kept, uniforms)
        temperature = 1.0 if given.is_greedy else max(given.temperature, law.MIN_TEMPERATURE)
    except Exception as error:
        if len(group) == 1:
            return {group[0].at: error}
        return {at: drawn for one in group for at, drawn in _draw_rows([one], shape).items()}
    return {
        one.at: Drawn(
            token_id,
            CountRows(kept.ids[i : i + 1], kept.counts[i : i + 1]),
            _choice(one.session.ask, one.row / temperature, token_id),
        )
        for i, (one, token_id) in enumerate(zip(group, token_ids, strict=True))
    }


def _uniform(session: Chain[CountRows]) -> float:
    """The coin of this position, thrown anew in every run: a rejected block has looked beyond its end.

    A branch has coins of its own, for the same reason: what becomes of the chain may depend on all of the chain's.
    """
    at = len(session.tokens)
    return noise.uniform(session.ask.seed, Domain.DRAFT, at, epoch=session.epoch, branch=session.number)


def keep(chain: Chain[CountRows], policy: Policy, seen: Look, drawn: Drawn) -> bool:
    """Append the token that was drawn from the row that was `seen`; whether the draft is complete with it."""
    stop = policy.stops_after(seen.after(chain.draft_length + 1, drawn.token_id))
    if drawn.row is not None:
        chain.rows.append(drawn.row)
    return chain.push(drawn.token_id, stop=stop, choice=drawn.choice)


def pack(chain: Chain[CountRows], shape: RowShape) -> Rows | None:
    """The rows of the draft being made, as they are sent; None where the rule asks for ids alone."""
    if not chain.rows:
        return None
    ids = torch.cat([kept.ids for kept in chain.rows])
    counts = torch.cat([kept.counts for kept in chain.rows])
    return rows.pack(ids, counts, shape.bits)
