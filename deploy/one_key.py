"""`--api-key KEY` of a server: one key, kept as a file of keys that only this user may read.

Servers know keys by files (`paceline/api_keys.py`): what is on a command line every user of the machine can read, and a
child's is no better. So the key goes on as the name of a file, which is gone when the command ends.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deploy.options import rank_of
from paceline.api_keys import read_keys
from paceline.errors import InvalidInput


def settle(values: argparse.Namespace) -> None:
    """Keep the one of `--api-key` and `--api-keys` that wins: flag over environment over file.

    PACELINE_API_KEY is the clients' twin too, so it may well be set where a server is told its file of keys. Two of the
    same source are left, for `check_options` to refuse.
    """
    one, several = rank_of("--api-key"), rank_of("--api-keys")
    if one and several and one != several:
        setattr(values, "api_key" if one < several else "api_keys", None)


@contextlib.contextmanager
def keys_file(values: argparse.Namespace) -> Iterator[None]:
    """Meanwhile `values.api_keys` names a file that holds `values.api_key`, if that was given. Raises InvalidInput."""
    if values.api_key is None:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="paceline-") as folder:  # for this user alone, as its files are
        file = Path(folder) / "keys"
        file.touch(0o600)
        file.write_text(values.api_key + os.linesep)
        try:
            read_keys(file)
        except InvalidInput:  # it would name the file, which nobody has written
            fix = "must be one word of 16 to 512 characters without a colon; make one with: openssl rand -hex 24"
            raise InvalidInput("--api-key", "…", fix) from None
        values.api_keys = str(file)
        yield
