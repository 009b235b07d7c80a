"""By which names a server without keys may be asked, so that no web page makes one for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.coordinator.http.conftest import Keys, client
from tests.coordinator.toy import Toy

FOREIGN = ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", "::1")


@pytest.mark.parametrize("host", ["localhost", "LocalHost:8000", "127.0.0.1", "127.3.2.1:80", "[::1]", "[::1]:8000"])
async def test_this_machine_is_served_by_all_its_names(chat_model: Path, host: str) -> None:
    async with client(Toy(chat_model)) as http:
        assert (await http.get("/v1/models", headers={"host": host})).status_code == 200


@pytest.mark.parametrize("host", [*FOREIGN, "", "[]", "[::2]", "localhost:x"])
async def test_a_name_that_a_page_may_have_given_is_served_nothing_and_told_the_fix(
    chat_model: Path, host: str
) -> None:
    toy = Toy(chat_model)
    toy.add_verifier()
    async with client(toy) as http:
        for method, path in (("GET", "/"), ("GET", "/paceline/traces"), ("POST", "/v1/completions")):
            response = await http.request(method, path, json={"prompt": "a"}, headers={"host": host})
            assert response.status_code == 403, path
            error = response.json()["error"]
            assert error["type"] == "permission_error"
            assert f"Host={host!r}: " in error["message"]
            assert "--api-keys" in error["message"]
    assert not toy.opened


@pytest.mark.parametrize(
    ("keys", "given"), [(Keys(), {}), (None, {"host": "0.0.0.0", "insecure": True})], ids=["keys", "beyond"]
)
async def test_a_server_that_asks_for_keys_or_is_for_others_has_names_that_it_does_not_know(
    chat_model: Path, keys: Keys | None, given: dict[str, Any]
) -> None:
    async with client(Toy(chat_model, **given), keys) as http:
        for host in FOREIGN:
            headers = {"host": host, "authorization": "Bearer sesame"}
            assert (await http.get("/v1/models", headers=headers)).status_code == 200
