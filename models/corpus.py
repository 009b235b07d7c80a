"""The text that the demo pair learns: reading it, its tokenizer, and packing it into rows.

A file is JSON Lines. Every line is an object with "question" and "answer", or with "text". One document reads

    Question: …
    Answer: …<|endoftext|>

with GSM8K's calculator marks (`48/2 = <<48/2=24>>24`) removed. Rows hold whole documents, because a serving
request always starts at the beginning of one: cutting a stream at fixed places would teach half of the rows to
continue answers whose question they cannot see.
"""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
MARKS = re.compile(r"<<.*?>>")
# The label of a position that is not learnt: the value that torch's cross_entropy ignores.
IGNORED = -100


class InputError(ValueError):
    """The caller's input cannot be used; the message names the field, its value and the fix."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document in two halves: what a client would send, and what the model is to write."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """A document as token ids; the first `prompt_length` of them are the prompt. Ends in end-of-text."""

    token_ids: tuple[int, ...]
    prompt_length: int


@dataclass(frozen=True, slots=True)
class Rows:
    """Packed documents: `inputs`, `labels` int64 and `is_completion` bool, all [num_rows, length].

    `labels` is `inputs` moved by one, and IGNORED where a row is padding. `is_completion` says of each label
    whether the model writes it when it serves (answers and their end-of-text).
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    is_completion: torch.Tensor

    def take(self, indices: torch.Tensor) -> "Rows":
        return Rows(self.inputs[indices], self.labels[indices], self.is_completion[indices])

    def folded(self, factor: int) -> "Rows":
        """The same tokens in rows that are `factor` times as long; the number of rows must divide."""
        num_rows = self.inputs.shape[0] // factor
        return Rows(
            self.inputs.reshape(num_rows, -1),
            self.labels.reshape(num_rows, -1),
            self.is_completion.reshape(num_rows, -1),
        )


def prompt_of(question: str) -> str:
    return f"Question: {question.strip()}\nAnswer:"


def without_marks(answer: str) -> str:
    return MARKS.sub("", answer)


def read_documents(path: Path) -> list[Document]:
    """The documents of a JSONL file, in its order. Raises InputError with the line number on a bad line."""
    try:
        # Not splitlines(): it also cuts at U+2028, which JSON allows inside a string.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--data {path}: cannot be read ({error}); give a JSONL file in UTF-8") from error
    documents = [_document(line, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if not documents:
        raise InputError(f"--data {path}: holds no document; every line must be one JSON object")
    return documents


def _document(line: str, where: str) -> Document:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: is not JSON ({error.msg}): {line[:60]!r}; write one object per line") from error
    if not isinstance(record, dict):
        raise InputError(f"{where}: is {type(record).__name__}, not an object; write one object per line")
    if "question" in record and "answer" in record:
        question, answer = _text(record, "question", where), _text(record, "answer", where)
        return Document(prompt_of(question), " " + without_marks(answer).strip())
    if "text" in record:
        return Document("", without_marks(_text(record, "text", where)).strip())
    fields = ", ".join(sorted(record)) or "none"
    raise InputError(f'{where}: has the fields {fields}; it needs "question" and "answer", or "text"')


def _text(record: dict[str, object], field: str, where: str) -> str:
    value = record[field]
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: field {field!r} is {value!r}; it must be text that is not empty")
    return value


def train_tokenizer(documents: Sequence[Document], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text has an encoding, and every digit is a token of its own.

    Single digits keep arithmetic visible to a small model: 48 and 49 share their first token.
    """
    tokenizer = Tokenizer(models.BPE())
    # A blank before a digit joins the token before it or stands alone, but never the digit.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((d.prompt + d.completion for d in documents), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def encode(documents: Sequence[Document], tokenizer: Tokenizer) -> list[Encoded]:
    """Token ids of every document. Prompt and completion are encoded apart, as serving encodes them."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    if end is None:
        raise InputError(f"the tokenizer has no token {END_OF_TEXT!r}; make one with the command tokenizer")
    prompts = tokenizer.encode_batch([d.prompt for d in documents], add_special_tokens=False)
    completions = tokenizer.encode_batch([d.completion for d in documents], add_special_tokens=False)
    return [
        Encoded((*prompt.ids, *completion.ids, end), len(prompt.ids))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def pack(documents: Sequence[Encoded], *, length: int, pad_id: int, seed: int) -> Rows:
    """All documents, shuffled by `seed`, in as few rows of `length` as first fit finds.

    Documents longer than a row are cut. Of GSM8K, about 5 % of the places stay empty at length 512.
    """
    order = list(range(len(documents)))
    random.Random(seed).shuffle(order)
    rows: list[list[Encoded]] = []
    room: list[int] = []
    first_open = 0
    for index in order:
        document = documents[index]
        document = Encoded(document.token_ids[:length], document.prompt_length)
        size = len(document.token_ids)
        place = next((i for i in range(first_open, len(rows)) if room[i] >= size), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(length)
        rows[place].append(document)
        room[place] -= size
        # Rows with less room than almost any document needs are not looked at again.
        while first_open < len(rows) and room[first_open] < min(48, length // 8):
            first_open += 1
    packed = [_row(row, length, pad_id) for row in rows]
    random.Random(seed + 1).shuffle(packed)
    inputs, labels, is_completion = (torch.tensor(part) for part in zip(*packed, strict=True))
    return Rows(inputs, labels, is_completion)


def _row(documents: Sequence[Encoded], length: int, pad_id: int) -> tuple[list[int], list[int], list[bool]]:
    token_ids: list[int] = []
    written: list[bool] = []
    for document in documents:
        token_ids.extend(document.token_ids)
        written.extend(i >= document.prompt_length for i in range(len(document.token_ids)))
    empty = length - len(token_ids)
    inputs = token_ids + [pad_id] * empty
    labels = token_ids[1:] + [IGNORED] * (empty + 1)
    return inputs, labels, written[1:] + [False] * (empty + 1)
