"""What a coordinator's replica asks its process with: a key or a certificate that ends is replaced by the new one."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from paceline.errors import Unauthenticated, Unavailable
from paceline.security import PeerRole
from tests.certificates import authority, tls
from tests.system.cluster import cluster
from tests.tiny import write_pair

pytest.importorskip("ray.serve", reason="ray is not installed; pip install 'paceline[ray]'")

from deploy.ray.arguments import Arguments
from deploy.ray.coordinator import Asker, directions

WITHIN_S = 20.0


def test_a_proxy_sends_callers_to_the_coordinator_and_nowhere_if_that_serves_no_http() -> None:
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"a=b", "headers": []}
    request = Request(scope | {"server": ("proxy", 8001)})
    sent = directions(request, "10.0.0.1:50051", "http://10.0.0.1:8000")
    assert (sent.status_code, sent.headers["location"]) == (307, "http://10.0.0.1:8000/v1/completions?a=b")
    refused = directions(request, "10.0.0.1:50051", "")
    assert (refused.status_code, bytes(refused.body)) == (404, b"no HTTP here; gRPC on 10.0.0.1:50051\n")


async def test_a_revoked_key_costs_some_reports_and_not_all_that_come_after(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"old:{'o' * 20}\nother:{'x' * 20}\n")
    async with cluster(write_pair(tmp_path)[0], api_keys=str(keys), port=None) as it:
        asker = Asker(it.address, Arguments(target="t", api_keys=str(keys)))
        assert await asker.server_info()
        keys.write_text(f"new:{'n' * 20}\n")
        with pytest.raises(Unauthenticated):
            await ask_on(asker)
        assert await asker.server_info(), "with the key that is there now"
        await asker.close()


async def ask_on(asker: Asker) -> None:
    """For as long as all goes well: the coordinator looks at its file once a second."""
    deadline_s = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline_s:
        await asker.server_info()
        await asyncio.sleep(0.1)


async def test_certificates_that_nobody_believes_are_read_again(tmp_path: Path) -> None:
    for name in ("client.crt", "client.key", "ca.crt"):
        (tmp_path / name).write_bytes((authority("theirs") / name).read_bytes())
    files: dict[str, Any] = {
        "tls_cert": f"{tmp_path}/{{role}}.crt",
        "tls_key": f"{tmp_path}/{{role}}.key",
        "tls_ca": f"{tmp_path}/ca.crt",
    }
    async with cluster(write_pair(tmp_path)[0], tls=tls(PeerRole.COORDINATOR), port=None) as it:
        asker = Asker(it.address, Arguments(target="t", **files))
        with pytest.raises(Unavailable):
            await asker.server_info()
        for name in ("client.crt", "client.key", "ca.crt"):
            (tmp_path / name).write_bytes((authority() / name).read_bytes())
        assert await asker.server_info()
        await asker.close()
