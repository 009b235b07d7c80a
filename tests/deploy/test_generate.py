"""What `paceline generate` makes of an answer that breaks off."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from deploy.generate import _answer, parser
from paceline.client import Chunk
from paceline.errors import Unavailable
from paceline.types import Source


class Breaks:
    """A client whose server goes away after a token."""

    async def generate(self, prompt: str, **_: Any) -> AsyncIterator[Chunk]:
        yield Chunk(prompt, (5,), (Source.BONUS,), (len(prompt),), None, None, "id")
        raise Unavailable("gone")


async def test_what_came_of_an_answer_that_failed_is_told_with_the_error_and_the_id() -> None:
    values = parser().parse(["--prompt", "x", "--json"], {})
    answer = await _answer(Breaks(), "some", values, lambda _: None)  # type: ignore[arg-type]
    told = json.loads(answer.to_json())
    assert told == {"error": "gone", "text": "some", "token_ids": [5], "request_id": "id"}
