"""What every face does with a request, once: check it, tokenize it, run it, and make text of what comes of it.

A face (`coordinator/api.py` for gRPC, `coordinator/http` for HTTP) reads its own wire into a `GenerationRequest` and
writes `Reply`s to it; between the two it does nothing. So both refuse the same things in the same words.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from coordinator.core.commands import Emit, Fail, Finish
from coordinator.core.ends import finish_reason
from coordinator.core.events import Ended, RequestSpec
from coordinator.core.metrics import RequestMetrics
from coordinator.server import ClientQueue, Coordinator, Span
from paceline.errors import InvalidInput
from paceline.length_policy import LengthPolicy
from paceline.text import Piece, TextStream
from paceline.tokenizer import Tokenizer
from paceline.types import FinishReason, Mode, Role, Rule, SamplingParams, Source, Tokens, TopLogprobs

MAX_STOP_STRINGS, MAX_STOP_LENGTH = 16, 256
MAX_WINDOW = 64
MAX_REQUEST_ID = 128
MAX_CHARACTERS_A_TOKEN = 64  # of a text; tokenizing one that can never fit would hold up everybody else
# Tokenizing a longer text takes milliseconds, in which no draft and no verdict would pass; a thread does it.
MAX_INLINE_CHARS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What a client asks for, in whatever wire it came; not checked yet. `None` and 0 are the coordinator's choice."""

    prompt: str | Tokens
    max_tokens: int | None = None  # None = as many as the context leaves room for
    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=0))
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    mode: Mode | None = None
    rule: Rule | None = None
    policy: LengthPolicy | None = None
    max_draft_length: int | None = None  # tokens in a draft, whatever the policy; None = as the policy has it
    window: int = 0
    request_id: str = ""
    add_special_tokens: bool = True  # to the prompt, such as a beginning of sequence
    skip_special_tokens: bool = True  # in the text that comes out
    num_siblings: int = 1  # outputs of the same prompt, in the same call, this one included
    sibling_of: str = ""  # the first of them; empty = itself
    call_id: str = ""  # the first request of the same call, whatever its prompt; empty = itself
    client: str = ""  # whose it is: the name of the API key; empty = nobody's in particular
    resumed: Tokens = ()  # output that the client has already, from another coordinator
    caller: Mapping[str, str] = field(default_factory=dict)  # the trace that it belongs to, as W3C's headers say


@dataclass(frozen=True, slots=True)
class Reply:
    """What became known since the last reply. Only the last one has a finish reason and metrics."""

    text: str = ""
    token_ids: Tokens = ()
    sources: tuple[Source, ...] = ()  # one a token
    text_lengths: tuple[int, ...] = ()  # characters of text that each token let go
    logprobs: tuple[float, ...] = ()  # one a token if asked for, else none
    top_logprobs: tuple[TopLogprobs, ...] = ()  # likewise
    spans: tuple[Span, ...] = ()  # of a watched request: work that the workers have reported
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None  # the stop string or the request's own stop token that ended it
    metrics: RequestMetrics | None = None


class Generation:
    """A request under way: `read` until there is no more."""

    def __init__(
        self,
        spec: RequestSpec,
        text: TextStream,
        queue: ClientQueue,
        feed: Callable[[Ended], None],
        ended: FinishReason | None = None,
        stops: frozenset[int] = frozenset(),
    ) -> None:
        """`ended`: why there is nothing to come but the last reply, without metrics. `stops`: tokens to be told of."""
        self.spec = spec
        self._stops = stops
        self._last = spec.resumed[-1:]  # token
        self._text = text
        self._queue = queue
        self._feed = feed
        self._spans: list[Span] = []
        self._is_stopped = False  # by a stop string
        self._is_over = False
        self._ended = ended

    async def read(self) -> Reply | None:
        """The next reply, None after the last one. Raises what the request failed of."""
        if self._ended and not self._is_over:
            self._is_over = True
            return Reply(text=self._text.finish(), finish_reason=self._ended, stop_reason=self._stop_reason)
        while not self._is_over:
            match await self._queue.get():
                case Span() as span:
                    self._spans.append(span)
                case Emit() as emit if not self._is_stopped:
                    return self._emitted(emit)
                case Finish(_, reason, metrics):
                    self._is_over = True
                    text = self._text.finish()
                    # A stop string may be complete with the very token that makes the output long enough.
                    reason = FinishReason.STOP if self._is_stopped else reason
                    why = self._stop_reason if reason is FinishReason.STOP else None
                    return Reply(
                        text=text, spans=self._take_spans(), finish_reason=reason, stop_reason=why, metrics=metrics
                    )
                case Fail(_, error):
                    raise error
        return None

    def _emitted(self, emit: Emit) -> Reply:
        piece = _push(self._text, emit.token_ids, self.spec)
        if piece.stopped:
            self._is_stopped = True
            self._feed(Ended(self.spec.request_id, FinishReason.STOP))
        count = piece.num_tokens
        self._last = emit.token_ids[count - 1 : count]
        return Reply(
            text=piece.text,
            token_ids=emit.token_ids[:count],
            sources=emit.sources[:count],
            text_lengths=piece.lengths,
            logprobs=emit.logprobs[:count],
            top_logprobs=emit.top_logprobs[:count],
            spans=self._take_spans(),
        )

    @property
    def _stop_reason(self) -> str | int | None:
        """As vLLM has it: None where the model itself has ended its output."""
        if self._text.stop_string is not None:
            return self._text.stop_string
        return next((token for token in self._last if token in self._stops), None)

    def _take_spans(self) -> tuple[Span, ...]:
        spans, self._spans = tuple(self._spans), []
        return spans


