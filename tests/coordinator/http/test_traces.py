"""Traces over HTTP: a request's steps, for the key that asked it and for no other."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest

from tests.coordinator.http.conftest import Called, client
from tests.coordinator.test_chrome_trace import check
from tests.coordinator.toy import Toy


class TwoKeys:
    def check(self, header: str | None) -> str | None:
        return {"Bearer one": "alice", "Bearer two": "bob"}.get(header or "")


async def test_an_answers_id_leads_to_its_trace(called: Called) -> None:
    answer = await called.post("/v1/completions", prompt="a", max_tokens=8)
    trace = (await called.http.get(f"/paceline/traces/{answer['id']}")).json()
    check(trace)
    assert answer["id"].endswith(trace["otherData"]["request_id"])
    listed = (await called.http.get("/paceline/traces")).json()["traces"]
    assert [one["request_id"] for one in listed] == [trace["otherData"]["request_id"]]
    assert (await called.http.get("/paceline/traces/other")).status_code == 404


@pytest.mark.parametrize("request_id", ["job/7/a", "/job?#%41", "job/"])
async def test_a_callers_own_id_leads_to_its_trace_whatever_is_in_it(called: Called, request_id: str) -> None:
    """With its characters written as the page and curl write them."""
    await called.post("/v1/completions", prompt="a", max_tokens=1, request_id=request_id)
    trace = (await called.http.get(f"/paceline/traces/{quote(request_id, safe='')}")).json()
    assert trace["otherData"]["request_id"] == request_id


async def test_a_trace_that_is_cut_is_told_to_be(called: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(called.toy.recent, "_max_of_one", 3)
    answer = await called.post("/v1/completions", prompt="a", max_tokens=8)
    trace = (await called.http.get(f"/paceline/traces/{answer['id']}")).json()
    assert trace["otherData"]["is_cut"]
    assert "cut here" in {event["name"] for event in trace["traceEvents"]}


async def test_a_trace_is_for_the_key_that_asked(chat_model: Path) -> None:
    toy = Toy(chat_model, served_model_name="toy")
    toy.add_verifier()
    async with client(toy, TwoKeys()) as http:  # type: ignore[arg-type]
        one, two = {"authorization": "Bearer one"}, {"authorization": "Bearer two"}
        answer = await http.post("/v1/completions", json={"prompt": "a", "max_tokens": 4}, headers=one)
        path = f"/paceline/traces/{answer.json()['id']}"
        assert (await http.get(path, headers=one)).status_code == 200
        assert (await http.get(path, headers=two)).status_code == 404
        assert (await http.get("/paceline/traces", headers=two)).json() == {"traces": []}
        for public in (path, "/paceline/traces"):
            assert (await http.get(public)).status_code == 401
