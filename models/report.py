"""The report on a pair: `models/measure.py` on held-out text and on the target's own answers, as tables or JSON."""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import LlamaForCausalLM

from models.corpus import Encoded, encode, read_documents
from models.distil import continuations
from models.measure import buckets, compare, summary
from models.shapes import device_of, load_model, load_tokenizer

TEXTS = {
    "text": "held-out text",
    "greedy": "target's own answers, greedy",
    "sampled": "target's own answers, temperature 1",
}
ROWS = {
    "positions": "positions",
    "target_loss": "target's loss (nats)",
    "draft_loss": "drafter's loss (nats)",
    "agreement_t0": "agreement at T=0",
    "acceptance_t1": "1 - TV at T=1",
    "accepted_of_4_t0": "accepted of 4 drafted, T=0",
    "accepted_of_8_t0": "accepted of 8 drafted, T=0",
    "entropy_accepted_t0": "entropy where accepted, T=0 (nats)",
    "entropy_rejected_t0": "entropy where rejected, T=0 (nats)",
    "entropy_accepted_t1": "entropy where accepted, T=1 (nats)",
    "entropy_rejected_t1": "entropy where rejected, T=1 (nats)",
    "correlation_t0": "correlation of entropy and acceptance, T=0",
    "correlation_t1": "correlation of entropy and acceptance, T=1",
}


def report(arguments: argparse.Namespace, console: Console) -> None:
    """Measure `--drafter`, and `--before` if given, against `--target` on `--data`."""
    device = device_of(arguments.device)
    target = load_model(arguments.target, device=device)
    tokenizer = load_tokenizer(arguments.target).backend_tokenizer
    documents = encode(read_documents(arguments.data)[: arguments.limit], tokenizer)
    texts = texts_of(target, documents, seed=arguments.seed)
    drafters = {"drafter": arguments.drafter}
    if arguments.before is not None:
        drafters["before"] = arguments.before
    result = measure(
        target, {name: load_model(path, device=device) for name, path in drafters.items()}, texts, documents
    )
    result |= {"documents": len(documents), "seed": arguments.seed}
    result["target"] = {"parameters": target.num_parameters()}
    for name in drafters:
        _print_summary(name, result[name], console)
    for text in TEXTS:
        _print_buckets(text, result["drafter"][text]["buckets"], console)
    if arguments.json is not None:
        # Infinity is not JSON; the last bucket simply has no upper end.
        readable = json.dumps(finite(result), indent=2, allow_nan=False)
        Path(arguments.json).write_text(readable + "\n", encoding="utf-8")


def measure(
    target: LlamaForCausalLM,
    drafters: dict[str, LlamaForCausalLM],
    texts: dict[str, Sequence[Encoded]],
    documents: Sequence[Encoded],
) -> dict[str, Any]:
    """For every drafter: its figures on every text, and both models' losses on whole documents."""
    models = list(drafters.values())
    result: dict[str, Any] = {name: {"parameters": model.num_parameters()} for name, model in drafters.items()}
    for text, encoded in texts.items():
        for name, positions in zip(drafters, compare(target, models, encoded), strict=True):
            result[name][text] = {**summary(positions), "buckets": buckets(positions)}
    # A prompt of no length: every position counts, as it does in the loss that training shows.
    whole = [Encoded(document.token_ids, 0) for document in documents]
    for name, positions in zip(drafters, compare(target, models, whole), strict=True):
        found = summary(positions)
        result[name]["whole"] = {key: found[key] for key in ("target_loss", "draft_loss")}
    return result


def texts_of(target: LlamaForCausalLM, documents: Sequence[Encoded], *, seed: int) -> dict[str, Sequence[Encoded]]:
    prompts = [document.token_ids[: document.prompt_length] for document in documents]
    return {
        "text": documents,
        "greedy": own_answers(target, prompts, temperature=0.0, seed=seed),
        "sampled": own_answers(target, prompts, temperature=1.0, seed=seed),
    }


def own_answers(
    target: LlamaForCausalLM, prompts: Sequence[tuple[int, ...]], *, temperature: float, seed: int
) -> list[Encoded]:
    """The target's answers in the prompts' order."""
    found = dict(continuations(target, prompts, temperature=temperature, seed=seed))
    return [found[index] for index in range(len(prompts))]


def _print_summary(name: str, figures: dict[str, Any], console: Console) -> None:
    table = Table(title=f"{name}: {figures['parameters']:,} parameters")
    table.add_column("")
    for title in TEXTS.values():
        table.add_column(title, justify="right")
    for key, title in ROWS.items():
        values = [figures[text][key] for text in TEXTS]
        table.add_row(title, *(f"{value:,}" if key == "positions" else f"{value:.3f}" for value in values))
    console.print(table)
    whole = figures["whole"]
    console.print(
        f"loss on held-out questions and answers: target {whole['target_loss']:.3f}, "
        f"drafter {whole['draft_loss']:.3f} nats per token"
    )


def _print_buckets(text: str, entries: Sequence[dict[str, float]], console: Console) -> None:
    table = Table(title=f"acceptance by entropy of the draft: {TEXTS[text]}")
    for title in ("entropy (nats)", "share of positions", "agreement at T=0", "1 - TV at T=1"):
        table.add_column(title, justify="right")
    for entry in entries:
        span = f"{entry['from']:g} to {entry['to']:g}" if entry["to"] < math.inf else f"{entry['from']:g} up"
        table.add_row(span, *(f"{entry[key]:.3f}" for key in ("share", "agreement_t0", "acceptance_t1")))
    console.print(table)


def finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [finite(entry) for entry in value]
    # NaN is the mean over no position at all.
    return None if isinstance(value, float) and not math.isfinite(value) else value
