"""Whatever drafts, however it overlaps: greedy output is transformers' own, coupled output is a function of the seed.

Real gRPC on loopback, real engines in their threads, fp32.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from coordinator.core.limits import Limits
from paceline.errors import Unsupported
from paceline.length_policy import POLICIES, LengthPolicy
from paceline.tokenizer import Tokenizer
from paceline.types import Role, Rule
from tests.system.cluster import Cluster, cluster
from tests.system.hostile import BRANCH_TRICKS, TRICKS, HostileEngine
from tests.tiny import write_model

ROOT = Path(__file__).parents[2]
TARGET, DRAFTER = ROOT / "models/demo-target", ROOT / "models/demo-drafter"
MODES = ("off", "sequential", "pearl", "branch")
NUM_TOKENS = 48
FEW_TOKENS = 20  # of each combination, where there are many


def prompts() -> list[str]:
    lines = (ROOT / "tests/data/gsm8k_dev_12.jsonl").read_text().splitlines()
    return [f"Question: {json.loads(line)['question']}\nAnswer:" for line in lines]


@pytest.fixture(autouse=True)
def many_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here drafters learn what a pass costs from chains alone, so they would make hardly any branch beside them."""
    monkeypatch.setattr("drafter.room._BUSY_SHARE", 100.0)
    monkeypatch.setattr("drafter.branches._LEAST_PROB", 0.0)


@pytest.fixture(scope="module")
def greedy() -> list[tuple[int, ...]]:
    """transformers' own greedy continuation of every prompt."""
    model: Any = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32)
    tokenizer = Tokenizer.load(TARGET)
    expected = []
    for prompt in prompts():
        ids = tokenizer.encode(prompt)
        tensor = torch.tensor([ids])
        out = model.generate(tensor, attention_mask=torch.ones_like(tensor), max_new_tokens=NUM_TOKENS, do_sample=False)
        expected.append(tuple(out[0, len(ids) :].tolist()))
    return expected


@pytest.fixture(scope="module")
def random_drafter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drafter of the demo pair's vocabulary that knows nothing."""
    folder = tmp_path_factory.mktemp("random") / "drafter"
    return write_model(folder, seed=3, tokenizer_of=TARGET)


async def _complete_all(it: Cluster, **settings: object) -> list[tuple[int, ...]]:
    async with it.client() as client:
        return [
            (await client.complete(prompt, max_tokens=NUM_TOKENS, **settings)).token_ids  # type: ignore[arg-type]
            for prompt in prompts()
        ]


def policies() -> list[str]:
    """Every length policy that needs no trained head, and the fixed one at its extremes."""
    return [*(name for name in POLICIES if name != "specdecpp"), "fixed:length=1", "fixed:length=3", "fixed:length=24"]


async def _compare(
    it: Cluster,
    greedy: Sequence[tuple[int, ...]],
    *,
    names: Iterable[str],
    rules: Sequence[str],
    policies: Sequence[str],
    num_prompts: int,
) -> None:
    """All combinations at once, each against plain decoding; `names` begin the requests' ids."""
    texts = prompts()[:num_prompts]
    modes = (("sequential", 1), ("pearl", 2), ("pearl", 4), ("branch", 2), ("branch", 4))
    places = asyncio.Semaphore(16)
    async with it.client() as client:

        async def differs(name: str, rule: str, policy: str, mode: str, window: int, at: int) -> str:
            settings: dict[str, Any] = {"rule": rule, "mode": mode, "window": window, "length_policy": policy}
            request_id = f"{name}:{rule}/{policy}/{mode}/{window}/{at}"
            async with places:
                answer = await client.complete(
                    texts[at], max_tokens=FEW_TOKENS, request_id=request_id, **settings, **sampled(rule)
                )
            return "" if answer.token_ids == plain[rule == "coupled", at] else request_id

        plain = {(False, at): greedy[at][:FEW_TOKENS] for at in range(num_prompts)}
        for at, text in enumerate(texts):
            answer = await client.complete(text, max_tokens=FEW_TOKENS, mode="off", **sampled("coupled"))
            plain[True, at] = answer.token_ids
        combinations = itertools.product(names, rules, policies, modes, range(num_prompts))
        found = await asyncio.gather(*(differs(n, r, p, *mode, at) for n, r, p, mode, at in combinations))
    assert not any(found), [request_id for request_id in found if request_id]


def sampled(rule: str) -> dict[str, Any]:
    return {"temperature": 1.0, "top_p": 0.95, "seed": 11} if rule == "coupled" else {"temperature": 0.0}


@pytest.mark.parametrize(
    ("drafter", "row_width", "row_bits", "draft_temperature"),
    [("demo", 1, 8, None), ("demo", 64, 12, 0.5), ("random", 4, 16, 2.0)],
)
async def test_no_policy_length_window_or_row_changes_a_token(
    drafter: str,
    row_width: int,
    row_bits: int,
    draft_temperature: float | None,
    greedy: Sequence[tuple[int, ...]],
    random_drafter: Path,
) -> None:
    async with cluster(TARGET) as it:
        await it.add("v", Role.VERIFIER, TARGET)
        rows: Any = {"row_width": row_width, "row_bits": row_bits, "draft_temperature": draft_temperature}
        await it.add("d", Role.DRAFTER, DRAFTER if drafter == "demo" else random_drafter, **rows)
        await _compare(it, greedy, names=[drafter], rules=list(Rule), policies=policies(), num_prompts=2)


