"""The acceptance head's trainer: what it learns from, how it stops drafts, and that a kill costs nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from drafter.policies import Seen, make
from models import calibrate, fit, train_acceptance_head
from models.acceptance import Drafted, Pair, branches, chain, check_branches, hidden_of
from models.corpus import Encoded
from paceline import acceptance_head
from paceline.engine import weights
from paceline.length_policy import LengthPolicy
from tests.tiny import write_model, write_pair

PROMPTS = ["ab", "cde", "f", "gh ij", "k"]
DOCUMENT = Encoded((5, 9, 3, 77, 31, 8, 120, 6), prompt_length=3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("pair"))


def load(folders: tuple[Path, Path], temperature: float = 1.0) -> Pair:
    target, drafter = map(str, folders)
    return Pair.load(target, drafter, temperature=temperature, dtype="float32", device=torch.device("cpu"))


@torch.inference_mode()
def plainly(pair: Pair, prefix: list[int], token_id: int) -> tuple[Tensor, float, float]:
    """Hidden state, acceptance and entropy of a token drafted after a prefix, by passes of their own."""
    before, after = torch.tensor([prefix]), torch.tensor([[*prefix, token_id]])
    target, draft = (model(before).logits[0, -1].softmax(-1) for model in (pair.target, pair.drafter))
    accept = min(1.0, float(target[token_id] / draft[token_id]))
    return hidden_of(pair.drafter, input_ids=after)[-1], accept, float(-(draft * draft.log()).sum())


def test_a_branch_and_its_label_see_one_prefix_the_targets(folders: tuple[Path, Path]) -> None:
    pair, num_draws = load(folders), 2
    found = branches(pair, DOCUMENT, torch.Generator().manual_seed(1), num_draws=num_draws)
    drawn = drawn_tokens(pair, num_draws)
    assert len(found) == len(drawn) == num_draws * 5
    for index, token_id in enumerate(drawn):
        prefix = list(DOCUMENT.token_ids[: DOCUMENT.prompt_length + index // num_draws])
        hidden, accept, entropy = plainly(pair, prefix, token_id)
        assert torch.allclose(found.hidden[index], hidden, atol=1e-4)
        assert float(found.accept[index]) == pytest.approx(accept, abs=1e-4)
        assert float(found.entropy[index]) == pytest.approx(entropy, abs=1e-4)
    assert 0.1 < float(found.accept.mean()) < 0.99, "all kept, or all rejected: the labels tell nothing"


@torch.inference_mode()
def drawn_tokens(pair: Pair, num_draws: int) -> list[int]:
    """The same draws again."""
    logits = pair.drafter(torch.tensor([DOCUMENT.token_ids])).logits[0, DOCUMENT.prompt_length - 1 : -1]
    generator = torch.Generator().manual_seed(1)
    tokens: list[int] = (
        logits.softmax(-1).multinomial(num_draws, replacement=True, generator=generator).flatten().tolist()
    )
    return tokens


def test_a_chain_is_judged_after_its_own_tokens(folders: tuple[Path, Path]) -> None:
    pair = load(folders)
    found = chain(pair, DOCUMENT)
    for index, token_id in enumerate(DOCUMENT.token_ids[3:]):
        hidden, accept, entropy = plainly(pair, list(DOCUMENT.token_ids[: 3 + index]), token_id)
        assert torch.allclose(found.hidden[index], hidden, atol=1e-4)
        assert float(found.accept[index]) == pytest.approx(accept, abs=1e-4)
        assert float(found.entropy[index]) == pytest.approx(entropy, abs=1e-4)


def test_at_temperature_0_a_token_is_kept_or_not(folders: tuple[Path, Path]) -> None:
    found = branches(load(folders, temperature=0.0), DOCUMENT, torch.Generator().manual_seed(1))
    assert set(found.accept.tolist()) <= {0.0, 1.0}


def test_an_architecture_that_ignores_the_mask_is_refused(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = load(folders)
    check_branches(pair, DOCUMENT)
    plain = pair.drafter.forward
    monkeypatch.setattr(pair.drafter, "forward", lambda **inputs: plain(**(inputs | {"attention_mask": None})))
    with pytest.raises(ValueError, match="does not heed a mask"):
        check_branches(pair, DOCUMENT)


def test_models_of_different_vocabularies_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", seed=1, extra=("<more>",))
    with pytest.raises(ValueError, match="share their vocabulary"):
        load((folders[0], other))


def test_auc_counts_pairs_and_halves_ties() -> None:
    assert calibrate.auc(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])) == 1
    assert calibrate.auc(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1.0])) == 0.5
    generator = torch.Generator().manual_seed(3)
    score, accept = torch.randint(5, (40,), generator=generator), torch.rand(40, generator=generator).double()
    kept = lost = 0.0
    for i in range(40):
        for j in range(40):
            weight = float(accept[i] * (1 - accept[j]))
            kept += weight * (0.5 + 0.5 * float(torch.sign(score[i] - score[j])))
            lost += weight
    assert calibrate.auc(score, accept) == pytest.approx(kept / lost)
    assert math.isnan(calibrate.auc(torch.ones(2), torch.ones(2))), "nothing was rejected"


def column(*values: float) -> Drafted:
    accept = torch.tensor(values, dtype=torch.float64)
    return Drafted(torch.zeros(len(values), 1), accept, accept, accept, accept)


SHIPPED: dict[str, tuple[str, Callable[[calibrate.Chains, float], calibrate.Drafts], tuple[float, ...]]] = {
    "specdecpp": ("threshold={},max_length=20", calibrate.Chains.by_head, (0.05, 0.3, 0.7, 0.99)),
    "svip": ("threshold_nats={},max_length=20", calibrate.Chains.by_entropy_after, (0.1, 0.5, 0.9, 3)),
    "confidence": ("threshold={},max_length=20", calibrate.Chains.by_token_prob, (0.1, 0.5, 0.9)),
    "adaedl": ("entropy_factor=1,threshold={},max_length=20", calibrate.Chains.by_entropy_before, (0.1, 0.5, 0.9)),
    "fixed": ("length={}", calibrate.Chains.by_length, (1, 5, 20)),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_drafts_are_said_to_end_where_the_shipped_policies_end_them(name: str) -> None:
    text, by, parameters = SHIPPED[name]
    generator = torch.Generator().manual_seed(4)
    given = [
        Drafted(torch.zeros(length, 1), *torch.rand(4, length, generator=generator).sqrt().unbind())
        for length in (1, 2, 7, 20, 20, 20)
    ]
    predicted = [torch.rand(len(each), generator=generator).sqrt() for each in given]
    chains = calibrate.Chains.of(given, predicted)
    for parameter in parameters:
        policy = LengthPolicy.parse(f"{name}:{text.format(parameter)}")
        expected = [drafted_length(policy, *pair) for pair in zip(given, predicted, strict=True)]
        at = (1 - parameter) ** 2 if name == "adaedl" else parameter
        assert by(chains, at).lengths.tolist() == expected, parameter


def drafted_length(given: LengthPolicy, drafted: Drafted, predicted: Tensor) -> int:
    policy = make(given, {1.0: 0.5})
    for length in range(len(drafted)):
        before = float(predicted[length - 1]) if length else 1.0
        row = Seen(length, float(drafted.entropy[length]), accept_prob=before)
        if length and policy.stops_before(row):
            return length
        after = replace(row, draft_length=length + 1, token_prob=float(drafted.token_prob[length]))
        if policy.stops_after(after):
            return length + 1
    return len(drafted)


def test_the_rate_counts_expected_tokens_per_draft_step() -> None:
    """Drafts of two from (0.5, 0.5) and (1): 0.5 + 0.25 + 1 kept, 2 of the target's own; 3 steps and 2 passes."""
    given = [column(0.5, 0.5, 1.0), column(1.0)]
    drafts = calibrate.Chains.of(given, [drafted.accept for drafted in given]).by_length(2)
    assert drafts.lengths.tolist() == [2, 1]
    assert drafts.rate(cost_ratio=6.0) == pytest.approx(3.75 / (3 + 12))


