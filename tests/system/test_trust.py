"""Trust through real processes: one pair, three coordinators of different minds."""

from __future__ import annotations

from pathlib import Path

import pytest

from paceline.client import Client
from paceline.errors import InvalidInput
from paceline.types import Role
from tests.system import processes
from tests.tiny import write_pair


def test_which_rule_is_taken_depends_on_whom_the_coordinator_trusts(tmp_path: Path) -> None:
    target, drafter = write_pair(tmp_path)
    minds: dict[str, tuple[tuple[str, ...], str]] = {
        "its own machine": ((), "block"),
        "nobody": (("--insecure",), "match"),
        "everybody": (("--insecure", "--trust-drafters"), "block"),
    }
    coordinators = [processes.coordinator(target, *options) for options, _ in minds.values()]
    with processes.running(*coordinators):
        addresses = ",".join(it.address for it in coordinators)
        verifier = processes.worker(Role.VERIFIER, target, addresses)
        draft = processes.worker(Role.DRAFTER, drafter, addresses)
        with processes.running(verifier, draft):
            for it, (mind, (_, expected)) in zip(coordinators, minds.items(), strict=True):
                with Client(it.address) as client:
                    given = {"max_tokens": 6, "temperature": 1.0, "ignore_eos": True, "mode": "pearl"}
                    answer = client.complete([1, 2, 3], **given)  # type: ignore[arg-type]
                    assert answer.metrics["rule"] == expected, mind
                    assert client.complete([1, 2, 3], seed=1, **given).metrics["rule"] == "coupled"  # type: ignore[arg-type]
                    if expected == "match":
                        with pytest.raises(InvalidInput, match=r"rule='block'.*--trust-drafters"):
                            client.complete([1, 2, 3], rule="block", **given)  # type: ignore[arg-type]