class Service:
    """See the top of the file."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.coordinator = coordinator

    @property
    def tokenizer(self) -> Tokenizer:
        return self.coordinator.tokenizer

    @property
    def max_model_len(self) -> int:
        """Positions that a request can have: of the tokenizer's model, and of every verifier that is here and up."""
        links = self.coordinator.links.values()
        lengths = [link.info.max_model_len for link in links if link.is_up and link.info.role is Role.VERIFIER]
        return min([*lengths, self.tokenizer.max_model_len])

    @contextlib.asynccontextmanager
    async def generation(
        self, request: GenerationRequest, spec: RequestSpec, *, watch: bool = False
    ) -> AsyncIterator[Generation]:
        """Run what `admit` made of `request`. Leaving the context early cancels it. `watch`: replies carry spans."""
        decodes = self.tokenizer if request.skip_special_tokens else self.tokenizer.with_special_tokens()
        text = TextStream(decodes, spec.token_ids, request.stop, spec.sampling.min_tokens)
        feed, eos = self.coordinator.feed, () if request.ignore_eos else self.tokenizer.eos_token_ids
        stops = frozenset(request.sampling.stop_token_ids) - set(eos)
        if spec.resumed:  # the client has had this text; twenty thousand tokens of it take a second
            with self.coordinator.place(spec.client):
                await asyncio.to_thread(_push, text, spec.resumed, spec)
        if reason := _ended(spec, text):
            yield Generation(spec, text, ClientQueue(), feed, reason, stops)
            return
        if telemetry := self.coordinator.telemetry:
            telemetry.expect(spec.request_id, request.caller)
        with self.coordinator.generation(spec, watch=watch) as queue:
            yield Generation(spec, text, queue, feed, stops=stops)

    async def admit(self, request: GenerationRequest) -> RequestSpec:
        """The request with every field checked and every default filled in. Raises InvalidInput.

        What would be turned away is turned away first, since tokenizing it takes time from all others. Raises
        Overloaded and Unavailable then.
        """
        config = self.coordinator.config
        self.coordinator.check_room(request.client)
        if request.request_id and not is_request_id(request.request_id):
            fix = f"must be 1 to {MAX_REQUEST_ID} visible ASCII characters; choose another, or none"
            raise InvalidInput("request_id", request.request_id, fix)
        _check_stop(request.stop)
        if not 0 <= request.window <= MAX_WINDOW:
            raise InvalidInput("window", request.window, f"must be at most {MAX_WINDOW} drafts (0 = the server's)")
        if request.max_draft_length is not None and request.max_draft_length < 1:
            fix = 'must be at least 1; for no drafts: mode "off"'
            raise InvalidInput("max_draft_length", request.max_draft_length, fix)
        if len(request.resumed) > self.max_model_len:
            fix = f"are more than the context's {self.max_model_len}"
            raise InvalidInput("resume_token_ids", f"{len(request.resumed)} tokens", fix)
        with self.coordinator.place(request.client):  # the others of its key may come while a thread is at its prompt
            token_ids = await self._prompt(request)
        max_tokens = self._max_tokens(token_ids, request.max_tokens)
        sampling = self._with_stops(request, max_tokens)
        return RequestSpec(
            request_id=request.request_id or uuid.uuid4().hex,
            token_ids=token_ids,
            max_tokens=max_tokens,
            sampling=sampling,
            seed=secrets.randbits(63) if sampling.seed is None else sampling.seed,
            draft_seed=secrets.randbits(63),
            stop_token_ids=sampling.stop_token_ids,
            mode=request.mode or config.mode,
            rule=request.rule or config.rule,
            policy=request.policy or config.policy,
            max_draft_length=request.max_draft_length,
            window=request.window or config.window,
            resumed=self._resumed(request, max_tokens),
            client=request.client,
            num_siblings=request.num_siblings,
            sibling_of=request.sibling_of,
            call_id=request.call_id,
        )

    async def tokenize(self, text: str, *, client: str = "", add_special_tokens: bool = True) -> Tokens:
        """Token ids of a client's text. Raises InvalidInput if it is no Unicode text, or can fit no context.

        Raises Overloaded if too much of this client's waits for it already.
        """
        max_characters = MAX_CHARACTERS_A_TOKEN * self.max_model_len
        if len(text) > max_characters:
            fix = f"has {len(text)} characters; at most {max_characters} can fit the context: shorten it"
            raise InvalidInput("prompt", text, fix)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidInput("prompt", text, "holds half of a surrogate pair, which is no character") from None
        if len(text) <= MAX_INLINE_CHARS:
            return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        with self.coordinator.texts.hold(client, len(text)):
            return await asyncio.to_thread(self.tokenizer.encode, text, add_special_tokens=add_special_tokens)

    async def _prompt(self, request: GenerationRequest) -> Tokens:
        if isinstance(request.prompt, str):
            token_ids = await self.tokenize(
                request.prompt, client=request.client, add_special_tokens=request.add_special_tokens
            )
        else:
            token_ids = request.prompt
            self.check_token_ids("prompt_token_ids", token_ids)
        if not token_ids:
            raise InvalidInput("prompt", request.prompt, "is empty; give at least one token")
        return token_ids

    def _resumed(self, request: GenerationRequest, max_tokens: int) -> Tokens:
        """The output that the client has already."""
        if len(request.resumed) > max_tokens:
            fix = f"are more than max_tokens={max_tokens}"
            raise InvalidInput("resume_token_ids", f"{len(request.resumed)} tokens", fix)
        self.check_token_ids("resume_token_ids", request.resumed)
        return request.resumed

    def check_token_ids(self, name: str, token_ids: Sequence[int]) -> None:
        """Raises InvalidInput for ids that are none of the vocabulary."""
        vocab_size = self.tokenizer.vocab_size
        for token_id in (min(token_ids, default=0), max(token_ids, default=0)):
            if not 0 <= token_id < vocab_size:
                raise InvalidInput(name, token_id, f"is not below the vocabulary's size {vocab_size}")

    def _with_stops(self, request: GenerationRequest, max_tokens: int) -> SamplingParams:
        """The law with all tokens that end the output: the request's own and the model's."""
        sampling = request.sampling
        self.check_token_ids("logit_bias", [token_id for token_id, _ in sampling.logit_bias])
        self.check_token_ids("stop_token_ids", sampling.stop_token_ids)
        if sampling.min_tokens > max_tokens:
            fix = f"must be at most max_tokens, which is {max_tokens}"
            raise InvalidInput("min_tokens", sampling.min_tokens, fix)
        eos_token_ids = () if request.ignore_eos else self.tokenizer.eos_token_ids
        return replace(sampling, stop_token_ids=tuple(dict.fromkeys((*eos_token_ids, *sampling.stop_token_ids))))

    def _max_tokens(self, token_ids: Tokens, wanted: int | None) -> int:
        """How many tokens at most: those wanted, or all that the context leaves room for."""
        room = self.max_model_len - len(token_ids)
        if wanted is not None and wanted < 1:
            raise InvalidInput("max_tokens", wanted, "must be at least 1")
        what = f"the prompt has {len(token_ids)} tokens and the context {self.max_model_len}"
        if room < 1:
            fix = f"{what}: shorten it to {self.max_model_len - 1} at most"
            raise InvalidInput("prompt", f"{len(token_ids)} tokens", fix)
        if wanted is not None and room < wanted:
            raise InvalidInput("max_tokens", wanted, f"{what}: ask for at most {room}, or shorten the prompt")
        return wanted or room


