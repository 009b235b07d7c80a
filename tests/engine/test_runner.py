"""The runner against transformers' own forward pass, in fp32."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from paceline.engine import executor, step
from paceline.engine.pool import BlockPool
from paceline.engine.runner import Chunk, PoolFull, Runner
from paceline.errors import InvalidInput, UnknownRequest
from tests.engine.conftest import ARCHITECTURES, VOCAB_SIZE, WINDOW

# Rounding of fp32 in another order of summation, relative to the largest logit.
TOLERANCE = 2e-6

Folders = Callable[[str], Path]


def reference(folder: Path) -> Callable[[list[int]], torch.Tensor]:
    """Logits of every position of a sequence, by transformers alone."""
    factory: Any = transformers.AutoModelForCausalLM
    model = factory.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()

    def logits(token_ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            result: torch.Tensor = model(torch.tensor([token_ids]), use_cache=False).logits[0]
        return result

    return logits


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest logit (at least 1)."""
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1.0))


def kv_store(runner: Runner) -> step.KVStore:
    assert isinstance(runner._executor, executor.Executor)
    assert runner._executor._store is not None
    return runner._executor._store


class Conversation:
    """Drives several sequences through mixed steps, and remembers what each row must equal.

    Prompts arrive in chunks while other sequences decode; drafts hold wrong tokens, which a smaller start of the
    next step takes back.
    """

    def __init__(self, runner: Runner, seed: int) -> None:
        self._runner = runner
        self._rng = random.Random(seed)
        lengths = [70, 41, 5, 1]
        self.texts = {f"s{index}": self._tokens(length) for index, length in enumerate(lengths)}
        self.rows: list[tuple[str, int, torch.Tensor]] = []  # sequence, position, logits
        for sequence in self.texts:
            runner.open(sequence)

    def run(self, num_steps: int) -> None:
        done = dict.fromkeys(self.texts, 0)
        for number in range(num_steps):
            self._step(done, number)
            self._runner.check_integrity()

    def _step(self, done: dict[str, int], number: int) -> None:
        chunks: list[Chunk] = []
        num_kept: list[int] = []
        for sequence, text in self.texts.items():
            start = done[sequence]
            if number % 4 == 3 and self._rng.random() < 0.5:
                continue
            size = self._rng.choice([1, 1, 4, 6]) if start >= 20 else self._rng.choice([7, 20, 40])
            while len(text) < start + size:
                text.append(self._rng.randrange(VOCAB_SIZE))
            good = self._rng.randint(1, size)
            tokens = text[start : start + good] + self._tokens(size - good)
            num_rows = self._rng.choice([0, 1, size, size])
            chunks.append(Chunk(sequence, start, tokens, num_rows))
            num_kept.append(good)
        logits = self._runner.forward(chunks)
        assert logits.dtype == torch.float32
        first = 0
        for chunk, good in zip(chunks, num_kept, strict=True):
            skipped = len(chunk.token_ids) - chunk.num_rows
            for row in range(chunk.num_rows):
                if skipped + row < good:  # the others saw a wrong token
                    self.rows.append((chunk.sequence, chunk.start + skipped + row, logits[first + row]))
            first += chunk.num_rows
            done[chunk.sequence] = chunk.start + good
        assert first == len(logits)

    def _tokens(self, count: int) -> list[int]:
        return [self._rng.randrange(VOCAB_SIZE) for _ in range(count)]

    def compare(self, logits: Callable[[list[int]], torch.Tensor]) -> tuple[float, bool]:
        """(largest relative difference, whether every argmax agrees)."""
        expected = {sequence: logits(text) for sequence, text in self.texts.items()}
        found = torch.stack([row for _, _, row in self.rows])
        wanted = torch.stack([expected[sequence][position] for sequence, position, _ in self.rows])
        return error(found, wanted), bool((found.argmax(-1) == wanted.argmax(-1)).all())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_mixed_steps_with_rollback_equal_plain_forwards(model_folder: Folders, architecture: str) -> None:
    folder = model_folder(architecture)
    conversation = Conversation(Runner.load(str(folder), max_num_tokens=640, block_size=8), seed=1)
    conversation.run(30)
    difference, same_argmax = conversation.compare(reference(folder))
    assert difference <= TOLERANCE
    assert same_argmax
    assert len(conversation.rows) > 50


