"""The application around a toy coordinator, called in this process."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from coordinator.http.server import HttpServer
from tests.coordinator.toy import Toy, write_model

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}"
    "{% if message.content == 'refuse' %}{{ raise_exception('not that') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}{{ suffix or '' }}"
)


class Keys:
    """Knows one key."""

    def check(self, header: str | None) -> str | None:
        return "alice" if header == "Bearer sesame" else None


@dataclass
class Called:
    """The application, and the coordinator behind it."""

    toy: Toy
    http: httpx2.AsyncClient

    async def post(self, path: str, **body: Any) -> Any:
        """The answer's JSON; it must be a good one."""
        response = await self.http.post(path, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    async def stream(self, path: str, **body: Any) -> list[Any]:
        """The events of a stream that ends with [DONE]."""
        response = await self.http.post(path, json=body | {"stream": True})
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        *events, done, rest = response.text.split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]

    async def refusal(self, path: str, status: int = 400, **body: Any) -> Any:
        """OpenAI's error object."""
        response = await self.http.post(path, json=body)
        assert response.status_code == status, response.text
        assert set(response.json()) == {"error"}
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a chat template."""
    return write_model(tmp_path_factory.mktemp("toy") / "plain")


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model(tmp_path_factory.mktemp("toy") / "chat")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture
async def called(chat_model: Path) -> AsyncIterator[Called]:
    toy = Toy(chat_model, served_model_name="toy")
    toy.add_verifier()
    async with client(toy) as http:
        yield Called(toy, http)
    assert toy.pipeline.num_running == toy.pipeline.num_waiting == 0


def client(toy: Toy, keys: Keys | None = None) -> httpx2.AsyncClient:
    app = HttpServer(toy, keys).app
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    return httpx2.AsyncClient(transport=transport, base_url="http://localhost")