def test_a_row_that_ended_a_draft_before_its_token_is_paid_for() -> None:
    """Entropies are 0, 9, 0 and 0: one draft ends after a token and two rows, the other with its chain."""
    zeros, entropy = torch.zeros(3), torch.tensor([0.0, 9.0, 0.0])
    given = [Drafted(torch.zeros(3, 1), zeros, entropy, zeros, zeros), column(0.0)]
    drafts = calibrate.Chains.of(given, [zeros, zeros[:1]]).by_entropy_before(1.0)
    assert drafts.lengths.tolist() == [1, 1]
    assert drafts.num_rows.tolist() == [2, 1]


def test_a_dearer_pass_is_met_with_longer_drafts() -> None:
    given = [column(*[0.9] * 20), column(*[0.6] * 20)]
    chains = calibrate.Chains.of(given, [drafted.accept for drafted in given])
    found = calibrate.calibrated(chains)
    lengths = [chains.by_head(at).mean_length for _, at in sorted(found.items())]
    assert lengths == sorted(lengths)
    assert lengths[-1] > lengths[0]


def test_the_loss_is_cross_entropy_with_the_weight_on_rejections() -> None:
    scores, accept = torch.tensor([[0.0, math.log(3)]]), torch.tensor([0.75])
    assert float(fit.loss_of(scores, accept, 1.0)) == pytest.approx(-0.25 * math.log(0.25) - 0.75 * math.log(0.75))
    assert float(fit.loss_of(scores, torch.tensor([0.0]), 6.0)) == pytest.approx(6 * math.log(4))
    assert float(fit.loss_of(scores, torch.tensor([1.0]), 6.0)) == pytest.approx(math.log(4 / 3))


