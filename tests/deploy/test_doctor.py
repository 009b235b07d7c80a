"""`paceline doctor`: what it finds wrong, what it makes of figures, and one whole examination."""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bench.simulator.law import RecordedRequest
from bench.simulator.recorded import Profile
from deploy import certs, doctor_setup
from deploy.cli import main
from deploy.doctor import failure, parser, plan_of
from deploy.doctor_forecast import Forecast, Ran, advice, best_of, forecasts
from deploy.doctor_setup import BROKEN, OK, WARNING, Finding
from deploy.serve import SHARED_KV_CACHE_BYTES
from paceline import compatibility
from paceline.client import ModelInfo, ServerInfo
from paceline.errors import Forbidden, Overloaded, PacelineError, PeerFault, Unavailable, UnknownRequest
from paceline.types import Mode, Role, StepCost, WorkerInfo
from tests.deploy.conftest import Served, paceline
from tests.paceline.test_codec import worker_info

NOW = datetime.datetime.now(datetime.UTC)


def states(findings: Iterator[Finding]) -> dict[str, str]:
    return {finding.what: finding.state for finding in findings}


def test_versions_that_do_not_fit_are_broken_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"transformers": "4.0.0", "torch": ""}
    monkeypatch.setattr(doctor_setup, "installed", lambda name: found.get(name, compatibility.installed(name)))
    by_name = {finding.what: finding for finding in doctor_setup.versions()}
    assert by_name["version of grpcio"].state == OK
    assert by_name["version of transformers"].state == BROKEN
    assert "pip install 'transformers>=" in by_name["version of transformers"].fix
    assert by_name["version of torch"].state == WARNING, "a client's machine may do without"


def test_workers_that_share_a_gpu_are_told_how_much_of_it_is_theirs() -> None:
    values = parser().parse(["--target", "big/", "--drafter", "small/", "--device", "cuda"], {})
    plan = plan_of(values)
    for role in (plan.verifier, plan.drafters):
        assert role[role.index("--kv-cache-memory") + 1] == str(SHARED_KV_CACHE_BYTES)
        assert role[role.index("--device") + 1] == "cuda"


def test_devices_are_told_and_one_that_is_not_there_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    gpu = argparse.Namespace(name="NVIDIA H200", total_memory=140 * 2**30)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: gpu)
    found = {finding.what: finding for finding in doctor_setup.devices("cuda", "bfloat16")}
    assert found["CUDA devices"].value == "NVIDIA H200 with 140 GiB"
    assert {finding.state for finding in found.values()} == {OK}
    assert states(doctor_setup.devices("cuda:0", "auto"))["CUDA devices"] == OK
    (other,) = [one for one in doctor_setup.devices("cuda:1", "auto") if one.state != OK]
    assert (other.what, other.state) == ("CUDA devices", BROKEN)
    assert other.fix.endswith("or say --device cuda")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert states(doctor_setup.devices("cuda", "auto"))["CUDA devices"] == BROKEN
    assert states(doctor_setup.devices("cpu", "auto"))["CUDA devices"] == OK


