"""What a client may get wrong about lengths, ids and strings: refused at the door, by field, value and limit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest

from paceline.errors import InvalidInput
from paceline.types import Role
from tests.system.cluster import cluster, until
from tests.tiny import write_model

POOL, CONTEXT = 96, 512  # tokens; the model's context is the longer one, so the pool is what counts


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "target", seed=1)


BAD: list[tuple[str | Sequence[int], int, list[str]]] = [
    ("x" * (CONTEXT + 1), 1, ["prompt='513 tokens'", "95 at most"]),
    ([7] * (POOL + 1), 1, ["prompt='97 tokens'", "the context 96", "95 at most"]),
    ([7] * POOL, 1, ["prompt='96 tokens'", "95 at most"]),
    ([7] * 40, 57, ["max_tokens=57", "40 tokens", "ask for at most 56"]),
    ([7] * 40, CONTEXT, ["max_tokens=512", "ask for at most 56"]),
    ([7], 0, ["max_tokens=0", "at least 1"]),
    ("", 4, ["prompt=''", "is empty"]),
    ([], 4, ["prompt=''", "is empty"]),
    ([7, 257], 4, ["prompt_token_ids=257", "257"]),
    ([7, 2**32 - 1], 4, ["prompt_token_ids=4294967295", "257"]),
]


async def test_what_cannot_be_served_is_refused_with_its_limit_and_the_next_request_is_served(target: Path) -> None:
    async with cluster(target) as it:
        await it.add("verifier", Role.VERIFIER, target, max_num_tokens=POOL)
        async with it.client() as client:
            for prompt, max_tokens, parts in BAD:
                with pytest.raises(InvalidInput) as caught:
                    await client.complete(prompt, max_tokens=max_tokens)
                assert all(part in str(caught.value) for part in parts), caught.value
                answer = await client.complete([7] * 40, max_tokens=2, ignore_eos=True)
                assert len(answer.token_ids) == 2
            largest = await client.complete([7] * 40, max_tokens=POOL - 40, ignore_eos=True)
            assert len(largest.token_ids) == POOL - 40, "the limit itself is served"


async def test_a_verifier_that_comes_with_less_room_refuses_what_was_let_in_before(target: Path) -> None:
    """Nobody knew its pool when the request arrived and queued."""
    async with cluster(target) as it, it.client() as client:
        waiting = asyncio.create_task(client.complete([7] * (POOL + 20), max_tokens=4))
        await until(lambda: it.server.coordinator.pipeline.num_waiting == 1)
        await it.add("verifier", Role.VERIFIER, target, max_num_tokens=POOL)
        with pytest.raises(InvalidInput, match="96 tokens"):
            await waiting


HALF = "\ud800"  # of a surrogate pair, which JSON can hold and no other wire
STRINGS: list[tuple[dict[str, Any], int]] = [
    ({"request_id": HALF}, 400),
    ({"request_id": "a\nb"}, 400),
    ({"request_id": "é"}, 400),
    ({"request_id": "\u4e00"}, 400),
    ({"prompt": HALF}, 400),
    ({"prompt": ["a", HALF]}, 400),
    ({"model": HALF}, 404),
    ({HALF: HALF}, 400),
    ({"speculative": {"length_policy": f"svip:{HALF}=1"}}, 400),
    ({"stop": [HALF]}, 200),
    ({"user": HALF, "metadata": {HALF: HALF}, "safety_identifier": HALF, "prompt_cache_key": HALF}, 200),
    ({"messages": [{"role": "user", "content": HALF}]}, 400),
    ({"messages": [{"role": "user", "content": "a", "name": HALF}]}, 200),
    ({"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {HALF: HALF}}, 200),
]


@pytest.mark.parametrize("stream", [False, True])
async def test_no_string_of_a_client_costs_more_than_its_own_request(
    target: Path, tmp_path: Path, stream: bool
) -> None:
    """An id with half of a surrogate pair used to end the link of one verifier after the other."""
    template = tmp_path / "template.jinja"
    template.write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    settings: dict[str, Any] = {"port": 0, "trace": str(tmp_path / "trace"), "chat_template": str(template)}
    async with cluster(target, **settings) as it:
        await it.add("verifier", Role.VERIFIER, target)
        assert it.server.http
        links = set(it.server.coordinator.links)
        async with httpx2.AsyncClient(base_url=it.server.http.url, timeout=30) as http:
            for given, status in STRINGS:
                own = {} if "messages" in given else {"prompt": "a"}
                content = json.dumps({"max_tokens": 2, "stream": stream, **own, **given})  # escapes, all of it ASCII
                path = "/v1/chat/completions" if "messages" in given else "/v1/completions"
                response = await http.post(path, content=content, headers={"content-type": "application/json"})
                assert response.status_code == status, (given, response.text)
        assert set(it.server.coordinator.links) == links
