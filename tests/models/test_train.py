"""Reading and packing text, the tokenizer, and training that a kill does not change."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaForCausalLM

from models import shapes
from models.corpus import (
    END_OF_TEXT,
    IGNORED,
    Encoded,
    InputError,
    encode,
    pack,
    read_documents,
    train_tokenizer,
)
from models.distil import continuations, divergence, read_samples, write_samples
from models.measure import Positions, accepted_per_draft, buckets, compare, summary
from models.train import main, rows_of_documents
from models.trainer import Plan, share_of_rate

TINY = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    lines = [
        {"question": f"Ann has {i} apples and buys {i + 3}. How many?", "answer": f"{i}+{i + 3} = <<1+1=2>>{2 * i + 3}"}
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def tokenizer_dir(data: Path, tmp_path: Path) -> Path:
    output = tmp_path / "tokenizer"
    assert main(["tokenizer", "--data", str(data), "--output", str(output), "--vocab-size", "300"]) == 0
    return output


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, "target", TINY)
    monkeypatch.setitem(shapes.SHAPES, "drafter", TINY | {"intermediate_size": 16})


def train_command(role: str, data: Path, tokenizer: Path, output: Path, *more: str) -> list[str]:
    paths = ["--data", str(data), "--tokenizer", str(tokenizer), "--output", str(output)]
    sizes = ["--rows", "2", "--length", "64", "--warmup", "2", "--dropout", "0.1", "--device", "cpu"]
    return [role, *paths, *sizes, *more]


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = load_file(directory / "model.safetensors")
    return weights


# Text.


def test_marks_of_the_calculator_are_removed(data: Path) -> None:
    document = read_documents(data)[1]
    assert document.prompt == "Question: Ann has 1 apples and buys 4. How many?\nAnswer:"
    assert document.completion == " 1+4 = 5"


def test_text_field_is_a_document_without_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "Once."}\n\n{"text": "Twice."}\n')
    assert [(d.prompt, d.completion) for d in read_documents(path)] == [("", "Once."), ("", "Twice.")]


def test_line_separator_inside_a_string_does_not_end_the_line(tmp_path: Path) -> None:
    """str.splitlines() cuts at U+2028, which JSON allows in strings and GSM8K has in line 2382."""
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "a\u2028b"}\n', encoding="utf-8")
    assert read_documents(path)[0].completion == "a\u2028b"


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "data.jsonl:2: is not JSON"),
        ("[1]", "data.jsonl:2: is list, not an object"),
        ('{"prompt": "x"}', "data.jsonl:2: has the fields prompt; it needs"),
        ('{"question": "x", "answer": 3}', "field 'answer' is 3"),
        ('{"text": " "}', "field 'text' is ' '"),
    ],
)
def test_a_bad_line_is_named_and_ends_with_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, named: str
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    assert main(["tokenizer", "--data", str(path), "--output", str(tmp_path / "x")]) == 2
    assert named in capsys.readouterr().err


def test_missing_file_and_empty_file_are_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl: cannot be read"):
        read_documents(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="holds no document"):
        read_documents(tmp_path / "empty.jsonl")


# Tokenizer.


def test_digits_are_single_tokens_and_no_special_token_is_added(tokenizer_dir: Path) -> None:
    plain = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    auto = AutoTokenizer.from_pretrained(tokenizer_dir)
    text = "Ann has 1234 apples, 5.67 and ½ of them: ünïcode\n#### 90"
    ids = plain.encode(text).ids
    assert auto.encode(text) == auto(text)["input_ids"] == ids
    assert plain.decode(ids) == auto.decode(ids) == text
    tokens = [plain.decode([i]) for i in ids]
    assert [token for token in tokens if any(c in "0123456789" for c in token)] == list("123456790")
    assert plain.token_to_id(END_OF_TEXT) == auto.eos_token_id == auto.pad_token_id
    assert auto.bos_token_id is None


def test_end_of_text_is_one_token_and_skipped_when_decoding(tokenizer_dir: Path) -> None:
    auto = AutoTokenizer.from_pretrained(tokenizer_dir)
    assert auto.encode(END_OF_TEXT) == [auto.eos_token_id]
    assert auto.decode([*auto.encode("Ann"), auto.eos_token_id], skip_special_tokens=True) == "Ann"


# Rows.


def test_rows_hold_whole_documents_and_predict_the_next_token(data: Path) -> None:
    documents = [Encoded((5, 6, 7, 1), 2), Encoded((8, 9, 1), 1)]
    rows = pack(documents, length=8, pad_id=0, seed=0)
    assert rows.inputs.tolist() in ([[5, 6, 7, 1, 8, 9, 1, 0]], [[8, 9, 1, 5, 6, 7, 1, 0]])
    first = rows.inputs[0].tolist()
    assert rows.labels.tolist() == [[*first[1:7], IGNORED, IGNORED]]
    of_label = dict(zip(rows.labels[0].tolist(), rows.is_completion[0].tolist(), strict=True))
    written = {6: False, 7: True, 1: True, 9: True, IGNORED: False}
    assert {label: of_label[label] for label in written} == written
    assert not of_label.get(8, False)
    assert not of_label.get(5, False)


def test_every_pass_reads_every_row_once_in_another_order() -> None:
    documents = [Encoded(tuple([i] * 50), 0) for i in range(200)]
    rows_of = rows_of_documents(documents, num_rows=2, length=100, pad_id=0, seed=0)
    per_epoch = 100 * 98 // 100 // 2
    passes = [
        [int(v) for step in range(start, start + per_epoch) for v in rows_of(step).inputs.flatten()[::50]]
        for start in (0, per_epoch)
    ]
    assert all(len(set(seen)) == len(seen) == 196 for seen in passes)
    assert passes[0] != passes[1]


def test_some_steps_have_rows_of_twice_the_length() -> None:
    documents = [Encoded(tuple([i] * 50), 0) for i in range(200)]
    rows_of = rows_of_documents(documents, num_rows=4, length=100, pad_id=0, seed=0)
    assert [tuple(rows_of(step).inputs.shape) for step in range(6, 9)] == [(4, 100), (2, 200), (4, 100)]


# Training.


def test_rate_rises_stays_and_falls_to_zero() -> None:
    shares = [share_of_rate(step, steps=100, warmup=10) for step in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[9] == shares[60] == 1.0
    assert shares[80] == pytest.approx(0.5)
    assert shares[99] == pytest.approx(0.025)
    assert [share_of_rate(step, steps=0, warmup=10) for step in (9, 10**6)] == [1.0, 1.0]


@pytest.mark.usefixtures("tiny")
def test_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    data: Path, tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(train_command("target", data, tokenizer_dir, whole, "--steps", "12")) == 0

    update = LlamaForCausalLM.forward
    calls = 0

    def interrupted(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return update(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "forward", interrupted)
        assert main(train_command("target", data, tokenizer_dir, broken, "--steps", "12")) == 130
    state = json.loads((tmp_path / "broken.checkpoint" / "state.json").read_text())
    assert state["step"] == 5
    assert not broken.exists()
    torch.manual_seed(99)
    assert main(train_command("target", data, tokenizer_dir, broken, "--steps", "12")) == 0
    expected, found = weights_of(tmp_path / "whole.checkpoint"), weights_of(tmp_path / "broken.checkpoint")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert (whole / "model.safetensors").read_bytes() == (broken / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("tiny")
def test_new_number_of_steps_counts_as_if_asked_for_at_the_start(
    data: Path, tokenizer_dir: Path, tmp_path: Path
) -> None:
    whole, changed = tmp_path / "whole", tmp_path / "changed"
    assert main(train_command("target", data, tokenizer_dir, whole, "--steps", "10")) == 0
    assert main(train_command("target", data, tokenizer_dir, changed, "--steps", "90", "--stop-at", "5")) == 0
    assert not changed.exists()
    assert main(train_command("target", data, tokenizer_dir, changed, "--steps", "10")) == 0
    assert (whole / "model.safetensors").read_bytes() == (changed / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("tiny")
def test_run_cannot_be_made_so_short_that_its_rate_should_have_fallen(
    data: Path, tokenizer_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "target"
    assert main(train_command("target", data, tokenizer_dir, output, "--steps", "20", "--stop-at", "8")) == 0
    assert main(train_command("target", data, tokenizer_dir, output, "--steps", "10")) == 2
    assert "use --steps 20" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny")
def test_other_settings_than_the_checkpoint_has_are_refused(
    data: Path, tokenizer_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "target"
    assert main(train_command("target", data, tokenizer_dir, output, "--steps", "2")) == 0
    assert main(train_command("target", data, tokenizer_dir, output, "--steps", "2", "--seed", "1")) == 2
    assert "--seed 1" in capsys.readouterr().err


def test_steps_and_minutes_exclude_each_other() -> None:
    for steps, minutes in ((0, 0.0), (5, 1.0)):
        with pytest.raises(InputError, match="exactly one"):
            Plan(steps=steps, minutes=minutes, learning_rate=1e-3, warmup=1, weight_decay=0.0, seed=0)


@pytest.mark.usefixtures("tiny")
def test_whole_chain_runs_and_distillation_brings_the_drafter_nearer(
    data: Path, tokenizer_dir: Path, tmp_path: Path
) -> None:
    target, drafter, distilled = tmp_path / "target", tmp_path / "drafter", tmp_path / "distilled"
    samples, figures = tmp_path / "samples.jsonl", tmp_path / "report.json"
    common = ["--data", str(data), "--device", "cpu"]
    assert main(train_command("target", data, tokenizer_dir, target, "--steps", "40")) == 0
    assert main(train_command("drafter", data, tokenizer_dir, drafter, "--steps", "5")) == 0
    pair = ["--target", str(target), "--drafter", str(drafter)]
    assert main(["sample", *common, "--target", str(target), "--limit", "8", "--output", str(samples)]) == 0
    options = ["--samples", str(samples), "--rows", "2", "--length", "64", "--steps", "60", "--warmup", "2"]
    assert main(["distil", *common, *pair, *options, "--output", str(distilled)]) == 0
    pair = ["--target", str(target), "--drafter", str(distilled), "--before", str(drafter)]
    assert main(["report", *common, *pair, "--limit", "6", "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())
    for text in ("text", "sampled"):
        assert found["drafter"][text]["acceptance_t1"] > found["before"][text]["acceptance_t1"]
    model = LlamaForCausalLM.from_pretrained(distilled)
    assert model.dtype == torch.bfloat16
    assert model.config.eos_token_id == AutoTokenizer.from_pretrained(distilled).eos_token_id


# Distillation and measures.


def test_divergence_is_zero_for_equal_logits_and_counts_prompts_less() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(1, 3, 5), torch.randn(1, 3, 5)
    labels = torch.tensor([[1, 2, IGNORED]])
    written = torch.tensor([[False, True, True]])
    assert divergence(first, first, labels, written, share_of_tv=0.5) == pytest.approx(0, abs=1e-6)
    target_probs, draft_probs = second.softmax(-1)[0], first.softmax(-1)[0]
    tv = 0.5 * (target_probs - draft_probs).abs().sum(-1)
    kl = (target_probs * (target_probs / draft_probs).log()).sum(-1)
    for share in (0.0, 0.5, 1.0):
        each = (1 - share) * kl + share * tv
        expected = float((0.2 * each[0] + each[1]) / 1.2)
        assert divergence(first, second, labels, written, share_of_tv=share) == pytest.approx(expected, rel=1e-5)


def tiny_model(tokenizer_dir: Path, seed: int) -> LlamaForCausalLM:
    model = shapes.build(TINY, shapes.load_tokenizer(tokenizer_dir), seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    model.train(False)
    return model


def test_batched_greedy_continuations_are_those_of_one_prompt_alone(tokenizer_dir: Path) -> None:
    """Padding, the cache and the removal of ended sequences must not change what is written."""
    model = tiny_model(tokenizer_dir, 1)
    prompts = [(7, 8, 9), (20, 21), (5, 6, 7, 8, 9, 10), (30,)]
    found = dict(continuations(model, prompts, temperature=0.0, seed=0, max_new_tokens=12))
    for index, prompt in enumerate(prompts):
        tokens = list(prompt)
        for _ in range(12):
            tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
            if tokens[-1] == model.config.eos_token_id:
                break
        assert found[index] == Encoded(tuple(tokens), len(prompt))


def test_samples_survive_the_file(tmp_path: Path) -> None:
    samples = [Encoded((1, 2, 3), 2), Encoded((4,), 0)]
    write_samples(samples, tmp_path / "samples.jsonl")
    assert read_samples(tmp_path / "samples.jsonl") == samples
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(InputError, match="cannot be read"):
        read_samples(tmp_path / "bad.jsonl")


def test_a_model_agrees_with_itself_everywhere(tokenizer_dir: Path, data: Path) -> None:
    model = tiny_model(tokenizer_dir, 2)
    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    documents = encode(read_documents(data)[:5], tokenizer)
    (positions,) = compare(model, [model], documents)
    assert len(positions.agrees) == sum(len(d.token_ids) - d.prompt_length for d in documents)
    assert positions.agrees.all()
    assert positions.overlap.min() > 1 - 1e-4
    assert positions.starts[1] == len(documents[0].token_ids) - documents[0].prompt_length
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([documents[3].token_ids])).logits[0].log_softmax(-1)
    place = documents[3].prompt_length
    expected = -float(logits[place - 1, documents[3].token_ids[place]])
    assert float(positions.target_loss[positions.starts[3]]) == pytest.approx(expected, rel=1e-4)


def positions_of(agrees: list[bool], starts: tuple[int, ...] = (0,)) -> Positions:
    numbers = torch.linspace(0.1, 0.9, len(agrees))
    return Positions(numbers, numbers, torch.tensor(agrees), 1 - numbers, numbers * 3, starts)


def test_drafts_stop_at_the_first_disagreement_and_at_the_end_of_a_document() -> None:
    assert accepted_per_draft(positions_of([True, True, False, True, True]), 2) == 2.0
    assert accepted_per_draft(positions_of([False, False]), 4) == 0.0
    assert accepted_per_draft(positions_of([True] * 4, (0, 2)), 8) == 2.0


def test_summary_weighs_entropy_by_acceptance() -> None:
    found = summary(positions_of([True, False]))
    assert found["agreement_t0"] == 0.5
    assert found["entropy_accepted_t0"] == pytest.approx(0.3)
    assert found["entropy_rejected_t0"] == pytest.approx(2.7)
    assert found["entropy_accepted_t1"] == pytest.approx(0.9 * 0.3 + 0.1 * 2.7)
    assert found["correlation_t1"] == pytest.approx(-1)
    assert sum(entry["share"] for entry in buckets(positions_of([True, False]))) == 1.0


def test_vocabulary_has_the_size_that_is_asked_for(data: Path) -> None:
    assert len(train_tokenizer(read_documents(data), vocab_size=290)) == 290