def is_request_id(text: str, max_length: int = MAX_REQUEST_ID) -> bool:
    """Whether it may name a request: only visible ASCII is at home in a header, in a log's line and on every wire."""
    return len(text) <= max_length and re.fullmatch(r"[!-~]+", text) is not None


def _push(text: TextStream, token_ids: Tokens, spec: RequestSpec) -> Piece:
    """The text of `token_ids`, in which a token that ends the output has no part."""
    if token_ids[-1] not in spec.stop_token_ids:
        return text.push(token_ids)
    piece = text.push(token_ids[:-1])
    return piece if piece.stopped else replace(piece, lengths=(*piece.lengths, 0))


def _ended(spec: RequestSpec, text: TextStream) -> FinishReason | None:
    """Why the output that a client resumes has ended already, its last message having been lost; None if it has not."""
    if text.stopped:
        return FinishReason.STOP
    return finish_reason(spec, (*spec.token_ids, *spec.resumed)) if spec.resumed else None


def _check_stop(stop: Sequence[str]) -> None:
    if len(stop) > MAX_STOP_STRINGS:
        raise InvalidInput("stop", len(stop), f"give at most {MAX_STOP_STRINGS} stop strings")
    for text in stop:
        if not 1 <= len(text) <= MAX_STOP_LENGTH:
            raise InvalidInput("stop", text, f"a stop string has 1 to {MAX_STOP_LENGTH} characters")