@pytest.mark.parametrize("has", [False, True])
def test_bfloat16_on_a_cpu_that_only_emulates_it_is_a_warning(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paceline.engine.dtype.has_bfloat16", lambda _: has)
    assert states(doctor_setup.devices("cpu", "bfloat16"))["CPU"] == (OK if has else WARNING)
    assert states(doctor_setup.devices("cpu", "float32"))["CPU"] == OK


def given(**changes: str | None) -> argparse.Namespace:
    return argparse.Namespace(**({"tls_cert": None, "tls_key": None, "tls_ca": None, "api_keys": None} | changes))


def tls(folder: Path) -> argparse.Namespace:
    flags = certs.flags(folder)
    return given(tls_cert=flags[1], tls_key=flags[3], tls_ca=flags[5])


def test_certificates_are_checked_with_their_ends(tmp_path: Path) -> None:
    certs.make(tmp_path, days=30)
    assert states(doctor_setup.files(tls(tmp_path), NOW))["certificate"] == OK
    for days, state in ((17, WARNING), (31, BROKEN)):
        later = NOW + datetime.timedelta(days=days)
        (finding,) = [one for one in doctor_setup.files(tls(tmp_path), later) if one.what == "certificate"]
        assert finding.state == state
        assert "paceline certs" in finding.fix
    (tmp_path / "client.key").unlink()
    assert states(doctor_setup.files(tls(tmp_path), NOW)) == {"certificate": BROKEN}


def test_keys_that_others_can_read_are_told(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("k" * 20)
    keys.chmod(0o644)
    found = {finding.what: finding for finding in doctor_setup.files(given(api_keys=str(keys)), NOW)}
    assert found[f"permissions of {keys}"].state == WARNING
    assert found[f"permissions of {keys}"].fix.endswith(f"chmod 600 {keys}")
    keys.chmod(0o600)
    assert set(states(doctor_setup.files(given(api_keys=str(keys)), NOW)).values()) == {OK}
    keys.write_text("short")
    assert states(doctor_setup.files(given(api_keys=str(keys)), NOW))["API keys"] == BROKEN


def test_a_server_without_a_verifier_is_broken_and_one_without_a_drafter_is_not() -> None:
    model = ModelInfo("m", "b" * 64, 512, 256, (1,), "m")
    drafter, verifier = worker_info(), worker_info(role=Role.VERIFIER)

    def look(*workers: WorkerInfo) -> dict[str, str]:
        return states(
            doctor_setup.server(model, ServerInfo("0.1.0", workers, 0, 0, 256, False, "auto", "auto", "auto", 4))
        )

    assert set(look(drafter, verifier).values()) == {OK}
    assert look(drafter)["verifiers"] == BROKEN
    assert look(verifier)["drafters"] == WARNING
    assert look(verifier, replace(drafter, tokenizer_hash="c" * 64))["tokenizer of tiny"] == BROKEN
    assert look(verifier, replace(drafter, wire_version=0))["wire of tiny"] == BROKEN


def profile(draft_ms: float) -> Profile:
    kept = tuple(i % 5 != 0 for i in range(40))
    cost, draft = StepCost(20.0, 0.5, 0.0, 0.0), StepCost(draft_ms, 0.0, 0.0, 0.0)
    return Profile((RecordedRequest(16, kept),) * 3, 0.8, cost, draft, 1e-4, 1e-4, 1, 1, 6, 4)


def predicted(draft_ms: float, rtts_ms: tuple[float, ...] = (0.0, 400.0)) -> list[Forecast]:
    found = dict.fromkeys((Mode.OFF, Mode.SEQUENTIAL, Mode.PEARL), profile(draft_ms))
    rates = {Mode.OFF: 50.0, Mode.SEQUENTIAL: 80.0, Mode.PEARL: 120.0}
    if draft_ms > 10:
        rates = {Mode.OFF: 50.0, Mode.SEQUENTIAL: 20.0, Mode.PEARL: 25.0}
    return forecasts(found, {mode: Ran(int(rate), 1.0) for mode, rate in rates.items()}, rtts_ms)


def test_a_forecast_is_what_was_measured_here_and_falls_with_the_distance() -> None:
    rows = predicted(1.0)
    here = {row.mode: row for row in rows if row.rtt_ms == 0}
    far = {row.mode: row for row in rows if row.rtt_ms == 400}
    assert here["pearl"].tokens_per_s == pytest.approx(120)
    assert here["pearl"].speed_up == pytest.approx(2.4)
    assert far["off"].tokens_per_s == pytest.approx(50), "plain decoding needs no drafter"
    assert far["sequential"].tokens_per_s < here["sequential"].tokens_per_s / 3
    assert far["pearl"].tokens_per_s == pytest.approx(far["pearl"].simulated * 120 / here["pearl"].simulated)


def test_it_says_when_drafting_pays_and_from_what_distance_on_it_does_not() -> None:
    rows = predicted(1.0)
    assert best_of(rows).mode == "pearl"
    assert best_of(rows, 400.0).mode == "off"
    assert "--mode pearl makes 2.40 times" in advice(rows)
    assert "400 ms further away it no longer pays" in advice(rows)


def test_it_says_when_drafting_does_not_pay_and_by_how_much() -> None:
    said = advice(predicted(60.0))
    assert "does not pay here: pearl" in said
    assert "0.50 times" in said
    assert "(-50 %)" in said
    assert "--mode off" in said


def test_a_gain_within_chance_is_none() -> None:
    rows = [Forecast("off", 0.0, 100.0, 1.0, 100.0), Forecast("pearl", 0.0, 103.0, 1.03, 103.0)]
    assert best_of(rows).mode == "off"


def test_a_whole_examination_of_a_running_server(served: Served, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('"one"\n"two and a half"\n')
    more = ("--prompts", str(prompts), "--max-tokens", "12", "--rtt-ms", "50", "--verify", "--json")
    result = paceline("doctor", "--server", served.address, *more, timeout_s=120)
    assert result.code == 0, result
    told = json.loads(result.out)
    assert told["ok"] is True
    assert {finding["state"] for finding in told["findings"]} <= {OK, WARNING}
    assert {"verifying", "drafting", "acceptance"} <= {finding["what"] for finding in told["findings"]}
    rows = {(row["mode"], row["rtt_ms"]): row for row in told["predictions"]}
    assert rows.keys() == {(mode, rtt) for mode in ("off", "sequential", "pearl", "branch") for rtt in (0.0, 50.0)}
    assert rows["pearl", 0.0]["measured"] > 0
    assert rows["pearl", 50.0]["measured"] is None
    here = rows["pearl", 0.0]
    assert here["simulated_over_measured"] == pytest.approx(here["simulated"] / here["measured"])
    (auto,) = [finding["value"] for finding in told["findings"] if finding["what"] == "mode auto chose"]
    assert 0 < int(auto.split(" of ")[1].split()[0]) <= 24
    assert rows["sequential", 50.0]["tokens_per_s"] < rows["sequential", 0.0]["tokens_per_s"]
    assert told["recommended_mode"] in ("off", "sequential", "pearl", "branch")
    assert told["advice"] in result.err
    assert "\x1b" not in result.err


@pytest.mark.parametrize(
    ("error", "what", "part"),
    [
        (UnknownRequest("doctor-1"), "traces", "--keep-traces 64"),
        (Overloaded("waiting requests", 8, 1.0), "server", "when it has less to do"),
        (Forbidden("not for drafters"), "server", "not for drafters"),
        (PeerFault("a reply is malformed"), "server", "malformed"),
        (Unavailable("gone"), "server", "gone"),
    ],
)
def test_what_ended_it_is_told_by_its_kind(error: PacelineError, what: str, part: str) -> None:
    finding = failure(error)
    assert (finding.what, finding.state) == (what, BROKEN)
    assert part in finding.fix
    assert (finding.value == "does not answer") is isinstance(error, Unavailable)


def test_no_server_is_told_as_a_finding_and_exit_code_1() -> None:
    result = paceline("doctor", "--server", "127.0.0.1:1", "--json")
    assert result.code == 1
    told = json.loads(result.out)
    assert told["ok"] is False
    assert told["findings"][-1]["what"] == "server"
    assert told["predictions"] == []


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--server", "a:1", "--target", "x"], "not both"),
        (["--drafter", "x"], "--drafter: is for --target"),
        (["--num-prompts", "0"], "from 1 to 60"),
        (["--prompts", "missing.jsonl"], "No such file"),
    ],
)
def test_wrong_input_is_one_line(argv: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *argv]) == 2
    assert part in capsys.readouterr().err


def test_a_pair_that_cannot_be_served_is_broken_and_nothing_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--target", str(tmp_path), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    (finding,) = [one for one in told["findings"] if one["state"] == BROKEN]
    assert "has no config.json" in finding["fix"]
