"""The sampling options of the command line: the group in the help, and what they mean to the client."""

from __future__ import annotations

import argparse

from deploy import options
from deploy.options import Parser
from paceline.client import Options
from paceline.sampling_checks import MAX_TOP_LOGPROBS
from paceline.types import SamplingParams


def add(parser: Parser) -> None:
    """All of SamplingParams, under vLLM's names."""
    group = parser.group("sampling")
    group.add(
        "--temperature", kind=options.real, default=0.0, shown="0", metavar="T", help="0 = greedy, 1 = the model's own"
    )
    group.add("--top-k", kind=options.whole(0), default=0, shown="0", metavar="K", help="keep the K likeliest; 0 = all")
    group.add(
        "--top-p",
        kind=options.real,
        default=1.0,
        shown="1",
        metavar="P",
        help="then the smallest set of at least this probability; 1 = all",
    )
    group.add(
        "--min-p",
        kind=options.real,
        default=0.0,
        shown="0",
        metavar="P",
        help="then those at least this likely, relative to the likeliest; 0 = all",
    )
    group.add(
        "--seed",
        kind=options.whole(0, 2**63 - 1),
        metavar="S",
        help="makes the output reproducible, with any drafter and in any mode",
    )
    _add_penalties(parser)


def _add_penalties(parser: Parser) -> None:
    group = parser.group("repetition and length")
    for flag, default, about in (
        ("--repetition-penalty", 1.0, "divides the score of every token seen in prompt or output; 1 = off"),
        ("--presence-penalty", 0.0, "is taken off the score of every token in the output; 0 = off"),
        ("--frequency-penalty", 0.0, "likewise, for each time it stands there; 0 = off"),
    ):
        group.add(flag, kind=options.real, default=default, shown=f"{default:g}", metavar="X", help=about)
    group.add(
        "--logit-bias",
        kind=_bias,
        many=True,
        default=(),
        shown="none",
        metavar="ID:BIAS",
        help="added to the scores of these token ids, from -100 to 100",
    )
    group.add(
        "--min-tokens",
        kind=options.whole(0),
        default=0,
        shown="0",
        metavar="N",
        help="no end of sequence before N tokens",
    )
    group.add(
        "--stop-token-ids",
        kind=options.whole(0),
        many=True,
        default=(),
        shown="none",
        metavar="ID",
        help="end with the first of these token ids",
    )
    group.add(
        "--logprobs",
        kind=options.boolean,
        default=False,
        help="with --json, say of each token how likely the target's law had it",
    )
    group.add(
        "--top-logprobs",
        kind=options.whole(0, MAX_TOP_LOGPROBS),
        default=0,
        shown="0",
        metavar="N",
        help="and of so many of the likeliest tokens at its place; needs --logprobs",
    )


def given(values: argparse.Namespace) -> Options:
    """The client's options. Raises InvalidInput for what the server would refuse, before anything is sent."""
    bias = dict(values.logit_bias)
    SamplingParams(
        values.temperature,
        values.top_k,
        values.top_p,
        values.seed,
        values.min_p,
        values.repetition_penalty,
        values.presence_penalty,
        values.frequency_penalty,
        tuple(bias.items()),
        values.min_tokens,
        tuple(values.stop_token_ids),
        logprobs=values.logprobs,
        top_logprobs=values.top_logprobs,
    )
    return {
        "temperature": values.temperature,
        "top_k": values.top_k,
        "top_p": values.top_p,
        "min_p": values.min_p,
        "seed": values.seed,
        "repetition_penalty": values.repetition_penalty,
        "presence_penalty": values.presence_penalty,
        "frequency_penalty": values.frequency_penalty,
        "logit_bias": bias,
        "min_tokens": values.min_tokens,
        "stop_token_ids": tuple(values.stop_token_ids),
        "logprobs": values.logprobs,
        "top_logprobs": values.top_logprobs,
    }


def _bias(value: str) -> tuple[int, float]:
    token_id, _, bias = value.partition(":")
    try:
        return int(token_id), float(bias)
    except ValueError:
        raise ValueError("must be ID:BIAS, such as 42:-100") from None
