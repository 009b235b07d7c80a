"""A coordinator whose verifier is a few lines: the production core, service and doors around a model that recites."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from coordinator.config import CoordinatorConfig
from coordinator.core.events import Branched, Verified, WorkerUp
from coordinator.server import Coordinator
from paceline.types import (
    Branch,
    Close,
    Decode,
    Draft,
    OpenVerify,
    Role,
    SamplingParams,
    Source,
    Tokens,
    TopLogprobs,
    Verdict,
    WorkerInfo,
)
from tests.deploy.conftest import write_tokenizer

CONTEXT = 128
VERIFIER = "verifier-1"
LOGPROB = -0.5
# What stands beside the first two tokens, and beside all others: x and y, x and z.
FIRST_TOP, TOP = TopLogprobs((120, 121), (-0.25, -3.0)), TopLogprobs((120, 122), (-0.25, -2.0))
END = 257  # the token


def write_model(folder: Path) -> Path:
    """What a coordinator reads of a model: a byte-level tokenizer, and the length of the context."""
    folder.mkdir(parents=True)
    write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": CONTEXT, "eos_token_id": END}))
    return folder


class Toy(Coordinator):
    """Recites `text` after any prompt, and ends; a token is a byte. Its verifier falls silent after `num_answers`."""

    def __init__(self, folder: Path, text: str = "héllo", **settings: Any) -> None:
        super().__init__(CoordinatorConfig(str(folder), **settings))
        self.text = text
        self.num_answers = 3  # to each request
        self.opened: list[OpenVerify] = []
        self.closed: list[str] = []

    def add_verifier(self) -> None:
        info = WorkerInfo(
            Role.VERIFIER,
            address="127.0.0.1:1",
            incarnation=1,
            model="toy",
            model_hash="x",
            tokenizer_hash=self.tokenizer.hash,
            vocab_size=self.tokenizer.vocab_size,
            max_model_len=CONTEXT,
            max_num_seqs=4,
            eos_token_ids=(END,),
            dtype="float32",
            device="cpu",
        )
        self.feed(WorkerUp(VERIFIER, info))

    def _send(self, worker: str, ask: Any) -> None:
        match ask:
            case OpenVerify():
                self.opened.append(ask)
                self._recite(ask.request_id, ask.token_ids, ask.sampling)
            case Close(request_id):
                self.closed.append(request_id)
            case Decode():
                raise AssertionError("all was asked for at once")

    def _recite(self, request_id: str, prompt: Tokens, sampling: SamplingParams) -> None:
        """The first token, then the second, then all the others: three verdicts."""
        tokens = ((*self.tokenizer.encode(self.text), END) * CONTEXT)[:CONTEXT]
        for start, end in ((0, 1), (1, 2), (2, CONTEXT))[: self.num_answers]:
            piece = tokens[start:end]
            verdict = Verdict(
                request_id,
                0,
                len(prompt) + start,
                piece,
                (Source.SELF_DECODED,) * len(piece),
                verify_ms=1.0,
                logprobs=(LOGPROB,) * len(piece) if sampling.logprobs else (),
                top_logprobs=(FIRST_TOP if start < 2 else TOP,) * len(piece) if sampling.top_logprobs else (),
            )
            asyncio.get_running_loop().call_soon(self.feed, Verified(VERIFIER, verdict))


class Branching(Toy):
    """A drafter's branch comes before its verdicts; there is nothing that would take it up."""

    BRANCH_MS = 4.0

    def _recite(self, request_id: str, prompt: Tokens, sampling: SamplingParams) -> None:
        branch = Branch(1, Draft(request_id, 0, len(prompt), (2, 3), draft_ms=self.BRANCH_MS))
        asyncio.get_running_loop().call_soon(self.feed, Branched("drafter-1", branch))
        super()._recite(request_id, prompt, sampling)
