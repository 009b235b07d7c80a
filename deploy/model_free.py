"""Drafters without a model, from the command line: which there are, their options, their engine. No torch here."""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import replace
from pathlib import Path

from deploy import options
from deploy.options import Group
from drafter.lookup import PromptLookup
from drafter.model_free import METHODS, ModelFreeEngine
from drafter.suffix import SuffixDecoding
from paceline.errors import InvalidInput, did_you_mean
from paceline.types import Role, WorkerInfo

DEFAULT_MAX_MODEL_LEN = 131_072  # about 80 MB of n-grams for a request of this length, none for a short one
DEFAULT_SHARED_TOKENS = 100_000  # about 40 MB a coordinator
ANY_VOCABULARY = 2**32 - 1  # what a token id can be on the wire
NAMES = " and ".join(METHODS)
_OPTIONS = ("max_ngram", "min_ngram", "share_between_requests", "suffix_tokens")


def is_model_free(drafter: str | None) -> bool:
    """Whether this is no model's name but a method's; a folder that is called so can be given as ./NAME."""
    return drafter in METHODS


def add_model_free(group: Group) -> None:
    """The options of all methods; `check_model_free` says which go together."""
    lookup, suffix = PromptLookup(), SuffixDecoding()
    group.add(
        "--max-ngram",
        kind=options.whole(1, 64),
        metavar="N",
        shown=f"{lookup.max_ngram}, suffix: {suffix.max_ngram}",
        help=f"of the drafters without a model ({NAMES}): longest end of the text that is looked up",
    )
    group.add(
        "--min-ngram",
        kind=options.whole(1, 64),
        metavar="N",
        shown=f"{lookup.min_ngram}",
        help="likewise the shortest; less finds more and is right less often",
    )
    group.add(
        "--share-between-requests",
        kind=options.boolean,
        default=False,
        help="suffix: look in what earlier requests of the same coordinator wrote, too; how fast an answer comes can "
        "then tell one client what was written for another",
    )
    group.add(
        "--suffix-tokens",
        kind=options.whole(1, 100_000_000),
        metavar="N",
        shown=f"{DEFAULT_SHARED_TOKENS}",
        help="tokens kept for --share-between-requests, about 400 bytes each; the oldest answers are forgotten first",
    )


def check_model_free(option: str, drafter: str | None, values: argparse.Namespace) -> None:
    """Raises InvalidInput for options that say nothing to this drafter, which was named by `option`."""
    given = {name: value for name in _OPTIONS if (value := getattr(values, name))}
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        takes = tuple(METHODS) if "ngram" in name else ("suffix",)
        if drafter not in takes:
            raise InvalidInput(flag, value, f"is for {option} {' or '.join(takes)}; leave it out")
    if given.get("suffix_tokens") and not values.share_between_requests:
        fix = "is what is kept between requests; add --share-between-requests, or leave it out"
        raise InvalidInput("--suffix-tokens", values.suffix_tokens, fix)
    if is_model_free(drafter):
        _method(drafter, values)


def check_model(option: str, model: str) -> None:
    """Raises InvalidInput for a misspelt method; what else is wrong with a model's name is said when it is loaded."""
    hint = did_you_mean(model, METHODS)
    if hint and "/" not in model and not Path(model).expanduser().exists():
        fix = f"no such folder; {hint}Give a model's folder, ORG/NAME, or one of {', '.join(METHODS)}"
        raise InvalidInput(option, model, fix)


def make_engine(values: argparse.Namespace) -> ModelFreeEngine:
    """The engine of `--model NAME`, with what it registers as."""
    method = _method(values.model, values)
    info = WorkerInfo(
        role=Role.DRAFTER,
        address="",  # filled in once the port is known
        incarnation=0,
        model=values.model,
        model_hash=f"{values.model}:{hashlib.sha256(repr(method).encode()).hexdigest()}",
        tokenizer_hash="",
        vocab_size=ANY_VOCABULARY,
        max_model_len=values.max_model_len or DEFAULT_MAX_MODEL_LEN,
        max_num_seqs=values.max_num_seqs,
        eos_token_ids=(),
        dtype="",
        device="cpu",
    )
    return ModelFreeEngine(method, info)


def _method(name: str | None, values: argparse.Namespace) -> PromptLookup | SuffixDecoding:
    method = METHODS[str(name)]()
    method = replace(
        method,
        max_ngram=values.max_ngram or max(method.max_ngram, values.min_ngram or 0),
        min_ngram=values.min_ngram or min(method.min_ngram, values.max_ngram or method.min_ngram),
    )
    if method.min_ngram > method.max_ngram:
        raise InvalidInput("--min-ngram", method.min_ngram, f"must be at most --max-ngram, which is {method.max_ngram}")
    if isinstance(method, SuffixDecoding) and values.share_between_requests:
        return replace(method, max_shared_tokens=values.suffix_tokens or DEFAULT_SHARED_TOKENS)
    return method
