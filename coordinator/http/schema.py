"""What clients may send, field by field. Strict: a wrong type is an error, and so is a field that nobody would read.

OpenAI's names and defaults, then vLLM's extra ones, then `speculative`, which is ours. Ranges are not checked here but
where every face has them checked: `paceline.types.SamplingParams` and `coordinator.service`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from coordinator.http.unserved import without_what_asks_for_nothing
from coordinator.service import GenerationRequest
from paceline.errors import InvalidInput
from paceline.length_policy import LengthPolicy
from paceline.types import Mode, Rule, SamplingParams, Tokens, member

MAX_CHOICES = 128  # of one call, over all its prompts; each is a request of its own
_ROLES = ("system", "developer", "user", "assistant")


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class CallBody(Body):
    """A whole one that OpenAI's or vLLM's clients send, with fields of theirs that may ask for nothing."""

    @model_validator(mode="before")
    @classmethod
    def _without_what_asks_for_nothing(cls, body: Any) -> Any:
        """Raises InvalidInput for what is not served here and asks for something."""
        return without_what_asks_for_nothing(body) if isinstance(body, dict) else body


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None
    continuous_usage_stats: bool | None = None  # vLLM's: every chunk says how many tokens there are by then


class Speculative(Body):
    """How to draft for this request; nothing here changes the output's distribution."""

    mode: str | None = None  # off, sequential, pearl, branch; auto = the server's choice
    rule: str | None = None
    length_policy: str | None = None  # as on the command line, for example "svip:threshold_nats=0.6"
    max_length: int | None = None  # tokens in a draft at most
    window: int | None = None  # drafts unverified at a time

    @property
    def policy(self) -> LengthPolicy | None:
        """The policy asked for; None = the server's. Raises InvalidInput."""
        return None if self.length_policy is None else LengthPolicy.parse(self.length_policy)


class SamplingBody(CallBody):
    """What every way to generate has in common."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    best_of: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None  # of OpenAI's accounting; nothing hangs on it
    metadata: dict[str, str] | None = None  # likewise, and so the next two
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool = False
    stop_token_ids: list[int] | None = None
    min_tokens: int | None = None
    skip_special_tokens: bool = True
    request_id: str | None = None

    speculative: Speculative | None = None

    @property
    def num_choices(self) -> int:
        """Outputs a prompt. Raises InvalidInput."""
        n = 1 if self.n is None else self.n
        if not 1 <= n <= MAX_CHOICES:
            raise InvalidInput("n", n, f"must be from 1 to {MAX_CHOICES}")
        if self.best_of not in (None, n):
            raise InvalidInput(
                "best_of", self.best_of, "is not supported: nothing is generated to be thrown away; use n"
            )
        return n

    @property
    def include_usage(self) -> bool:
        """Raises InvalidInput."""
        if self.stream_options and not self.stream:
            raise InvalidInput("stream_options", "…", 'needs "stream": true')
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def has_continuous_usage(self) -> bool:
        """Whether every chunk says how many tokens there are by then; as with vLLM only together with include_usage."""
        return self.include_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)

    def request(self, prompt: str | Tokens, defaults: Mapping[str, Any], **more: Any) -> GenerationRequest:
        """What is asked of the service for one prompt. Raises InvalidInput.

        `defaults` are of the sampling law, `more` further fields of what is asked.
        """
        how = self.speculative or Speculative()
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        given = {
            "prompt": prompt,
            "max_tokens": self.max_tokens,
            "sampling": self._sampling(defaults, more.pop("logprobs", False), more.pop("top_logprobs", 0)),
            "stop": stop,
            "ignore_eos": self.ignore_eos,
            "mode": member(Mode, "speculative.mode", how.mode),
            "rule": member(Rule, "speculative.rule", how.rule),
            "policy": how.policy,
            "max_draft_length": how.max_length,
            "window": how.window or 0,
            "request_id": self.request_id or "",
            "skip_special_tokens": self.skip_special_tokens,
        }
        return GenerationRequest(**(given | more))

    def _sampling(self, defaults: Mapping[str, Any], logprobs: bool, top_logprobs: int) -> SamplingParams:
        names = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
        given = {name: value for name in (*names, "min_tokens") if (value := getattr(self, name)) is not None}
        if self.top_k is not None:
            given["top_k"] = 0 if self.top_k == -1 else self.top_k  # vLLM writes -1 for off
        return SamplingParams(
            **(dict(defaults) | given),
            seed=self.seed,
            logit_bias=tuple(sorted(_biases(self.logit_bias or {}))),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            logprobs=logprobs,
            top_logprobs=top_logprobs,
        )


class CompletionBody(SamplingBody):
    """`POST /v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = None
    add_special_tokens: bool = True

    @property
    def prompts(self) -> list[str | Tokens]:
        """Each prompt by itself. Raises InvalidInput."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        many = [one if isinstance(one, str) else tuple(one) for one in self.prompt if not isinstance(one, int)]
        prompts: list[str | Tokens] = [*many] if many else [tuple(one for one in self.prompt if isinstance(one, int))]
        if len(prompts) * self.num_choices > MAX_CHOICES:
            raise InvalidInput("prompt", len(prompts), f"prompts times n must be at most {MAX_CHOICES}")
        return prompts


class TextPart(Body):
    type: Literal["text"]
    text: str


class Message(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    name: str | None = None

    # What an assistant's message has when it is sent back as it came.
    refusal: None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: list[Any] | None = None
    reasoning_content: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_tools(cls, message: Any) -> Any:
        """Raises InvalidInput for the message of a tool, or that calls one; an empty list of calls is none."""
        role, calls = (message.get("role"), message.get("tool_calls")) if isinstance(message, dict) else (None, None)
        if role in ("tool", "function") or calls:
            what = f"a message with {'tool_calls' if calls else f'the role {role}'}"
            raise InvalidInput(
                "messages", what, f"is not supported: tools are not served; roles are {', '.join(_ROLES)}"
            )
        return message

    def plain(self) -> dict[str, Any]:
        """What the template sees."""
        parts = self.content if isinstance(self.content, list) else None
        content = "".join(part.text for part in parts) if parts is not None else self.content or ""
        more = {key: value for key in ("name", "reasoning_content") if (value := getattr(self, key)) is not None}
        return {"role": self.role, "content": content, **more}


class ChatBody(SamplingBody):
    """`POST /v1/chat/completions`."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_special_tokens: bool = False  # beside those that the template writes
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None


class PlaygroundBody(SamplingBody):
    """`POST /paceline/generate`: a prompt, or messages for the chat template."""

    prompt: str | None = None
    messages: list[Message] | None = None


class TokenizeBody(CallBody):
    """`POST /tokenize`: a prompt, or messages for the chat template."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(CallBody):
    """`POST /detokenize`."""

    model: str | None = None
    tokens: list[int]


class AbortBody(Body):
    """`POST /abort_request`."""

    request_id: str


def _biases(given: Mapping[str, float]) -> list[tuple[int, float]]:
    for key in given:
        if not re.fullmatch(r"\d{1,10}", key):
            raise InvalidInput("logit_bias", key, 'the keys are token ids, such as "42"')
    return [(int(key), float(value)) for key, value in given.items()]


KNOWN_FIELDS = sorted({*CompletionBody.model_fields, *ChatBody.model_fields, *Speculative.model_fields})
