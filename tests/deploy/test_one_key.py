"""`--api-key` of a server: one key, as a file that is there while the server is."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from deploy.one_key import keys_file, settle
from deploy.roles import parser_coordinator
from paceline.api_keys import ApiKeys
from paceline.compatibility import check_options
from paceline.errors import InvalidInput

KEY = "a-key-of-many-characters"


def given(key: str | None) -> argparse.Namespace:
    return argparse.Namespace(api_key=key, api_keys=None)


def test_the_key_opens_the_door_and_no_other_user_can_read_it() -> None:
    values = given(KEY)
    with keys_file(values):
        path = Path(values.api_keys)
        assert ApiKeys(path).check(f"Bearer {KEY}")
        assert ApiKeys(path).check(f"Bearer {KEY}x") is None
        assert path.stat().st_mode & 0o077 == 0
    assert not path.exists()


def test_without_a_key_nothing_is_written() -> None:
    values = given(None)
    with keys_file(values):
        assert values.api_keys is None


@pytest.mark.parametrize("key", ["short", "two words of many characters", "with:a:colon:in:it:somewhere", "x" * 600])
def test_a_key_that_will_not_do_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(InvalidInput, match=r"--api-key='…'.*16 to 512") as caught, keys_file(given(key)):
        pass
    assert key not in str(caught.value)


def settled(argv: tuple[str, ...], environ: dict[str, str], file: Path, text: str) -> argparse.Namespace:
    file.write_text(text)
    values = parser_coordinator().parse(["--tokenizer", "x", "--config", str(file), *argv], environ)
    settle(values)
    check_options(values)
    return values


@pytest.mark.parametrize(
    ("argv", "environ", "text", "wins"),
    [
        (("--api-keys", "here"), {"PACELINE_API_KEY": KEY}, "", (None, "here")),
        (("--api-key", KEY), {"PACELINE_API_KEYS": "here"}, "", (KEY, None)),
        ((), {"PACELINE_API_KEY": KEY}, 'api-keys = "here"', (KEY, None)),
        ((), {"PACELINE_API_KEYS": "here"}, f'api-key = "{KEY}"', (None, "here")),
    ],
)
def test_of_a_key_and_a_file_of_keys_the_flag_wins_over_the_environment_and_that_over_the_file(
    argv: tuple[str, ...], environ: dict[str, str], text: str, wins: tuple[str | None, str | None], tmp_path: Path
) -> None:
    values = settled(argv, environ, tmp_path / "paceline.toml", text)
    assert (values.api_key, values.api_keys) == wins


@pytest.mark.parametrize(
    ("argv", "environ", "text"),
    [
        (("--api-key", KEY, "--api-keys", "here"), {}, ""),
        ((), {"PACELINE_API_KEY": KEY, "PACELINE_API_KEYS": "here"}, ""),
        ((), {}, f'api-key = "{KEY}"\n[coordinator]\napi-keys = "here"'),
    ],
)
def test_a_key_and_a_file_of_keys_from_the_same_source_are_refused(
    argv: tuple[str, ...], environ: dict[str, str], text: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match=r"--api-key='…'.*--api-keys"):
        settled(argv, environ, tmp_path / "paceline.toml", text)
