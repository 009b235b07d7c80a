"""What the engine shows the policies is what passes of their own say of the same tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from transformers import LlamaForCausalLM

from drafter.engine import DrafterEngine
from drafter.policies import Need, Policy, Seen
from paceline.acceptance_head import AcceptanceHead, HeadInfo, TrainedHead
from paceline.engine.runner import Runner
from paceline.errors import Unsupported
from paceline.length_policy import LengthPolicy
from paceline.types import Branch, Draft, OpenDraft, Role, Rule, SamplingParams, WorkerInfo
from tests.tiny import write_model

PROMPT = (5, 9, 77, 31)
NUM_TOKENS = 10


@dataclass(slots=True)
class Notes(Policy):
    """Stops after three tokens, and notes what it was shown; of each token both before and after it was drawn."""

    needs: ClassVar[Need] = Need.ENTROPY | Need.TOKEN_PROB | Need.ACCEPT_PROB

    before: list[Seen] = field(default_factory=list)
    after: list[Seen] = field(default_factory=list)

    def stops_before(self, seen: Seen) -> bool:
        self.before.append(seen)
        return False

    def stops_after(self, seen: Seen) -> bool:
        self.after.append(seen)
        return seen.draft_length == 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "drafter", seed=1)


def head_of(folder: Path) -> TrainedHead:
    """One with weights of chance."""
    hidden_size = LlamaForCausalLM.from_pretrained(folder).config.hidden_size
    module = AcceptanceHead(hidden_size, num_blocks=2, is_tied=False)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    info = HeadInfo(hidden_size, 2, False, "sha256:" + "a" * 64, "", "", 1.0, {6.0: 0.5}, 0.5)
    return TrainedHead(module.requires_grad_(False), info)


def engine(folder: Path, head: TrainedHead | None) -> DrafterEngine:
    runner = Runner.load(str(folder), max_num_tokens=256, block_size=4)
    known = runner.info
    hashes = (known.model_hash, known.tokenizer_hash, known.vocab_size, known.max_model_len)
    info = WorkerInfo(Role.DRAFTER, "", 1, "tiny", *hashes, 64, known.eos_token_ids, known.dtype, known.device)
    return DrafterEngine(runner, info, head=head)


def opened(request_id: str, policy: str, seed: int = 1) -> OpenDraft:
    sampling = SamplingParams(temperature=0.8, top_k=50, frequency_penalty=0.5)
    end = len(PROMPT) + NUM_TOKENS
    return OpenDraft(request_id, 0, PROMPT, sampling, Rule.TOKEN, seed, LengthPolicy.parse(policy), 64, end)


def drafted(it: DrafterEngine, request_id: str) -> list[Draft]:
    found: list[Draft] = []
    while it.has_work():
        found += [reply for _, reply in it.step() if isinstance(reply, Draft) and reply.request_id == request_id]
    return found


def test_policies_see_the_unscaled_row_the_kept_token_and_the_heads_view_of_the_token_before(folder: Path) -> None:
    """In a batch with requests that need less, of which some end at other places."""
    head = head_of(folder)
    it = engine(folder, head)
    notes = Notes()
    it.handle(1, opened("others", "fixed:length=2", seed=2))
    it.handle(1, opened("noted", "fixed"))
    it._entries["1/noted"].policy = notes
    it.handle(1, opened("more", "svip", seed=3))
    chain = [*PROMPT, *(token for draft in drafted(it, "noted") for token in draft.token_ids)]
    model: Any = LlamaForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        out = model(torch.tensor([chain]), output_hidden_states=True)
        accept_probs = head.accept_probs(out.hidden_states[-1][0])
        probs = out.logits[0].softmax(-1)
    assert len(notes.after) == NUM_TOKENS
    for index, seen in enumerate(notes.after):
        at = len(PROMPT) - 1 + index  # the place of the row
        assert seen.draft_length == index % 3 + 1
        assert seen.token_prob == pytest.approx(float(probs[at, chain[at + 1]]), rel=1e-3)
        assert seen.entropy_nats == pytest.approx(float(torch.special.entr(probs[at]).sum()), rel=1e-3)
        assert seen.accept_prob == pytest.approx(float(accept_probs[at]), rel=1e-3)
    assert [(seen.draft_length, seen.entropy_nats) for seen in notes.before] == [
        (seen.draft_length - 1, seen.entropy_nats) for seen in notes.after if seen.draft_length > 1
    ]
    assert all(seen.token_prob == 1 for seen in notes.before), "a token that may yet be undrawn was shown"
    assert accept_probs.std() > 0.01, "the head says the same of every token"


def test_a_drafter_offers_what_its_head_allows_and_refuses_the_rest_before_it_holds_anything(folder: Path) -> None:
    assert "specdecpp" in engine(folder, head_of(folder)).info.policies
    it = engine(folder, None)
    assert it.info.policies == ("adaedl", "confidence", "fixed", "svip")
    with pytest.raises(Unsupported, match="no acceptance head"):
        it.handle(1, opened("r", "specdecpp"))
    assert not it._entries
    it.handle(1, opened("r", "svip"))
    assert drafted(it, "r")


@pytest.mark.parametrize("policy", ["specdecpp:threshold=0.5", "adaedl:threshold=0.5", "confidence:threshold=0.4"])
def test_branches_are_drafted_under_every_policy(folder: Path, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy that reads hidden states reads the branches', too. (To a random model no outcome is likely.)"""
    monkeypatch.setattr("drafter.branches._LEAST_PROB", 0.0)
    it = engine(folder, head_of(folder))
    ask = OpenDraft("r", 0, PROMPT, SamplingParams(0), Rule.MATCH, 1, LengthPolicy.parse(policy), 2, 60, branches=4)
    it.handle(0, ask)
    replies = [reply for _ in range(80) if it.has_work() for _, reply in it.step()]
    assert any(isinstance(reply, Branch) for reply in replies)
    it.runner.check_integrity()
