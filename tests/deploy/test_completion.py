"""The completion scripts: what a real bash makes of its own, and that the others know every command and option."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from deploy.bench import BENCHMARKS
from deploy.cli import COMMANDS, main, parsers


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import contextlib
    import io

    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        assert main(["completion", "bash"]) == 0
    path = tmp_path_factory.mktemp("completion") / "paceline.bash"
    path.write_text(text.getvalue())
    return path


def completed(path: Path, *words: str) -> list[str]:
    """What bash offers for the last of the words."""
    line = " ".join(words)
    quoted = " ".join(f"'{word}'" for word in words)
    program = f"""
source '{path}'
COMP_WORDS=({quoted}) COMP_CWORD={len(words) - 1} COMP_LINE='{line}' COMP_POINT={len(line)}
function=$(complete -p paceline | sed 's/.*-F \\([^ ]*\\).*/\\1/')
"$function" paceline '{words[-1]}' '{words[-2]}' 2>/dev/null
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "--norc", "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_bash_completes_commands(bash_script: Path) -> None:
    assert set(completed(bash_script, "paceline", "")) >= set(COMMANDS)
    assert completed(bash_script, "paceline", "ver") == ["verifier"]


def test_bash_completes_every_option_of_every_command(bash_script: Path) -> None:
    for name, parser in parsers().items():
        offered = set(completed(bash_script, "paceline", *name.split(), "--"))
        flags = {flag for option in parser.options for flag in option.flags if flag.startswith("--")}
        assert flags | {"--config", "--print-config"} <= offered, name


def test_bash_completes_a_commands_own_commands(bash_script: Path) -> None:
    assert set(completed(bash_script, "paceline", "ray", "")) >= {"up", "status", "down"}


def test_bash_completes_benchmarks_and_shells(bash_script: Path) -> None:
    assert set(completed(bash_script, "paceline", "bench", "")) >= set(BENCHMARKS)
    flags = {"--dataset-name", "--compare", "--max-concurrency", "--json"}
    assert flags <= set(completed(bash_script, "paceline", "bench", "serve", "--"))
    assert completed(bash_script, "paceline", "completion", "z") == ["zsh"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_know_all_of_it(shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = script(shell, capsys)
    for name, parser in parsers().items():
        assert name.rpartition(" ")[2] in text
        for option in parser.options:
            assert option.flags[0].removeprefix("--") in text
    if found := shutil.which(shell):  # a check of its syntax where there is such a shell
        (tmp_path / "script").write_text(text)
        assert subprocess.run([found, "-n", str(tmp_path / "script")], timeout=30, check=False).returncode == 0


def test_another_shell_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bsh"]) == 2
    assert "did you mean bash?" in capsys.readouterr().err
    assert main(["completion"]) == 2
    assert "usage: paceline completion" in capsys.readouterr().err
