"""Ten thousand messages for the decoders, and that the fuzzer would notice one that fails."""

from __future__ import annotations

import random

import pytest

from bench.fuzz import decode, decode_all
from bench.garble import garbled
from bench.specimens import UNARY, Decoder, decoders
from paceline.errors import InvalidInput
from paceline.wire import coordinator_pb2, drafter_pb2, verifier_pb2


@pytest.mark.parametrize("seed", [1, 2])
def test_no_decoder_fails_in_a_way_of_its_own(seed: int) -> None:
    tallies = decode_all(5_000, seed)
    assert [(tally.name, tally.bugs) for tally in tallies if tally.bugs] == []
    for tally in tallies:
        assert tally.answers["value"] > 10, f"{tally.name}: too little of it is still understood to test much"
        assert len(tally.answers) > 1, f"{tally.name}: nothing was refused"


def test_every_method_of_the_coordinator_and_every_kind_of_answer_is_fed() -> None:
    methods = coordinator_pb2.DESCRIPTOR.services_by_name["Coordinator"].methods_by_name
    assert set(UNARY) == set(methods)
    table = decoders()
    for name, envelope in (("drafter reply", drafter_pb2.DrafterReply), ("verifier reply", verifier_pb2.VerifierReply)):
        arms = {envelope.FromString(good).WhichOneof("reply") for good in table[name].good}
        assert arms == {field.name for field in envelope.DESCRIPTOR.oneofs_by_name["reply"].fields}, name


def _brittle(data: bytes) -> object:
    if data == b"good":
        return None
    if b"good"[:2] in data:
        raise IndexError("a bug")
    raise InvalidInput("data", "…", "is not good")


def test_an_error_that_is_not_ours_is_a_bug_and_the_message_is_kept() -> None:
    tally = decode("brittle", Decoder([b"good"], _brittle), b"go", 500, random.Random(1))
    assert tally.bugs
    assert all(bug.startswith("IndexError") and b"go" in bytes.fromhex(bug.split(": ")[1]) for bug in tally.bugs)
    assert tally.answers["InvalidInput"] > 0


def test_garbling_keeps_a_message_small_and_mostly_changes_it() -> None:
    rng = random.Random(1)
    for decoder in decoders().values():
        for good in decoder.good:
            messages = [garbled(good, good, rng) for _ in range(200)]
            assert max(map(len, messages)) <= 4096
            assert sum(message == good for message in messages) < 60
