"""Keys from a file, in force as soon as it changes."""

from __future__ import annotations

import hmac
import os
from pathlib import Path

import pytest

from paceline.api_keys import LOOK_AGAIN_S, ApiKeys, bearer, read_keys
from paceline.errors import InvalidInput

ALICE, BOB = "a" * 20, "b" * 20


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"# of the house\nalice:{ALICE}\n\n{BOB}\n")
    return path


def test_a_key_has_its_name_and_one_without_a_name_gets_one_that_tells_nothing(file: Path) -> None:
    keys = ApiKeys(file)
    assert keys.check(f"Bearer {ALICE}") == "alice"
    name = keys.check(f"bearer  {BOB} ")
    assert name is not None
    assert name.startswith("key-")
    assert BOB[:4] not in name


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Basic {ALICE}",
        ALICE,
        f"Bearer {ALICE}x",
        f"Bearer {ALICE[:-1]}",
        "Bearer " + "é" * 9,
    ],
)
def test_whatever_else_is_shown_is_no_key(file: Path, header: str | None) -> None:
    assert ApiKeys(file).check(header) is None


def test_every_key_is_compared_with_in_constant_time(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    compare = hmac.compare_digest

    def counting(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return compare(one, other)

    keys = ApiKeys(file)
    monkeypatch.setattr("paceline.api_keys.hmac.compare_digest", counting)
    for key in (ALICE, BOB, "nobody's key at all"):
        compared.clear()
        keys.check(f"Bearer {key}")
        assert len(compared) == 2
        assert all(len(digest) == 32 for digest in compared), "hashes of one length, so that length tells nothing"


def test_a_changed_file_is_in_force_within_a_moment(file: Path) -> None:
    clock = Clock()
    keys = ApiKeys(file, clock)
    file.write_text(f"carol:{'c' * 20}\n")
    assert keys.check(f"Bearer {ALICE}") == "alice"
    clock.now_s = LOOK_AGAIN_S
    assert keys.check(f"Bearer {ALICE}") is None
    assert keys.check(f"Bearer {'c' * 20}") == "carol"


@pytest.mark.parametrize("harm", ["short", "gone"])
def test_a_file_that_has_become_wrong_changes_nothing_and_is_told_of(
    file: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    keys = ApiKeys(file, clock)
    if harm == "short":
        file.write_text("x:tooshort\n")
    else:
        os.unlink(file)
    clock.now_s = 2 * LOOK_AGAIN_S
    assert keys.check(f"Bearer {ALICE}") == "alice"
    assert "the former API keys stay in force" in caplog.text
    assert "tooshort" not in caplog.text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has 0 keys"),
        ("# nothing\n", "openssl rand"),
        ("short\n", "line 1"),
        (f"alice:{ALICE}\nalice:{BOB}\n", "line 2"),
        (f"two words:{ALICE}\n", "line 1"),
        ("a:b:" + "c" * 20, "line 1"),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_its_line_and_never_by_its_key(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / f"{'far/' * 20}keys"  # a long path is shortened, and what is wrong is not
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(InvalidInput, match=says) as caught:
        read_keys(path)
    assert ALICE not in str(caught.value)
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_keys(tmp_path / "none")


def test_a_key_that_no_header_can_carry_is_refused_before_it_is_sent() -> None:
    assert bearer(None) == ()
    assert bearer(ALICE) == (("authorization", f"Bearer {ALICE}"),)
    for key in ("", "two words", "line\nbreak", "clé"):
        with pytest.raises(InvalidInput, match="api_key"):
            bearer(key)
