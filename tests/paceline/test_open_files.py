"""A thousand connections need a thousand files."""

from __future__ import annotations

import subprocess
import sys

ASK = """
import resource
from paceline.open_files import allow_open_files
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 500))
print(allow_open_files(), allow_open_files(200), resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_the_limit_is_raised_as_far_as_it_goes_and_never_lowered() -> None:
    told = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True, timeout=30)
    assert told.stdout.split(maxsplit=2) == ["500", "500", "(500, 500)\n"]