async def test_no_trick_of_a_hostile_drafter_changes_a_token(
    greedy: Sequence[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not trusted, it may still draft: under match and coupled whatever it says, at temperature 0 under every rule."""
    for bound in ("MAX_REFUSALS", "MAX_LATE"):  # or the breaker lets it rest after its first tricks
        monkeypatch.setattr(f"coordinator.core.breaker.{bound}", 10**9)
    async with cluster(TARGET, insecure=True, limits=Limits(max_draft_wait_s=0.02)) as it:
        await it.add("v", Role.VERIFIER, TARGET)
        await it.add("d", Role.DRAFTER, DRAFTER, kind=HostileEngine)
        for some in (
            TRICKS.keys() - {"empty"},
            BRANCH_TRICKS.keys(),
            {"empty"},
        ):  # which ends the stream, and so the others' drafts
            await _compare(
                it,
                greedy,
                names=sorted(some),
                rules=["match", "coupled", "block"],
                policies=["fixed:length=4"],
                num_prompts=1,
            )
        engine = it.engines["d"]
        assert isinstance(engine, HostileEngine)
        assert engine.played >= TRICKS.keys()
        # Whether there is time for a branch of a given request is the machine's affair.
        assert len(engine.played & BRANCH_TRICKS.keys()) > len(BRANCH_TRICKS) // 2


@pytest.mark.parametrize("drafter", ["demo", "random", "none"])
async def test_greedy_output_is_transformers_own(
    drafter: str, greedy: Sequence[tuple[int, ...]], random_drafter: Path
) -> None:
    async with cluster(TARGET) as it:
        await it.add("v", Role.VERIFIER, TARGET)
        if drafter != "none":
            await it.add("d", Role.DRAFTER, DRAFTER if drafter == "demo" else random_drafter)
        for mode in MODES:
            assert await _complete_all(it, temperature=0, mode=mode) == list(greedy), (drafter, mode)


async def test_coupled_output_depends_on_nothing_but_prompt_and_seed(random_drafter: Path) -> None:
    outputs = {}
    for drafter in (None, DRAFTER, random_drafter):
        async with cluster(TARGET) as it:
            await it.add("v", Role.VERIFIER, TARGET)
            if drafter:
                await it.add("d", Role.DRAFTER, drafter)
            for mode in MODES:
                key = (drafter and drafter.parent.name, mode)
                outputs[key] = await _complete_all(it, temperature=1.0, top_p=0.95, seed=11, mode=mode)
    plain = outputs[None, "off"]
    assert all(output == plain for output in outputs.values()), [k for k, v in outputs.items() if v != plain]


async def test_many_requests_at_once_are_each_as_if_alone(greedy: Sequence[tuple[int, ...]]) -> None:
    async with cluster(TARGET) as it:
        await it.add("v", Role.VERIFIER, TARGET)
        await it.add("d", Role.DRAFTER, DRAFTER)
        async with it.client() as client:
            answers = await asyncio.gather(
                *(
                    client.complete(prompt, max_tokens=NUM_TOKENS, temperature=0, mode=mode)
                    for prompt in prompts()
                    for mode in MODES
                )
            )
    assert [answer.token_ids for answer in answers] == [tokens for tokens in greedy for _ in MODES]


@pytest.mark.parametrize("policy", ["adaedl:threshold=0.3", "confidence", "specdecpp:cost_ratio=6"])
async def test_greedy_output_is_transformers_own_under_every_length_policy(
    policy: str, greedy: Sequence[tuple[int, ...]]
) -> None:
    """With the head that is shipped beside the demo drafter."""
    given = LengthPolicy.parse(policy)
    async with cluster(TARGET) as it:
        await it.add("v", Role.VERIFIER, TARGET)
        await it.add("d", Role.DRAFTER, DRAFTER)
        async with it.client() as client:
            for mode in ("sequential", "pearl", "branch"):
                for prompt, expected in list(zip(prompts(), greedy, strict=True))[:4]:
                    answer = await client.complete(
                        prompt, max_tokens=NUM_TOKENS, temperature=0, mode=mode, length_policy=policy
                    )
                    assert answer.token_ids == expected, (policy, mode)
                    assert answer.metrics["length_policy"] == str(given)
                    assert answer.metrics["num_accepted_tokens"] > 0


async def test_a_policy_whose_head_no_drafter_has_is_refused_with_what_there_is(random_drafter: Path) -> None:
    async with cluster(TARGET) as it:
        await it.add("v", Role.VERIFIER, TARGET)
        await it.add("d", Role.DRAFTER, random_drafter)
        async with it.client() as client:
            known = "adaedl, confidence, fixed, svip"
            with pytest.raises(Unsupported, match=rf"length_policy.*no drafter offers it; .* offer {known}"):
                await client.complete("x", max_tokens=4, length_policy="specdecpp")
