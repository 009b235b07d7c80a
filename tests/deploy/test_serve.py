"""`paceline serve` and `paceline generate` as a user meets them: real processes, real sockets, a tiny random pair."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from deploy.certs import flags, make
from paceline import acceptance_head
from paceline.client import Client
from paceline.security import PeerRole, Tls
from paceline.wire import coordinator_pb2
from tests.deploy.conftest import Served, fails, is_alive, make_model, paceline, wait_until

PROMPTS = ["one", "two and a half", "three", "four", "five, six"]
METRICS = {field.name for field in coordinator_pb2.RequestMetrics.DESCRIPTOR.fields}


def generate(served: Served, *arguments: str) -> list[dict[str, Any]]:
    result = paceline("generate", "--server", served.address, "--json", *arguments)
    assert result.code == 0, result
    return [json.loads(line) for line in result.out.splitlines()]


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The prompts, each in another shape."""
    shapes = [PROMPTS[0], {"prompt": PROMPTS[1]}, {"question": PROMPTS[2]}, {"turns": [PROMPTS[3]]}, PROMPTS[4]]
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    file.write_text("".join(json.dumps(shape) + "\n" for shape in shapes))
    return str(file)


def test_serve_says_in_one_line_that_all_processes_are_ready(served: Served) -> None:
    where = f"gRPC on {served.address}, HTTP on {served.url}"
    assert served.ready_line == f"paceline ready: {where}, 1 verifier, 1 drafter, mode auto\n"
    with urllib.request.urlopen(f"{served.url}/health", timeout=10) as response:
        assert json.load(response)["num_drafters"] == 1
    assert set(served.child_pids()) == {"coordinator", "verifier", "drafter"}
    assert len(set(served.child_pids().values())) == 3


def test_json_has_text_token_ids_finish_reason_and_every_metric(served: Served) -> None:
    (answer,) = generate(served, "--prompt", "hello", "--max-tokens", "12", "--temperature", "0", "--ignore-eos")
    assert set(answer) == {"text", "token_ids", "finish_reason", "request_id", "metrics"}
    assert answer["finish_reason"] == "length"
    assert len(answer["token_ids"]) == 12
    assert set(answer["metrics"]) == METRICS
    assert answer["metrics"]["mode"] in ("off", "sequential", "pearl"), "auto says what it chose"
    assert sum(answer["metrics"]["tokens_by_mode"].values()) == 12
    assert answer["metrics"]["num_generated_tokens"] == 12


def test_answers_come_in_the_order_of_the_prompts_whatever_the_concurrency(served: Served, prompt_file: str) -> None:
    wanted = ("--prompts", prompt_file, "--max-tokens", "10", "--ignore-eos")
    one_by_one = generate(served, *wanted)
    together = generate(served, *wanted, "--concurrency", "4")
    assert len(one_by_one) == len(PROMPTS)
    assert [answer["token_ids"] for answer in together] == [answer["token_ids"] for answer in one_by_one]
    lengths = [answer["metrics"]["num_prompt_tokens"] for answer in together]
    prompts = [*PROMPTS[:2], f"Question: {PROMPTS[2]}\nAnswer:", *PROMPTS[3:]]
    assert lengths == [len(prompt) for prompt in prompts]  # a token is a byte here


def test_all_modes_write_the_same_tokens_and_report_what_they_used(served: Served) -> None:
    options = ("--prompt", "hello", "--max-tokens", "16", "--ignore-eos", "--length-policy", "fixed:length=3")
    answers = {mode: generate(served, *options, "--mode", mode)[0] for mode in ("off", "sequential", "pearl")}
    assert len({tuple(answer["token_ids"]) for answer in answers.values()}) == 1
    assert [answer["metrics"]["mode"] for answer in answers.values()] == list(answers)
    assert answers["off"]["metrics"]["num_draft_tokens"] == 0
    assert answers["sequential"]["metrics"]["num_draft_tokens"] > 0
    assert answers["pearl"]["metrics"]["length_policy"] == "fixed:length=3"


