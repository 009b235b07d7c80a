"""Text that comes in pieces is the text of the whole."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from paceline.text import TextStream


def byte_level(*words: str) -> tokenizers.Tokenizer:
    """Every byte is a token, and so is each of `words`; ids 0 and 1 are special."""
    vocab = {"<s>": 0, "</s>": 1}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab[letter] = len(vocab)
    merges: list[tuple[str, str]] = []
    for word in words:
        letters = [piece for piece, _ in pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(word)]
        joined = "".join(letters)
        for end in range(2, len(joined) + 1):
            if joined[:end] not in vocab:
                vocab[joined[:end]] = len(vocab)
                merges.append((joined[: end - 1], joined[end - 1]))
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<s>", "</s>"])
    return inner


class Decodes:
    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        self.inner = inner

    def encode(self, text: str) -> list[int]:
        return list(self.inner.encode(text).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.inner.decode(list(token_ids), skip_special_tokens=True)


BYTES = Decodes(byte_level())
WORDS = Decodes(byte_level("hello", " world", "END", "😀 ok", "né"))


def slow_cut(text: str, stop: Sequence[str], num_free: int = 0) -> str:
    """`text` before the stop string that is complete first, letter by letter; of several the longest.

    None is complete among the first `num_free` letters.
    """
    for end in range(num_free + 1 if num_free else 0, len(text) + 1):
        ended = [one for one in stop if text[:end].endswith(one)]
        if ended:
            return text[: end - max(map(len, ended))]
    return text


def stream(tokenizer: Decodes, pushes: Sequence[Sequence[int]], stop: Sequence[str]) -> tuple[str, bool, int]:
    """All text, whether it was stopped, and the tokens that were needed."""
    out = TextStream(tokenizer, (), stop)
    text, num_tokens = "", 0
    for push in pushes:
        piece = out.push(push)
        assert sum(piece.lengths) == len(piece.text)
        assert piece.stopped or piece.num_tokens == len(push)
        text += piece.text
        num_tokens += piece.num_tokens
        if piece.stopped:
            assert out.push((5, 6, 7)).text == ""
            break
    stopped = out.stopped
    return text + out.finish(), stopped, num_tokens


def split(rng: random.Random, ids: Sequence[int]) -> list[Sequence[int]]:
    cuts = sorted(rng.choices(range(len(ids) + 1), k=rng.randint(0, 6)))
    return [ids[low:high] for low, high in zip([0, *cuts], [*cuts, len(ids)], strict=True)]


@pytest.mark.parametrize("tokenizer", [BYTES, WORDS], ids=["bytes", "words"])
def test_any_split_gives_the_text_of_the_whole(tokenizer: Decodes) -> None:
    alphabet = ["a", "b", "ab", "hello", " world", "END", "né", "😀 ok", "👩‍👩‍👧", "漢", " ", "\n"]
    stops = ["END", "ab", "aba", "b", "😀", "漢\n", "lo w", "�"]
    for seed in range(400):
        rng = random.Random(seed)
        ids = tokenizer.encode("".join(rng.choices(alphabet, k=rng.randint(1, 12))))
        for _ in range(rng.randint(0, 3)):  # special tokens, and bytes that are no UTF-8
            ids.insert(rng.randint(0, len(ids)), rng.choice((0, 1, rng.randrange(2, 258))))
        stop = rng.sample(stops, k=rng.randint(0, 3))
        text, _, _ = stream(tokenizer, split(rng, ids), stop)
        assert text == slow_cut(tokenizer.decode(ids), stop), f"seed {seed}"


def test_a_stop_string_that_ends_among_the_first_tokens_is_text() -> None:
    for seed in range(300):
        rng = random.Random(seed)
        text = "".join(rng.choices("abc", k=rng.randint(1, 12)))
        stop = rng.sample(["a", "ab", "bc", "abc", "cab", "bcab"], k=rng.randint(1, 3))
        num_free = rng.randint(0, 8)
        out = TextStream(BYTES, (), stop, num_free)
        told = "".join(out.push(push).text for push in split(rng, BYTES.encode(text)))
        assert told + out.finish() == slow_cut(text, stop, num_free), f"seed {seed}"
        assert (out.stop_string in stop) == (slow_cut(text, stop, num_free) != text)


def test_half_a_character_is_never_let_go() -> None:
    out = TextStream(BYTES)
    pieces = [out.push((token_id,)) for token_id in BYTES.encode("é😀")]
    assert [piece.text for piece in pieces] == ["", "é", "", "", "", "😀"]
    assert [piece.lengths for piece in pieces] == [(0,), (1,), (0,), (0,), (0,), (1,)]


def test_half_a_character_at_the_end_is_flushed_as_what_decoding_makes_of_it() -> None:
    out = TextStream(BYTES)
    out.push(BYTES.encode("a😀")[:-1])
    assert out.finish() == "�"


def test_what_may_begin_a_stop_string_is_held_and_let_go_when_it_does_not() -> None:
    out = TextStream(BYTES, (), ["END"])
    assert out.push(BYTES.encode("xEN")).text == "x"
    assert out.push(BYTES.encode("EN")).text == "EN"
    assert out.push(BYTES.encode("D and more")).stopped
    assert out.finish() == ""


def test_what_was_held_at_the_end_is_flushed() -> None:
    out = TextStream(BYTES, (), ["END"])
    out.push(BYTES.encode("xEN"))
    assert out.finish() == "EN"


def test_a_stop_string_over_several_pushes_says_how_many_tokens_it_took() -> None:
    ids = BYTES.encode("one END two")
    assert stream(BYTES, [ids[:5], ids[5:6], ids[6:]], ["END"]) == ("one ", True, 7)


def test_a_stop_string_inside_a_token_cuts_the_token() -> None:
    ids = WORDS.encode("hello world")
    assert len(ids) == 2
    assert stream(WORDS, [ids], ["wor"]) == ("hello ", True, 2)


def test_the_stop_string_that_is_complete_first_wins_however_the_text_is_cut() -> None:
    for pushes in (["abc"], ["a", "b", "c"]):
        assert stream(BYTES, [BYTES.encode(push) for push in pushes], ["abc", "b"])[0] == "a"
    assert stream(BYTES, [BYTES.encode("xab")], ["b", "ab"])[0] == "x"


def test_a_leading_space_that_a_decoder_strips_is_kept_after_a_prompt() -> None:
    inner = tokenizers.Tokenizer(models.WordLevel({"▁a": 0, "▁b": 1, "<s>": 2}, unk_token="▁a"))
    inner.decoder = decoders.Metaspace()
    inner.add_special_tokens(["<s>"])
    tokenizer = Decodes(inner)
    out = TextStream(tokenizer, (2, 0))
    assert out.push((1, 2, 1)).text == " b b"


def test_a_long_run_of_bytes_that_are_no_text_is_let_go() -> None:
    out = TextStream(BYTES)
    continuation = next(i for i in range(2, 258) if BYTES.decode((i, i)) == "��")
    assert len(out.push([continuation] * 1000).text) > 900
