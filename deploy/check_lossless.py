"""`paceline check-lossless`: does a running server keep its promise? Ask it, on your own prompts.

Three questions, each against the server's own plain decoding (mode `off`): greedy output must be equal token for
token; output under a seed must be too; and output drawn without a seed must come from the same law, by a sequential
test with a stated error level. Where the target runs in bfloat16, two tokens that nearly tie may change places with
the shape of a pass; such a difference is told apart by what the server compared, the target's own log-probabilities
(under a seed with the noise that the seed gives), and counted by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Console

from deploy import options
from deploy.connection import add_credentials, add_server, client_of
from deploy.options import Parser
from deploy.same_law import SameLaw
from paceline.client import AsyncClient, Completion
from paceline.prompts import SHAPES, question, read_prompts
from paceline.types import Mode

MODES = (Mode.SEQUENTIAL, Mode.PEARL, Mode.BRANCH)
# Nats between two tokens' log-probabilities below which bfloat16 may swap them; its products keep 8 bits.
NEAR_TIE_NATS = 0.06
NUM_LOOKS = 8
SEED = 7
LAW_TOKENS = 3  # tokens of an outcome; more would make every outcome rare
OWN_PROMPTS = ("How many legs do 12 hens and 3 cows have?", "Ann has 40 apples and eats a quarter. How many are left?")


@dataclass(slots=True)
class Equality:
    """How often a mode's output was plain decoding's own."""

    num_compared: int = 0
    num_near_ties: int = 0
    num_violations: int = 0

    def count(self, plain: Completion, other: Completion, *, may_tie: bool, seed: int | None = None) -> None:
        """`may_tie`: near-ties may fall either way; `seed`: of both, if they were sampled."""
        self.num_compared += 1
        if plain.token_ids == other.token_ids:
            return
        pairs = zip(plain.token_ids, other.token_ids, strict=False)
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        is_near = at is not None and abs(_score(plain, at, seed) - _score(other, at, seed)) < NEAR_TIE_NATS
        if may_tie and is_near:
            self.num_near_ties += 1
        else:
            self.num_violations += 1


def _score(answer: Completion, at: int, seed: int | None) -> float:
    """What the token at output position `at` was the largest of: log p, plus its noise where it was sampled."""
    if seed is None:
        return answer.logprobs[at]
    import torch  # a second or two, spent only where outputs have parted

    from paceline.noise import Domain, gumbel_at

    position = int(answer.metrics["num_prompt_tokens"]) + at
    noise = gumbel_at(seed, Domain.COUPLED, position, torch.tensor([answer.token_ids[at]]))
    return answer.logprobs[at] + float(noise)


def run(argv: Sequence[str]) -> int:
    values = parser().parse(argv, os.environ)
    prompts = [question(text) for text in OWN_PROMPTS] if values.prompts is None else read_prompts(values.prompts)
    return asyncio.run(_check(prompts[: values.num_prompts], values))


async def _check(prompts: Sequence[str], values: argparse.Namespace) -> int:
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    async with client_of(values) as client:
        workers = (await client.server_info()).workers
        may_tie = any(worker.dtype != "float32" for worker in workers)
        equality = {}
        for name, seed in (("greedy", None), ("coupled", SEED)):
            equality[name] = await _equality(client, prompts, seed, values, may_tie=may_tie)
            console.print(f"{name}: {_sentence(equality[name])}")
        laws = {mode: await _law(client, prompts[0], mode, values) for mode in MODES}
    for mode, (law, rules) in laws.items():
        verdict = "another law than plain decoding's" if law.differs else "no difference from plain decoding's law"
        how = f"rule {', '.join(rules)}, {law.other.total()} samples, error level {law.alpha:g}"
        console.print(f"sampled, {mode}: {verdict} ({how})")
    is_broken = any(one.num_violations for one in equality.values()) or any(law.differs for law, _ in laws.values())
    verdict, style = ("NOT LOSSLESS", "red") if is_broken else ("Nothing speaks against losslessness.", "green")
    console.print(verdict, style=style)
    if values.json:
        print(json.dumps(_report(equality, laws, is_broken=is_broken)))
    return 1 if is_broken else 0


def _report(
    equality: dict[str, Equality], laws: dict[Mode, tuple[SameLaw, tuple[str, ...]]], *, is_broken: bool
) -> dict[str, object]:
    sampled = {
        mode: {
            "rules": rules,
            "p_values": law.p_values,
            "alpha": law.alpha,
            "num_samples": law.other.total(),
            "differs": law.differs,
        }
        for mode, (law, rules) in laws.items()
    }
    return {**{name: asdict(one) for name, one in equality.items()}, "sampled": sampled, "lossless": not is_broken}


async def _equality(
    client: AsyncClient,
    prompts: Sequence[str],
    seed: int | None,
    values: argparse.Namespace,
    *,
    may_tie: bool,
) -> Equality:
    """Every prompt in every mode against plain decoding: greedy, or sampled with `seed`."""
    counts = Equality()
    places = asyncio.Semaphore(values.concurrency)

    async def complete(prompt: str, mode: Mode) -> Completion:
        async with places:
            more = {"max_tokens": values.max_tokens, "mode": mode, "logprobs": True, "timeout_s": values.timeout}
            sampling = {"temperature": 0.0} if seed is None else {"temperature": 1.0, "seed": seed}
            return await client.complete(prompt, **sampling, **more)  # type: ignore[arg-type]

    async def one(prompt: str) -> None:
        plain = await complete(prompt, Mode.OFF)
        for mode in MODES:
            counts.count(plain, await complete(prompt, mode), may_tie=may_tie, seed=seed)

    async with asyncio.TaskGroup() as tasks:
        for prompt in prompts:
            tasks.create_task(one(prompt))
    return counts


async def _law(
    client: AsyncClient, prompt: str, mode: Mode, values: argparse.Namespace
) -> tuple[SameLaw, tuple[str, ...]]:
    """The joint law of the first tokens, plain and in `mode`, until it differs or all samples are drawn.

    Also the rules by which the drafts were judged, as the server says.
    """
    test = SameLaw(values.alpha / len(MODES), NUM_LOOKS)
    places = asyncio.Semaphore(values.concurrency)

    rules = set[str]()

    async def draw(mode: Mode) -> tuple[int, ...]:
        async with places:
            answer = await client.complete(
                prompt,
                max_tokens=LAW_TOKENS,
                rule=values.rule,
                temperature=1.0,
                top_k=values.top_k,
                mode=mode,
                ignore_eos=True,
                timeout_s=values.timeout,
            )
            if mode is not Mode.OFF:
                rules.add(str(answer.metrics["rule"]))
            return answer.token_ids

    for _ in range(NUM_LOOKS):
        count = max(1, values.num_samples // NUM_LOOKS)
        test.one.update(await asyncio.gather(*(draw(Mode.OFF) for _ in range(count))))
        test.other.update(await asyncio.gather(*(draw(mode) for _ in range(count))))
        test.look()
        if test.differs:
            break
    return test, tuple(sorted(rules))


def _sentence(counts: Equality) -> str:
    equal = counts.num_compared - counts.num_near_ties - counts.num_violations
    ties = f", {counts.num_near_ties} parted where two tokens nearly tie" if counts.num_near_ties else ""
    return f"{equal} of {counts.num_compared} outputs equal plain decoding{ties}, {counts.num_violations} violations"


def parser() -> Parser:
    it = Parser(
        "check-lossless",
        """Check that a running server's output is what its target alone would have written.

