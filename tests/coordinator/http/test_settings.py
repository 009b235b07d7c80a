"""What an operator sets for all who call over HTTP: the model's own sampling law, pages of other origins."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.coordinator.http.conftest import TEMPLATE, Keys, client
from tests.coordinator.toy import Toy, write_model

PAGE = "https://chat.example.org"


@pytest.fixture
def opinionated(tmp_path: Path) -> Path:
    folder = write_model(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_k": 20, "eos_token_id": 257}))
    return folder


@pytest.mark.parametrize(
    ("settings", "want"), [({}, (0.6, 20, 1.0)), ({"generation_config": "none"}, (1.0, 0, 1.0))], ids=["auto", "none"]
)
async def test_a_request_that_names_no_law_has_the_models_and_all_are_told(
    opinionated: Path, settings: dict[str, Any], want: tuple[float, int, float], caplog: pytest.LogCaptureFixture
) -> None:
    toy = Toy(opinionated, **settings)
    toy.add_verifier()
    user = [{"role": "user", "content": "a"}]
    with caplog.at_level(logging.WARNING):
        async with client(toy) as http:
            for path, body in (("completions", {"prompt": "a"}), ("chat/completions", {"messages": user})):
                assert (await http.post(f"/v1/{path}", json=body)).status_code == 200
            own = {"temperature": 0.3, "top_k": -1}
            await http.post("/v1/completions", json={"prompt": "a", **own})
            (model,) = (await http.get("/v1/models")).json()["data"]
    laws = [(ask.sampling.temperature, ask.sampling.top_k, ask.sampling.top_p) for ask in toy.opened]
    assert laws == [want, want, (0.3, 0, 1.0)]
    told = model["default_sampling"]
    assert (told["temperature"], told["top_k"], told["top_p"]) == want
    assert ("temperature=0.6, top_k=20" in caplog.text) == (not settings)


async def test_a_page_of_another_origin_may_call_where_it_is_named_and_read_refusals_too(chat_model: Path) -> None:
    toy = Toy(chat_model, allowed_origins=(PAGE,))
    toy.add_verifier()
    asks = {
        "origin": PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-os",
    }
    async with client(toy, Keys()) as http:
        allowed = await http.options("/v1/chat/completions", headers=asks)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == PAGE
        assert "x-stainless-os" in allowed.headers["access-control-allow-headers"]
        refused = await http.post("/v1/completions", json={"prompt": "a"}, headers={"origin": PAGE})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == PAGE
        assert set(refused.headers["access-control-expose-headers"].split(", ")) == {"x-request-id", "retry-after"}
        other = await http.post("/v1/completions", json={"prompt": "a"}, headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


async def test_without_a_setting_no_page_of_another_origin_may_call(chat_model: Path) -> None:
    toy = Toy(chat_model)
    toy.add_verifier()
    async with client(toy) as http:
        response = await http.post("/v1/completions", json={"prompt": "a"}, headers={"origin": PAGE})
        assert not [name for name in response.headers if name.startswith("access-control")]
