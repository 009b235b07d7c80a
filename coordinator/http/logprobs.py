"""Log-probabilities as OpenAI's two APIs write them: of the output's own tokens, and of the likeliest beside each."""

from __future__ import annotations

from typing import Any

from coordinator.service import Reply
from paceline.tokenizer import Tokenizer

LEAST = -9999.0  # JSON has no infinity; vLLM writes the same


def of_completion(reply: Reply, tokenizer: Tokenizer, offset: int) -> dict[str, Any]:
    """`offset`: characters of text before this reply's. The token itself stands among the likeliest, as at OpenAI."""
    texts = [_text(tokenizer, token_id) for token_id in reply.token_ids]
    own = [max(logprob, LEAST) for logprob in reply.logprobs]
    likeliest = [
        {_text(tokenizer, token_id): max(logprob, LEAST) for token_id, logprob in _pairs(reply, i)} | {texts[i]: own[i]}
        for i in range(len(reply.top_logprobs))
    ]
    return {
        "tokens": texts,
        "token_logprobs": own,
        "top_logprobs": likeliest or None,
        "text_offset": [offset + sum(reply.text_lengths[:i]) for i in range(len(reply.token_ids))],
    }


def of_chat(reply: Reply, tokenizer: Tokenizer) -> dict[str, Any]:
    content = [
        _entry(tokenizer, token_id, logprob) | {"top_logprobs": [_entry(tokenizer, *pair) for pair in _pairs(reply, i)]}
        for i, (token_id, logprob) in enumerate(zip(reply.token_ids, reply.logprobs, strict=True))
    ]
    return {"content": content, "refusal": None}


def _pairs(reply: Reply, at: int) -> list[tuple[int, float]]:
    """The likeliest tokens at one place, if they were asked for."""
    if not reply.top_logprobs:
        return []
    top = reply.top_logprobs[at]
    return list(zip(top.token_ids, top.logprobs, strict=True))


def _entry(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    found = tokenizer.bytes_of(token_id)
    return {"token": _readable(found), "logprob": max(logprob, LEAST), "bytes": list(found)}


def _text(tokenizer: Tokenizer, token_id: int) -> str:
    """The token as it stands in the text; U+FFFD where it is a part of a character."""
    return _readable(tokenizer.bytes_of(token_id))


def _readable(found: bytes) -> str:
    return found.decode(errors="replace")
