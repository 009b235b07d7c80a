"""What is wrong with a command line is said in one line, before anything is started."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.cli import COMMANDS, main
from paceline.errors import (
    Forbidden,
    InvalidInput,
    Overloaded,
    PacelineError,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from tests.deploy.conftest import fails, paceline

TARGET = Path(__file__).parents[2] / "models/demo-target"
TLS = ("--tls-cert", "/none/{role}.crt", "--tls-key", "/none/{role}.key", "--tls-ca", "/none/ca.crt")


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The line on stderr; in this process, which is faster."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err.strip()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_command_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"\n  paceline {command} " in out or f"\n  paceline {command}\n" in out
    assert "PACELINE_" in out


def test_help_lists_all_commands_and_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {command} " in out for command in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("paceline 0.")


def test_no_command_is_an_error_that_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: paceline COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["serv"], ["serv:", "did you mean serve?"]),
        (["generate", "--promt", "x"], ["--promt:", "did you mean --prompt?", "paceline generate --help"]),
        (["generate", "--mode", "perl", "--prompt", "x"], ["--mode='perl'", "did you mean pearl?"]),
        (["generate", "--rule", "tokens", "--prompt", "x"], ["--rule='tokens'", "did you mean token?"]),
        (["generate", "--length-policy", "fixd", "--prompt", "x"], ["--length-policy='fixd'", "did you mean fixed?"]),
        (
            ["generate", "--length-policy", "fixed:lenght=4", "--prompt", "x"],
            ["fixed:lenght=4.0", "did you mean length?"],
        ),
        (["generate", "--length-policy", "fixed:length=0", "--prompt", "x"], ["fixed:length=0.0", "from 1 to 64"]),
        (["generate", "--temperature", "-1", "--prompt", "x"], ["temperature=-1.0", "from 0 (greedy)"]),
        (["generate", "--temperature", "nan", "--prompt", "x"], ["temperature=nan", "from 0 (greedy)"]),
        (["generate", "--top-p", "0", "--prompt", "x"], ["top_p=0.0", "greater than 0"]),
        (["generate", "--top-p", "1.5", "--prompt", "x"], ["top_p=1.5", "at most 1"]),
        (["generate", "--max-tokens", "0", "--prompt", "x"], ["--max-tokens='0'", "from 1"]),
        (["generate", "--server", "nowhere", "--prompt", "x"], ["--server='nowhere'", "HOST:PORT"]),
        (["generate"], ["--prompt", "exactly one"]),
        (["generate", "--prompt", "x", "--prompts", "y"], ["--prompt", "exactly one"]),
        (["generate", "--prompts", "missing.jsonl"], ["--prompts='missing.jsonl'", "No such file"]),
        (["generate", "--prompt"], ["--prompt", "expected one argument"]),
        (["serve", "--drafter", "x"], ["--target", "required", "PACELINE_TARGET"]),
        (["serve", "--target", "x"], ["--drafter", "--num-drafters 0"]),
        (["serve", "./missing", "--drafter", "x"], ["--target='./missing'", "no such folder"]),
        (["serve", "x", "--target", "y", "--drafter", "x"], ["--target", "y and x are two models"]),
        (["serve", "x", "--drafter", "x", "--allowed-origins", "example.org"], ["--allowed-origins", "https://"]),
        (["serve", "--target", "./missing", "--drafter", "x"], ["--target='./missing'", "no such folder"]),
        (["serve", "--target", "x", "--drafter", "x", "--host", "0.0.0.0"], ["host='0.0.0.0'", "--insecure"]),
        (["serve", "--target", "x", "--drafter", "x", "--grpc-port", "70000"], ["--grpc-port='70000'", "65535"]),
        (["serve", "--target", "x", "--drafter", "x", "--port", "of"], ["--port='of'", "65535, or off"]),
        (["verifier", "--model", "x", "--kv-cache-memory", "much"], ["--kv-cache-memory='much'", "1GiB"]),
        (["verifier", "--model", "x", "--host", "10.0.0.1"], ["host='10.0.0.1'", "--insecure"]),
        (["drafter", "--model", "x", "--host", "0.0.0.0", "--insecure"], ["--advertise", "--host"]),
        (["verifier", "--model", "x", "--tls-cert", "a"], ["tls-key", "--tls-ca", "together, or none"]),
        (["drafter", "--model", "x", *TLS], ["tls-cert='/none/drafter.crt'", "paceline certs"]),
        (["coordinator", "--tokenizer", "x", *TLS], ["tls-cert='/none/coordinator.crt'"]),
        (["coordinator", "--tokenizer", str(TARGET), "--api-keys", "/none"], ["api-keys='/none'", "cannot be read"]),
        (["serve", "--target", "x", "--drafter", "x", *TLS], ["tls-cert='/none/client.crt'"]),
        (["generate", "--prompt", "x", *TLS], ["tls-cert='/none/client.crt'"]),
        (["generate", "--prompt", "x", "--api-key", "two words"], ["api_key"]),
        (["generate", "--prompt", "x", "--server", "a:1,b"], ["--server='a:1,b'", "HOST:PORT"]),
        (["verifier", "--model", "x", "--drain-s", "-1"], ["--drain-s='-1'", "from 0 to 3600"]),
        (["drafter", "--model", "prompt-lokup"], ["--model='prompt-lokup'", "did you mean prompt-lookup?"]),
        (["serve", "--target", str(TARGET), "--drafter", "sufix"], ["--drafter='sufix'", "did you mean suffix?"]),
        (["drafter", "--model", "suffix", "--max-ngram", "65"], ["--max-ngram='65'", "from 1 to 64"]),
        (
            ["drafter", "--model", "prompt-lookup", "--max-ngram", "2", "--min-ngram", "3"],
            ["--min-ngram=3", "at most --max-ngram, which is 2"],
        ),
        (["drafter", "--model", "x", "--min-ngram", "2"], ["--min-ngram=2", "--model prompt-lookup or suffix"]),
        (
            ["serve", "--target", "x", "--drafter", "prompt-lookup", "--share-between-requests"],
            ["--share-between-requests=True", "is for --drafter suffix"],
        ),
        (
            ["drafter", "--model", "suffix", "--suffix-tokens", "9"],
            ["--suffix-tokens=9", "add --share-between-requests"],
        ),
        (["drafter", "--model", "suffix", "--host", "0.0.0.0"], ["host='0.0.0.0'", "--insecure"]),
        (["drafter", "--model", "suffix", "--suffix-tokens", "0"], ["--suffix-tokens='0'", "from 1"]),
        (["verifier", "--model", "x", "--dtype", "float16"], ["--dtype='float16'", "did you mean bfloat16?"]),
        (["serve", "x", "--dtype", "half"], ["--dtype='half'", "did you mean bfloat16?"]),
        (["serve", "x", "--dtype", "float8"], ["--dtype='float8'", "Choose from float32, bfloat16, auto"]),
        (["serve", "x", "--trust-remote-code"], ["--trust-remote-code: is not offered", "never run"]),
        (["serve", "x", "--num-speculative-tokens", "5"], ["--num-speculative-tokens: ", "--length-policy fixed:le"]),
    ],
)
def test_a_wrong_option_names_value_and_fix(
    argv: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(capsys, *argv)
    assert all(part in line for part in parts), line


def test_an_option_wins_over_its_environment_twin_and_that_over_the_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACELINE_MODE", "perl")
    monkeypatch.setenv("PACELINE_SERVER", "nowhere")
    assert "PACELINE_SERVER='nowhere'" in refusal(capsys, "generate", "--mode", "pearl", "--prompt", "x")
    assert "PACELINE_MODE='perl'" in refusal(capsys, "generate", "--server", "127.0.0.1:1", "--prompt", "x")


def test_a_port_that_kubernetes_has_set_is_explained(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACELINE_PORT", "tcp://10.0.0.1:50051")
    assert "enableServiceLinks" in refusal(capsys, "serve", "--target", "x")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidInput("a", 1, "b"), 2),
        (Unsupported("a", 1, "b"), 2),
        (Unauthenticated("no key"), 2),
        (Forbidden("not for you"), 2),
        (Unavailable("gone"), 1),
        (Overloaded("queue", 1, 1.0), 1),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    error: PacelineError, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr("deploy.generate.run", fail)
    assert main(["generate"]) == code
    assert capsys.readouterr().err == f"paceline: {error}\n"


def test_an_interrupt_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("deploy.generate.run", interrupt)
    assert main(["generate"]) == 130


def test_what_a_laptop_runs_does_not_import_torch() -> None:
    program = """
import sys
from deploy.cli import main
import deploy.generate, deploy.serve, deploy.demo, coordinator.api, coordinator.http.server
assert main(["--help"]) == main(["serve", "--help"]) == main(["coordinator", "--help"]) == 0
assert main(["generate", "--server", "127.0.0.1:1", "--prompt", "x"]) == 1
print({"torch", "transformers"} & set(sys.modules), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "set()"


def test_generate_without_a_server_says_how_to_start_one() -> None:
    line = fails("generate", "--server", "127.0.0.1:1", "--prompt", "x", code=1)
    assert "no coordinator answers at 127.0.0.1:1" in line
    assert "paceline serve" in line


@pytest.mark.parametrize(
    ("line", "fix"), [("{", "no JSON"), ("{}", "holds no prompt"), ('{"turns": []}', "holds no prompt"), ("7", "")]
)
def test_a_malformed_prompt_names_file_and_line(
    line: str, fix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps("fine") + "\n\n" + line + "\n")
    said = refusal(capsys, "generate", "--prompts", str(file))
    assert "prompts.jsonl:3'" in said
    assert fix in said


def test_the_program_itself_exits_with_the_code() -> None:
    assert paceline("--version").code == 0
    assert "unknown command" in fails("serv")