def test_off_a_terminal_the_text_alone_goes_to_standard_output(served: Served) -> None:
    (answer,) = generate(served, "--prompt", "hello", "--max-tokens", "8", "--ignore-eos")
    result = paceline("generate", "--server", served.address, "--prompt", "hello", "--max-tokens", "8", "--ignore-eos")
    assert result.code == 0
    assert result.out == answer["text"] + "\n"
    assert "\x1b" not in result.out + result.err
    assert "8 tokens in" in result.err


def test_a_prompt_beyond_the_context_is_refused_and_the_server_goes_on(served: Served) -> None:
    line = fails("generate", "--server", served.address, "--prompt", "x" * 300, "--max-tokens", "4")
    assert "the prompt has 300 tokens and the context 256" in line
    assert generate(served, "--prompt", "hello", "--max-tokens", "2")


def test_the_likeliest_tokens_of_every_place_are_told_as_json(served: Served) -> None:
    asked = ("--prompt", "hello", "--max-tokens", "3", "--ignore-eos", "--logprobs", "--top-logprobs", "2")
    (answer,) = generate(served, *asked)
    assert len(answer["logprobs"]) == len(answer["top_logprobs"]) == 3
    for token_id, logprob, top in zip(answer["token_ids"], answer["logprobs"], answer["top_logprobs"], strict=True):
        assert len(top["token_ids"]) == 2
        assert (top["token_ids"][0], top["logprobs"][0]) == (token_id, logprob), (
            "greedy: the likeliest is the one taken"
        )
    assert "top_logprobs=2: needs logprobs" in fails("generate", "--prompt", "x", "--top-logprobs", "2")


def test_one_bad_prompt_among_many_is_reported_in_its_place(served: Served, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(prompt) + "\n" for prompt in ("a", "x" * 300, "b")))
    result = paceline(
        "generate", "--server", served.address, "--prompts", str(file), "--max-tokens", "4", "--json", "--ignore-eos"
    )
    assert result.code == 1
    first, bad, last = map(json.loads, result.out.splitlines())
    assert "the prompt has 300 tokens" in bad["error"]
    assert len(first["token_ids"]) == len(last["token_ids"]) == 4