def run(folders: tuple[Path, Path], folder: Path, *more: str) -> int:
    prompts = folder / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in PROMPTS))
    target, drafter = map(str, folders)
    common = ["--target", target, "--drafter", drafter, "--held-out", str(prompts), "--max-new-tokens", "24"]
    given = ["train", *common, "--prompts", str(prompts), "--output", str(folder / "head.safetensors")]
    return train_acceptance_head.main([*given, "--epochs", "2", "--batch-size", "16", "--device", "cpu", *more])


@pytest.mark.parametrize("at", ["write_shard", "write_head"])
def test_a_run_that_was_killed_goes_on_to_the_same_head(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    monkeypatch.setattr(fit, "PROMPTS_PER_SHARD", 3)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    assert run(folders, whole) == 0
    plain = getattr(fit.Checkpoint, at)

    def dies(checkpoint: fit.Checkpoint, *arguments: object) -> None:
        plain(checkpoint, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(fit.Checkpoint, at, dies)
    assert run(folders, killed) == 130
    assert not (killed / "head.safetensors").exists()
    monkeypatch.setattr(fit.Checkpoint, at, plain)
    assert run(folders, killed, "--epochs", "3") == 2, "another plan must not go on from it"
    assert run(folders, killed) == 0
    files = [load_file(folder / "head.safetensors") for folder in (whole, killed)]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    assert not list(killed.glob("*.checkpoint"))


def test_a_head_says_what_it_was_trained_for_and_the_report_measures_it(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folders, tmp_path, "--tied", "--temperature", "0.7") == 0
    drafter_hash, _ = weights.inspect(str(folders[1])).hashes()
    path = tmp_path / "head.safetensors"
    head = acceptance_head.load(path, drafter_hash=drafter_hash)
    assert (head.info.is_tied, head.info.num_blocks, head.info.temperature) == (True, 3, 0.7)
    assert head.info.target == folders[0].name
    assert set(head.info.thresholds) == set(calibrate.COST_RATIOS)
    target, drafter = map(str, folders)
    common = ["--target", target, "--drafter", drafter, "--held-out", str(tmp_path / "prompts.jsonl")]
    more = ["--head", str(path), "--json", str(tmp_path / "report.json"), "--max-new-tokens", "24"]
    assert train_acceptance_head.main(["report", *common, *more]) == 0
    figures = json.loads((tmp_path / "report.json").read_text())
    assert set(figures["auc"]) == {"entropy", "top-2 margin", "token's own probability", "acceptance head"}
    assert all(entry["specdecpp"]["parameter"] in calibrate.THRESHOLDS for entry in figures["rates"])
    assert sum(entry["share"] for entry in figures["buckets"]) == pytest.approx(1)
    assert "acceptance by entropy of the draft" in capsys.readouterr().out


def test_a_wrong_argument_is_told_with_its_fix(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folders, tmp_path, "--blocks", "99") == 2
    assert "--blocks 99: give a number from 0 to 16" in capsys.readouterr().err
