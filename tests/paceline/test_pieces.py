"""The bytes of tokens one after another are the bytes of their text."""

from __future__ import annotations

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from paceline.pieces import Pieces

TEXT = "one café 😀 one"
WORDS = ("▁one", "▁caf", "é", "▁", "one", "caf")


def metaspace() -> tokenizers.Tokenizer:
    """As Llama 2's: words with their space, bytes for what is no word, and a decoder that drops the first space."""
    vocab = {"<unk>": 0, "<s>": 1} | {f"<0x{byte:02X}>": byte + 2 for byte in range(256)}
    letters = sorted({letter for word in WORDS for letter in word} | set("▁onecaf"))
    for piece in (*letters, *WORDS):
        vocab.setdefault(piece, len(vocab))
    merges = [("o", "n"), ("on", "e"), ("▁", "one"), ("c", "a"), ("ca", "f"), ("▁", "caf")]
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.add_special_tokens(["<s>"])
    return inner


def byte_level() -> tokenizers.Tokenizer:
    """As GPT-2's: every byte is a letter, and a word has its space as `Ġ`."""
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("o", "n"), ("on", "e"), ("Ġ", "one")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|end of it|>"])
    return inner


@pytest.mark.parametrize(("inner", "lead"), [(metaspace(), " "), (byte_level(), "")], ids=["metaspace", "byte level"])
def test_joined_they_are_the_text(inner: tokenizers.Tokenizer, lead: str) -> None:
    ids = inner.encode(TEXT).ids
    found = [Pieces(inner).bytes_of(token_id) for token_id in ids]
    assert b"".join(found).decode() == lead + TEXT
    assert inner.decode(ids) == TEXT
    assert " one" in [one.decode(errors="replace") for one in found], "the space is the token's own"
    parts = [one for one in found if "😀".encode().find(one) >= 0 and len(one) == 1]
    assert b"".join(parts) == "😀".encode(), "a character of four tokens is told byte by byte"


def test_special_tokens_and_what_is_none_have_their_names_and_nothing() -> None:
    for inner, name in ((metaspace(), "<s>"), (byte_level(), "<|end of it|>")):
        pieces, token_id = Pieces(inner), inner.token_to_id(name)
        assert token_id is not None
        assert pieces.bytes_of(token_id) == name.encode()
        assert pieces.bytes_of(10**6) == b""


def test_a_decoder_that_is_not_known_is_asked() -> None:
    inner = tokenizers.Tokenizer(models.WordPiece({"play": 0, "##ing": 1, "[UNK]": 2}, unk_token="[UNK]"))
    inner.decoder = decoders.WordPiece()
    assert [Pieces(inner).bytes_of(i) for i in (0, 1)] == [b"play", inner.decode([1]).encode()]
