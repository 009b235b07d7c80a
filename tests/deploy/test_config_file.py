"""Where an option's value comes from: flag, environment, file, default; what is wrong says where it stood."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from deploy import serve
from deploy.cli import COMMANDS, main, parsers
from deploy.config_file import read
from paceline.errors import InvalidInput, UsageError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "paceline.toml"


def parse(file: Path, *argv: str, **environ: str) -> object:
    return serve.parser().parse(["--config", str(file), *argv], environ)


def test_the_flag_wins_over_the_environment_and_that_over_the_file(file: Path) -> None:
    file.write_text('target = "t"\nwindow = 7\n')
    assert serve.parser().parse(["--target", "t"], {}).window is None
    assert parse(file).window == 7  # type: ignore[attr-defined]
    assert parse(file, PACELINE_WINDOW="6").window == 6  # type: ignore[attr-defined]
    assert parse(file, "--window", "5", PACELINE_WINDOW="6").window == 5  # type: ignore[attr-defined]


def test_a_commands_own_table_wins_over_what_all_commands_share(file: Path) -> None:
    file.write_text(
        'window = 7\nprompt = "of generate alone"\n[serve]\ntarget = "t"\nwindow = 8\n[generate]\nwindow = 9'
    )
    values = parse(file)
    assert (values.target, values.window) == ("t", 8)  # type: ignore[attr-defined]


def test_tables_of_benchmarks_are_theirs_and_their_names_are_checked(file: Path) -> None:
    file.write_text("[bench.serve]\nnum-prompts = 3\n[serve]\nwindow = 8")
    assert parse(file).window == 8  # type: ignore[attr-defined]
    file.write_text("[bench.sevre]\nnum-prompts = 3")
    with pytest.raises(InvalidInput, match=r"\[bench.sevre\].*did you mean bench serve"):
        parse(file)


def test_the_file_may_be_named_by_the_environment_and_none_is_read_that_was_not_named(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('target = "t"\nwindow = 7\n')
    monkeypatch.chdir(file.parent)
    assert serve.parser().parse([], {"PACELINE_CONFIG": str(file)}).window == 7
    with pytest.raises(UsageError, match="--target: is required"):
        serve._target(serve.parser().parse([], {}))


def test_values_of_every_shape(file: Path) -> None:
    file.write_text(
        'server = ["a:1", "b:2"]\n[generate]\nprompt = "x"\nstop = ["a", "b c"]\nignore_eos = true\ntop-p = 0.5\n'
        'length-policy = "fixed:length=3"\nlogit-bias = ["4:-1"]\n'
    )
    values = parsers()["generate"].parse(["--config", str(file)], {})
    assert values.server == ("a:1", "b:2")
    assert values.stop == ("a", "b c")
    assert values.ignore_eos is True
    assert (values.top_p, str(values.length_policy)) == (0.5, "fixed:length=3")
    assert values.logit_bias == ((4, -1.0),)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("wimdow = 3", ["paceline.toml: wimdow=3", "did you mean window?"]),
        ("[serve]\nwimdow = 3", ["[serve] wimdow=3", "did you mean window?"]),
        ("[serve]\nprompt = 'x'", ["[serve] prompt='x'", "is no option of paceline serve"]),
        ("[sevre]\nwindow = 3", ["[sevre]", "did you mean serve?"]),
        ("window = 'x'", ["paceline.toml: window='x'", "from 1 to 64"]),
        ("window = true", ["window='true'", "from 1 to 64"]),
        ("window = {a = 1}", ["is no command with options"]),
        ("[serve]\nwindow = 1979-05-27", ["must be a text, a number"]),
        ("window = ", ["--config=", "is no TOML"]),
        ("max-num-seqs = 1\nmax_num_seqs = 2", ["stands there twice"]),
        ("target = 'a'\nmodel = 'b'", ["model='b'", "is another name for target"]),
    ],
)
def test_what_is_wrong_in_a_file_names_the_file_and_the_key(text: str, parts: list[str], file: Path) -> None:
    file.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        parse(file)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"--config='.*none.toml': cannot be read"):
        read(str(tmp_path / "none.toml"), "serve")


def test_what_fails_after_parsing_says_where_its_value_came_from(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACELINE_TARGET", "./missing")
    assert main(["serve", "--num-drafters", "0"]) == 2
    assert capsys.readouterr().err.endswith("(from PACELINE_TARGET)\n")
    monkeypatch.delenv("PACELINE_TARGET")
    file.write_text('[serve]\ntarget = "./missing"')
    assert main(["serve", "--num-drafters", "0", "--config", str(file)]) == 2
    assert capsys.readouterr().err.endswith("paceline.toml: [serve] target)\n")
    assert main(["serve", "--num-drafters", "0", "--target", "./missing"]) == 2
    assert "(from" not in capsys.readouterr().err


@pytest.mark.parametrize("command", parsers())
def test_what_print_config_prints_is_a_file_that_says_the_same(
    command: str, file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACELINE_LOG_LEVEL", "error")
    assert main([*command.split(), "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"[{command.replace(' ', '.')}]\n")
    file.write_text(printed)
    assert main([*command.split(), "--config", str(file), "--print-config"]) == 0
    again = capsys.readouterr().out
    assert tomllib.loads(again) == tomllib.loads(printed)
    assert "# default" not in again, "what a file says came from the file"


def test_print_config_tells_the_source_and_no_secret(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("window = 7\n")
    monkeypatch.setenv("PACELINE_API_KEY", "a-key-of-many-characters")
    monkeypatch.setenv("PACELINE_MODE", "pearl")
    assert main(["serve", "--config", str(file), "--max-num-seqs", "3", "--print-config"]) == 0
    out = capsys.readouterr().out
    assert "max-num-seqs = 3  # --max-num-seqs\n" in out
    assert 'mode = "pearl"  # PACELINE_MODE\n' in out
    assert f"window = 7  # {file}: window\n" in out
    assert "# target =  # MODEL\n" in out
    assert "# api-key = …  # PACELINE_API_KEY; a secret is not printed\n" in out
    assert "a-key-of-many" not in out


VLLM_NAMES = (
    *("--model", "--tensor-parallel-size", "-tp", "--max-num-seqs", "--max-model-len", "--gpu-memory-utilization"),
    *("--host", "--port", "--api-key", "--served-model-name", "--max-num-batched-tokens", "--dtype", "--block-size"),
    *("--chat-template", "--enforce-eager", "--ssl-keyfile", "--ssl-certfile", "--revision"),
)


def test_serve_knows_what_vllm_calls_the_same() -> None:
    flags = {flag for option in serve.parser().options for flag in option.flags}
    assert set(VLLM_NAMES) <= flags
    values = serve.parser().parse(["--model", "t", "-tp", "2"], {})
    assert (values.target, values.tensor_parallel_size) == ("t", 2)
    assert serve.parser().parse([], {"PACELINE_MODEL": "m"}).target == "m"


def test_a_command_of_a_command_has_a_table_within_the_table(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('[ray.up]\nnum-cpus = 3\n[ray.status]\nname = "other"')
    assert parsers()["ray up"].parse(["--config", str(file)], {}).num_cpus == 3
    assert parsers()["ray status"].parse(["--config", str(file)], {}).name == "other"
    monkeypatch.setenv("PACELINE_NUM_CPUS", "4")
    assert main(["ray", "up", "--config", str(file), "--print-config"]) == 0
    assert "num-cpus = 4  # PACELINE_NUM_CPUS" in capsys.readouterr().out
    file.write_text("[ray.upp]\nnum-cpus = 3")
    with pytest.raises(InvalidInput, match=r"did you mean ray\.?.?up"):
        read(str(file), "ray up")
    file.write_text("[ray.up]\nnum-cpu = 3")
    with pytest.raises(InvalidInput, match="did you mean num-cpus"):
        read(str(file), "ray up")


def test_a_command_that_lacks_a_package_keeps_nobody_from_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "doctor", ("deploy.no_such_module", "run", ""))
    with pytest.raises(ModuleNotFoundError):  # one of ours is missing: a bug
        parsers()
    monkeypatch.setitem(COMMANDS, "doctor", ("no_such_package.doctor", "run", ""))
    assert "doctor" not in parsers()
    file.write_text("window = 7\n[doctor]\nwhatever = 1")
    assert parse(file).window == 7  # type: ignore[attr-defined]
    file.write_text("num-hops = 7")
    with pytest.raises(InvalidInput, match="num-hops=7: is no option of any command but perhaps of doctor, into whose"):
        parse(file)


def test_what_is_long_is_shown_by_both_of_its_ends(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"--config='/.*….*/none.toml': cannot be read"):
        read(str(tmp_path / ("far/" * 30) / "none.toml"), "serve")