@pytest.mark.parametrize("option", ["--grpc-port", "--port"])
def test_a_port_in_use_is_refused(option: str, pair: tuple[Path, Path]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = fails(
            "serve", "--target", str(pair[0]), "--drafter", str(pair[1]), "--grpc-port", "0", option, str(port)
        )
    assert f"{option}={port}" in line
    assert "choose another, or 0 for a free one" in line


def test_a_drafter_with_another_tokenizer_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", seed=2, hidden_size=32, swap=True)
    line = fails("serve", "--target", str(pair[0]), "--drafter", str(other))
    assert "paceline: --drafter='" in line
    assert "is not that of --target" in line
    assert "same model family" in line


def test_another_drafters_acceptance_head_is_refused_at_the_start(pair: tuple[Path, Path], tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "models/demo-drafter" / acceptance_head.FILE
    for file in (*pair[1].iterdir(), shipped):
        (tmp_path / file.name).symlink_to(file)
    result = paceline("drafter", "--model", str(tmp_path), timeout_s=180)  # it loads the model first
    assert result.code == 2, result
    assert "paceline: acceptance_head='" in result.err
    assert "it was trained for the drafter sha256:" in result.err
    assert "python -m models.train_acceptance_head" in result.err


@pytest.mark.parametrize(
    ("missing", "fix"),
    [("config.json", "no config.json"), ("tokenizer.json", "no tokenizer.json"), ("*.safetensors", "no *.safetensors")],
)
def test_an_incomplete_model_folder_is_refused(
    missing: str, fix: str, pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from deploy.cli import main

    for file in pair[1].iterdir():
        (tmp_path / file.name).symlink_to(file)
    for file in tmp_path.glob(missing):
        file.unlink()
    assert main(["serve", "--target", str(pair[0]), "--drafter", str(tmp_path)]) == 2
    assert fix in capsys.readouterr().err


def test_a_killed_drafter_is_restarted_and_requests_go_on_meanwhile(served: Served) -> None:
    options = ("--prompt", "hello", "--max-tokens", "16", "--ignore-eos")
    (before,) = generate(served, *options)
    pid = served.child_pids()["drafter"]
    (old,) = [worker.incarnation for worker in served.workers() if worker.role == "drafter"]
    os.kill(pid, signal.SIGKILL)
    wait_until("the loss to be noticed", lambda: not served.has_drafter(), 20)
    (without,) = generate(served, *options)
    assert without["token_ids"] == before["token_ids"]
    wait_until("another drafter", served.has_drafter)
    (new,) = [worker.incarnation for worker in served.workers() if worker.role == "drafter"]
    assert new != old
    assert served.child_pids()["drafter"] != pid
    (after,) = generate(served, *options)
    assert after["token_ids"] == before["token_ids"]
    (drafted,) = generate(served, *options, "--max-tokens", "200", "--mode", "pearl")
    assert drafted["metrics"]["num_draft_tokens"] > 0
    assert any("drafter was ended by signal 9" in line for line in served.messages)


def test_sigterm_ends_all_children(served: Served) -> None:
    """The last user of the session's server."""
    pids = served.child_pids()
    assert len(pids) == 3
    assert served.end(signal.SIGTERM) == 0
    assert not [role for role, pid in pids.items() if is_alive(pid)]
    assert served.more_output() == []


def test_a_deployment_behind_tls_and_keys_lets_its_requests_end_when_it_is_told_to_go(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """All roles from one set of options; Ctrl-C or SIGTERM in the middle of a request costs it nothing."""
    make(tmp_path)
    keys = tmp_path / "keys"
    keys.write_text(f"alice:{'a' * 20}\n")
    encrypted = flags(tmp_path)
    server = Served(
        *("--target", str(pair[0]), "--num-drafters", "0", "--grpc-port", "0", "--kv-cache-memory", "16MiB"),
        *(*encrypted, "--api-keys", str(keys)),
    )
    try:
        server.wait_until_ready()
        asked = ("generate", "--server", server.address, "--prompt", "hello", "--max-tokens", "2", "--ignore-eos")
        assert "no coordinator answers" in fails(*asked, code=1)
        assert "no API key was given" in fails(*asked, *encrypted)
        assert paceline(*asked, *encrypted, "--api-key", "a" * 20).code == 0
        call = urllib.request.Request(f"{server.url}/v1/models", headers={"authorization": f"Bearer {'a' * 20}"})
        trust = ssl.create_default_context(cafile=tmp_path / "ca.crt")
        with urllib.request.urlopen(call, timeout=10, context=trust) as response:
            assert response.status == 200
        tls = Tls.of(PeerRole.CLIENT, *(encrypted[i] for i in (1, 3, 5)))
        with Client(server.address, tls=tls, api_key="a" * 20) as client:
            chunks = client.generate("hello", max_tokens=200, ignore_eos=True)
            tokens = list(next(chunks).token_ids)
            server.process.send_signal(signal.SIGTERM)
            for chunk in chunks:
                tokens += chunk.token_ids
        assert len(tokens) == 200
        assert server.wait() == 0
    finally:
        if server.process.poll() is None:
            server.end()


def test_children_do_not_outlive_a_killed_supervisor(pair: tuple[Path, Path]) -> None:
    server = Served("--target", str(pair[0]), "--num-drafters", "0", "--grpc-port", "0")
    try:
        pids = wait_until("the coordinator's process", server.child_pids, 30)
    finally:
        server.end(signal.SIGKILL)
    wait_until("the children's end", lambda: not any(map(is_alive, pids.values())), 20)
    assert pids
