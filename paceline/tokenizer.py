"""A model's tokenizer, read from its files by the `tokenizers` library alone.

The coordinator tokenizes and must never import torch, so transformers' AutoTokenizer is not used here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from paceline.errors import InvalidInput
from paceline.files import read_json
from paceline.pieces import Pieces
from paceline.types import Tokens

# What architectures call the number of positions they were made for.
_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


class Tokenizer:
    """Text to token ids and back. Immutable; safe to share between tasks."""

    def __init__(self, inner: tokenizers.Tokenizer, *, hash: str, eos_token_ids: Tokens, max_model_len: int) -> None:
        self._inner = inner
        self._pieces = Pieces(inner)
        self.hash = hash  # see `tokenizer_hash`
        self.eos_token_ids = eos_token_ids
        self.max_model_len = max_model_len  # positions

    @classmethod
    def load(cls, path_or_name: str | Path, revision: str | None = None) -> Tokenizer:
        """From a model's directory, or from a Hugging Face name at `revision`. Raises `InvalidInput`."""
        folder = resolve(path_or_name, revision)
        file = folder / "tokenizer.json"
        try:
            hash = tokenizer_hash(folder)
            inner = tokenizers.Tokenizer.from_file(str(file))
        except InvalidInput:
            raise
        except Exception as error:  # the library raises plain Exception
            raise InvalidInput("model", str(file), f"is no tokenizer this library reads: {error}") from None
        inner.no_truncation()  # these two are training's settings, kept in the file
        inner.no_padding()
        return cls(inner, hash=hash, eos_token_ids=_eos_token_ids(folder, inner), max_model_len=_max_len(folder))

    @property
    def vocab_size(self) -> int:
        """Token ids that text can become; a model's rows may be wider (padding)."""
        return self._inner.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> Tokens:
        """With the special tokens that the model's own tokenizer adds, such as a beginning of sequence.

        Other threads run meanwhile.
        """
        # The library lets go of the interpreter's lock for a batch only: a single text holds up every other thread.
        (encoded,) = self._inner.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return tuple(encoded.ids)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Bytes that are no UTF-8 become U+FFFD, unknown ids nothing."""
        return self._inner.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def decode_long(self, token_ids: Sequence[int]) -> str:
        """With the special tokens, and for so many that a thread does it: others run meanwhile."""
        text: str
        (text,) = self._inner.decode_batch([list(token_ids)], skip_special_tokens=False)
        return text

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """The vocabulary's own name of each token."""
        return [self._inner.id_to_token(token_id) or "" for token_id in token_ids]

    def bytes_of(self, token_id: int) -> bytes:
        """A token's bytes as they stand in the text; they may be a part of a character."""
        return self._pieces.bytes_of(token_id)

    def with_special_tokens(self) -> WithSpecialTokens:
        """What decodes special tokens too."""
        return WithSpecialTokens(self)


class WithSpecialTokens:
    """Decodes as a tokenizer does, special tokens included."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)


def resolve(path_or_name: str | Path, revision: str | None = None) -> Path:
    """The directory of a model. A name that is no path is fetched into Hugging Face's cache. Raises `InvalidInput`."""
    folder = Path(path_or_name).expanduser()
    if folder.is_dir():
        return folder
    name = str(path_or_name)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise InvalidInput("model", name, "no such directory; give a model's directory or a name like ORG/MODEL")
    import huggingface_hub  # late: a second of import that a path does not need

    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=["*.json"]))
    except Exception as error:  # network, authorisation, cache: a dozen classes, and one fix
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        fix = f"neither a directory here nor to be had from the Hugging Face hub ({reason})"
        raise InvalidInput("model", name, fix) from error


def tokenizer_hash(path: str | Path) -> str:
    """'sha256:…' over what tokens mean: vocabulary, merges and added tokens of `path`/tokenizer.json, as parsed.

    Two models whose hashes agree may draft for one another. Copies agree even if one was saved again: merges as
    'a b' or ['a', 'b'], keys in any order. Raises `InvalidInput`.
    """
    file = Path(path) / "tokenizer.json"
    parsed = read_json(file)
    model = parsed.get("model")
    if not isinstance(model, dict) or not model.get("vocab"):
        raise InvalidInput("model", str(file), "holds no vocabulary (model.vocab)")
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges") or []]
    added = sorted((entry["id"], entry["content"]) for entry in parsed.get("added_tokens") or [])
    meaning = json.dumps([model["vocab"], merges, added], sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(meaning.encode()).hexdigest()}"


def _eos_token_ids(folder: Path, inner: tokenizers.Tokenizer) -> Tokens:
    """From the first file that names any, in the order in which Hugging Face's `generate` looks."""
    for name in ("generation_config.json", "config.json"):
        given = read_json(folder / name).get("eos_token_id") if (folder / name).exists() else None
        if given is not None:
            ids = given if isinstance(given, list) else [given]
            if not all(isinstance(token_id, int) and 0 <= token_id < 2**32 for token_id in ids):
                raise InvalidInput("model", str(folder / name), f"eos_token_id={given!r} must be token ids")
            return tuple(ids)
    file = folder / "tokenizer_config.json"
    token = read_json(file).get("eos_token") if file.exists() else None
    text = token.get("content") if isinstance(token, dict) else token
    if text is None:
        return ()
    token_id = inner.token_to_id(str(text))
    if token_id is None:
        raise InvalidInput("model", str(file), f"eos_token={text!r} is not in the vocabulary")
    return (token_id,)


def _max_len(folder: Path) -> int:
    config = read_json(folder / "config.json")
    text_config = config.get("text_config")  # of models that read images too
    for place in (config, text_config if isinstance(text_config, dict) else {}):
        for key in _LENGTH_KEYS:
            if isinstance(length := place.get(key), int) and length > 0:
                return length
    raise InvalidInput("model", str(folder / "config.json"), f"names no length ({', '.join(_LENGTH_KEYS)})")
