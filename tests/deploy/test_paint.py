"""What reaches the terminal, and what does not."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from coordinator.core.metrics import RequestMetrics
from deploy.options import size
from deploy.paint import Painter, summary
from paceline.client import Chunk
from paceline.types import Source


def painted(*chunks: Chunk, terminal: bool = True, no_color: bool = False) -> str:
    file = io.StringIO()
    console = Console(
        file=file,
        force_terminal=terminal,
        color_system="standard" if terminal else None,
        no_color=no_color,
        highlight=False,
        markup=False,
        width=20,
    )
    painter = Painter(console)
    for chunk in chunks:
        painter.push(chunk)
    painter.finish()
    return file.getvalue()


def a_chunk(text: str, *tokens: tuple[Source, int]) -> Chunk:
    sources, lengths = tuple(source for source, _ in tokens), tuple(length for _, length in tokens)
    return Chunk(text, tuple(range(len(tokens))), sources, lengths, None, None, "")


def test_each_token_has_the_colour_of_its_source() -> None:
    text = painted(a_chunk("abc", (Source.ACCEPTED, 2), (Source.RECOVERED, 1)))
    assert text == "\x1b[32mab\x1b[0m\x1b[33mc\x1b[0m\n"


def test_text_that_was_held_back_has_the_colour_of_the_last_token() -> None:
    text = painted(a_chunk("a", (Source.BONUS, 1)), a_chunk("b"))
    assert text == "\x1b[36ma\x1b[0m\x1b[36mb\x1b[0m\n"


def test_a_model_cannot_send_the_terminal_commands() -> None:
    text = painted(a_chunk("\x1b[2Ja", (Source.BONUS, 5)), no_color=True)
    assert "\x1b[2J" not in text
    assert "\N{REPLACEMENT CHARACTER}[2Ja" in text


def test_no_color_is_honoured_and_long_text_is_not_wrapped() -> None:
    text = painted(a_chunk("a" * 50, (Source.BONUS, 50)), no_color=True)
    assert "\x1b[3" not in text
    assert "a" * 50 in text


def test_off_a_terminal_the_text_goes_out_as_it_is() -> None:
    assert painted(a_chunk(" \x1ba", (Source.BONUS, 3)), terminal=False) == " \x1ba\n"


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("7", 7), ("1KiB", 1024), ("1.5G", 1_500_000_000), ("2 MB", 2_000_000), ("1gib", 2**30)]
)
def test_sizes_are_read_in_the_usual_units(text: str, num_bytes: int) -> None:
    assert size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "0", "-1", "GiB", "1 PiB", "1e9"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="1GiB"):
        size(text)


def figures(mode: str, **changes: int) -> dict[str, Any]:
    """Of a request that has drafted 4 tokens in each of 5 drafts, of which the target kept 15."""
    counts = {"num_drafts": 5, "num_tested_tokens": 20, "num_accepted_tokens": 15, "num_generated_tokens": 20}
    metrics = RequestMetrics(mode, "match", "fixed:length=4", 4, 3, e2e_ms=500.0, ttft_ms=20.0)
    return metrics.figures() | (counts if mode != "off" else {}) | {"mean_accepted_length": 3.0} | changes


def test_the_line_of_figures_says_what_drafting_brought_in_every_mode_that_drafts() -> None:
    for mode in ("sequential", "pearl", "branch"):
        told = summary(figures(mode), "length")
        assert "accepted 15 of 20 tested" in told
        assert "mean accepted length 3.00" in told
        assert "overlap 0%" in told
        assert "branches" not in told, "no run has begun in mode branch"
    told = summary(figures("branch", num_branch_hits=3, num_branch_misses=1), "length")
    assert "branches hit 3 of 4 rejections · mean accepted length 3.00 · overlap" in told


def test_the_line_of_figures_says_nothing_of_drafts_where_there_are_none() -> None:
    told = summary(figures("off"), "stop")
    assert "mode off, rule match · finished by stop" in told
