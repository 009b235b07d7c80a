"""Log-probabilities as OpenAI's two APIs write them. There are those of the output's own tokens only."""

from __future__ import annotations

from typing import Any

from coordinator.service import Reply
from paceline.errors import InvalidInput
from paceline.tokenizer import Tokenizer

LEAST = -9999.0  # JSON has no infinity; vLLM writes the same


def refuse_others(name: str, num_others: int | None) -> None:
    """Raises InvalidInput if tokens that were not chosen are asked for."""
    if num_others:
        fix = "must be 0: only the log-probability of the token itself is known, not those of others"
        raise InvalidInput(name, num_others, fix)


def of_completion(reply: Reply, tokenizer: Tokenizer, offset: int) -> dict[str, Any]:
    """`offset`: characters of text before this reply's."""
    return {
        "tokens": [_text(tokenizer, token_id) for token_id in reply.token_ids],
        "token_logprobs": [max(logprob, LEAST) for logprob in reply.logprobs],
        "top_logprobs": None,
        "text_offset": [offset + sum(reply.text_lengths[:i]) for i in range(len(reply.token_ids))],
    }


def of_chat(reply: Reply, tokenizer: Tokenizer) -> dict[str, Any]:
    texts = [_text(tokenizer, token_id) for token_id in reply.token_ids]
    content = [
        {"token": text, "logprob": max(logprob, LEAST), "bytes": _bytes(text), "top_logprobs": []}
        for text, logprob in zip(texts, reply.logprobs, strict=True)
    ]
    return {"content": content, "refusal": None}


def _text(tokenizer: Tokenizer, token_id: int) -> str:
    """The token by itself; U+FFFD where it is a part of a character."""
    return tokenizer.decode((token_id,), skip_special_tokens=False)


def _bytes(text: str) -> list[int] | None:
    """None where the text does not tell them."""
    return None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())
