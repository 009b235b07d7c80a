"""What a controller chooses from."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.types import Mode


@dataclass(frozen=True, slots=True)
class Choice:
    """A mode, tokens a draft, and drafts unverified at a time; both 0 in `off`."""

    mode: Mode
    length: int = 0
    window: int = 0


OFF = Choice(Mode.OFF)
FIRST = Choice(Mode.PEARL, 2, 4)  # before anything is known of the drafter
