"""One streamed call of an OpenAI server, and when each of its tokens came.

Any server that speaks OpenAI's API will do. How many tokens a chunk carries is asked for by vLLM's
`continuous_usage_stats`, since with speculative decoding several come together; a server that does not know the field
is asked without it, and then a chunk counts as one gap, as in vLLM's own benchmark.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

from bench.serving.datasets import Ask
from paceline.errors import Unavailable

# What a stream may be asked for, the best first; a server takes the first that it does not refuse.
STREAM_OPTIONS: Sequence[dict[str, bool] | None] = (
    {"include_usage": True, "continuous_usage_stats": True},
    {"include_usage": True},
    None,
)
MAX_ERROR = 500  # characters of a server's refusal that are kept


@dataclass(slots=True)
class Outcome:
    """What became of one call. Times on the clock of `time.perf_counter`, in seconds."""

    started_s: float
    arrivals: list[tuple[float, int]] = field(default_factory=list)  # when, and how many tokens by then
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    text: str = ""
    error: str = ""  # empty if all went well
    metrics: dict[str, Any] = field(default_factory=dict)  # what a Paceline server says of the request

    @property
    def ttft_s(self) -> float:
        return self.arrivals[0][0] - self.started_s

    @property
    def ended_s(self) -> float:
        """When the last token came."""
        return self.arrivals[-1][0] if self.arrivals else self.started_s

    @property
    def e2el_s(self) -> float:
        return self.ended_s - self.started_s

    @property
    def tpot_s(self) -> float | None:
        """The mean time a token after the first; None of a single one."""
        rest = self.num_output_tokens - 1
        return (self.e2el_s - self.ttft_s) / rest if rest > 0 else None

    @property
    def itls_s(self) -> list[float]:
        """The gap before every token but the first; tokens that come together share the time since the last evenly.

        Example: one token at 1 s, then three at 1.3 s: 0.1, 0.1, 0.1. Their sum is the time from first to last.
        """
        gaps: list[float] = []
        last_s, known = self.arrivals[0][0], 1
        for at_s, count in self.arrivals:
            gaps += [(at_s - last_s) / (count - known)] * (count - known) if count > known else []
            last_s, known = at_s, max(known, count)
        return gaps


@dataclass(frozen=True, slots=True)
class Caller:
    """Makes calls of one kind."""

    http: httpx2.AsyncClient
    endpoint: str
    model: str
    more: Mapping[str, Any]  # further fields of every body
    stream_options: dict[str, bool] | None
    id_prefix: str | None = None  # of every call's X-Request-Id
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    async def call(self, ask: Ask, **more: Any) -> Outcome:
        """Make one call and read all of it. What goes wrong is in the outcome."""
        headers = {} if self.id_prefix is None else {"x-request-id": f"{self.id_prefix}{next(self._numbers)}"}
        outcome = Outcome(time.perf_counter())
        try:
            body = self._body(ask, more)
            async with self.http.stream("POST", self.endpoint, json=body, headers=headers) as response:
                if response.status_code != 200:
                    raise Unavailable(f"{response.status_code}: {(await response.aread()).decode(errors='replace')}")
                async for line in response.aiter_lines():
                    if line.startswith("data:") and (data := line[5:].strip()) != "[DONE]":
                        self._take(outcome, json.loads(data))
        except (httpx2.HTTPError, Unavailable, ValueError) as error:
            outcome.error = (str(error) or type(error).__name__)[:MAX_ERROR]
        if not (outcome.arrivals or outcome.error):
            outcome.error = "the server sent no token"
        return outcome

    @property
    def _is_chat(self) -> bool:
        return self.endpoint.endswith("chat/completions")

    def _body(self, ask: Ask, more: Mapping[str, Any]) -> dict[str, Any]:
        prompt = ask.prompt if isinstance(ask.prompt, str) else list(ask.prompt)
        what = {"messages": [{"role": "user", "content": prompt}]} if self._is_chat else {"prompt": prompt}
        body = {"model": self.model, "max_tokens": ask.max_tokens, "stream": True, **what, **self.more, **more}
        return body | ({"stream_options": self.stream_options} if self.stream_options else {})

    def _take(self, outcome: Outcome, chunk: dict[str, Any]) -> None:
        now_s = time.perf_counter()
        if error := chunk.get("error"):
            raise Unavailable(str(error.get("message") if isinstance(error, dict) else error))
        outcome.metrics = chunk.get("metrics") or outcome.metrics
        text = "".join(_text(choice) for choice in chunk.get("choices") or ())
        outcome.text += text
        if usage := chunk.get("usage"):
            outcome.num_prompt_tokens = usage.get("prompt_tokens") or 0
            outcome.num_output_tokens = usage.get("completion_tokens") or 0
        is_counted = bool(self.stream_options and self.stream_options.get("continuous_usage_stats"))
        if not chunk.get("choices"):
            return  # the usage by itself
        known = outcome.arrivals[-1][1] if outcome.arrivals else 0
        count = outcome.num_output_tokens if is_counted else known + bool(text)
        if count > known:
            outcome.arrivals.append((now_s, count))
        if not usage:
            outcome.num_output_tokens = max(outcome.num_output_tokens, count)


def _text(choice: Mapping[str, Any]) -> str:
    """Of a completion's chunk, or of a chat's."""
    text: str = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
    return text


async def agree(http: httpx2.AsyncClient, endpoint: str, model: str, more: Mapping[str, Any], ask: Ask) -> Caller:
    """A caller that asks for as much as the server knows, tried out with `ask`. Raises Unavailable with its refusal."""
    outcome = Outcome(0.0)
    for stream_options in STREAM_OPTIONS:
        caller = Caller(http, endpoint, model, more, stream_options)
        outcome = await caller.call(ask)
        if not outcome.error:
            return caller
        if "stream_options" not in outcome.error and "usage" not in outcome.error:
            break
    raise Unavailable(f"a first request failed: {outcome.error}")