def take_any(pool: BlockPool, last: int | None, num_wanted: int) -> int:
    """A block that does not follow the sequence's last one, if there is a choice."""
    free = [block for block in range(pool.num_blocks) if pool._free[block]]
    block = free[(7 * len(free)) // 11]
    pool._free[block] = 0
    pool._num_free -= 1
    return block


@pytest.mark.parametrize("max_batched_bytes", [0, 1 << 30])
@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("architecture", ["Llama", "Gemma2"])
def test_every_form_of_the_attention_equals_plain_forwards(
    model_folder: Folders,
    architecture: str,
    scattered: bool,
    max_batched_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Alone or in a padded batch, over consecutive or scattered blocks, whatever others left in the pool."""
    monkeypatch.setattr(executor, "_MAX_BATCHED_BYTES", max_batched_bytes)
    if scattered:
        monkeypatch.setattr(BlockPool, "_take", take_any)
    folder = model_folder(architecture)
    runner = Runner.load(str(folder), max_num_tokens=640, block_size=8)
    store = kv_store(runner)
    store.keys.fill_(float("nan"))
    store.values.fill_(float("nan"))
    conversation = Conversation(runner, seed=2)
    conversation.run(30)
    difference, same_argmax = conversation.compare(reference(folder))
    assert difference <= TOLERANCE
    assert same_argmax


def test_a_corrupted_key_is_noticed(model_folder: Folders) -> None:
    """Negative control: the comparison must fail if one slot of the pool is wrong."""
    folder = model_folder("Llama")
    runner = Runner.load(str(folder), max_num_tokens=256)
    text = list(range(40))
    runner.open("a")
    runner.forward([Chunk("a", 0, text[:39], 0)])
    kv_store(runner).keys[0, :, 20] += 1.0
    found = runner.forward([Chunk("a", 39, text[39:], 1)])
    assert error(found, reference(folder)(text)[-1:]) > 100 * TOLERANCE


def test_a_wrong_draft_that_is_not_rolled_back_is_noticed(model_folder: Folders) -> None:
    """Negative control: naming the start that a wrong token took gives other logits."""
    folder = model_folder("Qwen3Moe")
    runner, text = Runner.load(str(folder), max_num_tokens=256), list(range(30))
    runner.open("a")
    runner.forward([Chunk("a", 0, text[:20], 0)])
    runner.forward([Chunk("a", 20, [99, 98], 2)])
    wrong = runner.forward([Chunk("a", 22, text[20:], 1)])
    right = runner.forward([Chunk("a", 20, text[20:], 1)])
    expected = reference(folder)(text)[-1:]
    assert error(right, expected) <= TOLERANCE
    assert error(wrong, expected) > 100 * TOLERANCE


@pytest.mark.parametrize(
    ("architecture", "ignored"),
    [("Mistral", "window"), ("Gemma2", "softcap"), ("Gemma2", "window"), ("Gemma3", "window"), ("Gemma3", "scaling")],
)
def test_ignoring_an_argument_of_the_attention_is_noticed(
    model_folder: Folders, architecture: str, ignored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: without its window, its cap or its own scale the model gives other logits."""
    attend = step.Step.attend

    def forgetful(self: step.Step, layer: int, query: Any, key: Any, value: Any, site: step.Site) -> Any:
        return attend(self, layer, query, key, value, site._replace(**{ignored: None}))

    folder = model_folder(architecture)
    runner = Runner.load(str(folder), max_num_tokens=256)
    monkeypatch.setattr(step.Step, "attend", forgetful)
    text = list(range(3 * WINDOW))
    runner.open("a")
    found = runner.forward([Chunk("a", 0, text, 1)])
    assert error(found, reference(folder)(text)[-1:]) > 100 * TOLERANCE


def test_a_full_pool_leaves_every_sequence_as_it_was(model_folder: Folders) -> None:
    folder = model_folder("Llama")
    runner = Runner.load(str(folder), max_num_tokens=64)
    text = list(range(40))
    for sequence in "ab":
        runner.open(sequence)
    runner.forward([Chunk("a", 0, text[:20], 0), Chunk("b", 0, text[:20], 0)])
    with pytest.raises(PoolFull):
        runner.forward([Chunk("a", 3, [1], 1), Chunk("b", 20, text, 1)])
    assert (runner.length("a"), runner.length("b"), runner.room()) == (20, 20, 0)
    runner.check_integrity()
    found = runner.forward([Chunk("a", 20, text[20:24], 1)])
    assert error(found, reference(folder)(text[:24])[-1:]) <= TOLERANCE


def test_a_failed_pass_leaves_its_sequences_cut_to_their_start(
    model_folder: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Runner.load(str(model_folder("Llama")), max_num_tokens=64)
    runner.open("a")
    runner.forward([Chunk("a", 0, [1, 2, 3, 4], 0)])

    def fail(plan: object) -> torch.Tensor:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(runner._executor, "run", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        runner.forward([Chunk("a", 2, list(range(30)), 1)])
    assert runner.length("a") == 2
    runner.check_integrity()


def test_empty_steps_and_pure_cuts_need_no_forward(model_folder: Folders) -> None:
    runner = Runner.load(str(model_folder("Llama")), max_num_tokens=64)
    assert runner.forward([]).shape == (0, runner.info.vocab_size)
    runner.open("a")
    assert runner.forward([Chunk("a", 0, [1, 2, 3], 0)]).shape == (0, runner.info.vocab_size)
    assert runner.forward([Chunk("a", 1, [], 0)]).shape == (0, runner.info.vocab_size)
    assert runner.length("a") == 1
    runner.close("a")
    runner.close("a")
    assert runner.room() == 64


def test_a_callers_bug_is_refused_before_anything_changes(model_folder: Folders) -> None:
    runner = Runner.load(str(model_folder("Llama")), max_num_tokens=64, max_model_len=32)
    runner.open("a")
    bad = {
        "twice": [Chunk("a", 0, [1], 1), Chunk("a", 0, [1], 1)],
        "rows": [Chunk("a", 0, [1], 2)],
        "max_model_len": [Chunk("a", 0, [1] * 33, 1)],
        "token id": [Chunk("a", 0, [VOCAB_SIZE], 1)],
        "are cached": [Chunk("a", 1, [1], 1)],
    }
    for message, chunks in bad.items():
        with pytest.raises(ValueError, match=message):
            runner.forward(chunks)
    with pytest.raises(UnknownRequest):
        runner.forward([Chunk("b", 0, [1], 1)])
    assert runner.length("a") == 0


def test_bfloat16_agrees_within_its_precision(model_folder: Folders) -> None:
    folder = model_folder("Qwen3")
    runner = Runner.load(str(folder), dtype="bfloat16", max_num_tokens=64)
    text = list(range(20))
    runner.open("a")
    found = runner.forward([Chunk("a", 0, text, 20)])
    assert found.dtype == torch.float32
    assert error(found, reference(folder)(text)) < 0.1


def test_a_length_that_the_pool_cannot_hold_is_refused(model_folder: Folders) -> None:
    with pytest.raises(InvalidInput, match="max_model_len=65: the KV cache holds only 64 tokens"):
        Runner.load(str(model_folder("Llama")), max_num_tokens=64, max_model_len=65)


def test_a_runner_tells_how_its_cache_is_cut(model_folder: Folders) -> None:
    use = Runner.load(str(model_folder("Llama")), max_num_tokens=640, block_size=8).cache_use()
    assert (use.num_tokens, use.num_used_tokens, use.block_size) == (640, 0, 8)


def test_the_pool_is_sized_from_a_memory_budget(model_folder: Folders) -> None:
    # 2 layers x 2 kv heads x 2 x 16 values x 4 bytes = 512 bytes a token
    runner = Runner.load(str(model_folder("Llama")), kv_cache_bytes=512 * 100)
    assert runner.room() == 96


def test_on_a_gpu_the_pool_takes_what_is_left_of_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (600, 1000))
    options = executor.Options("", "float32", "cuda", None, None, 16, None, 1, gpu_memory_utilization=0.9)
    assert executor.pool_bytes(options, torch.device("cuda")) == 500
    assert executor.pool_bytes(replace(options, kv_cache_bytes=7), torch.device("cuda")) == 7
    assert executor.pool_bytes(options, torch.device("cpu")) == 1 << 30
    with pytest.raises(InvalidInput, match="40% of the GPU's memory is in use"):
        executor.pool_bytes(replace(options, gpu_memory_utilization=0.4), torch.device("cuda"))