Greedy and seeded output must equal plain decoding token for token; sampled output must come from the same law, by a
sequential test. Exit code 1 if something speaks against it. In float32 the comparison is exact; in bfloat16 outputs
may part where two tokens nearly tie, which is counted by itself.

  paceline check-lossless --server 127.0.0.1:50051 --prompts my_prompts.jsonl --num-samples 4000""",
    )
    what = it.group("what")
    add_server(what)
    what.add("--prompts", kind=options.text, metavar="FILE", help=f"a JSONL file: {SHAPES}; two of its own by default")
    for flag, low, default, about in (
        ("--num-prompts", 1, 16, "prompts compared, of those given"),
        ("--max-tokens", 1, 64, "tokens compared of each"),
        ("--num-samples", 8, 1600, "draws a mode; more find smaller differences"),
        ("--top-k", 0, 4, "of the draws: a small support makes the test sharp; 0 = all"),
        ("--concurrency", 1, 8, "requests at a time"),
    ):
        what.add(flag, kind=options.whole(low), default=default, metavar="N", help=about)
    what.add(
        "--rule",
        kind=options.rule,
        default="auto",
        metavar="RULE",
        help="how the drafts of the draws are judged: auto (as the server chooses), match, coupled, token or block",
    )
    what.add(
        "--alpha",
        kind=options.number(1e-9, 0.5),
        default=0.001,
        metavar="P",
        help="error level: how often a lossless server may be called different by the test of sampled output",
    )
    what.add(
        "--timeout", kind=options.number(0.001, 86400), default=600, metavar="S", help="seconds a request may take"
    )
    what.add("--json", kind=options.boolean, default=False, help="print one JSON object")
    add_credentials(it)
    return it
