"""Answers on a terminal: each token in the colour of where it came from, and one line of figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from paceline.client import Chunk
from paceline.types import Source

STYLES = {
    Source.ACCEPTED: "green",
    Source.RECOVERED: "yellow",
    Source.BONUS: "cyan",
    Source.SELF_DECODED: "magenta",
}
_MEANING = {
    Source.ACCEPTED: "drafted and accepted",
    Source.RECOVERED: "recovered: the target's own in place of a rejected one",
    Source.BONUS: "bonus: the target's own after a whole draft",
    Source.SELF_DECODED: "self-decoded: no draft was tested",
}
# What a terminal would obey instead of show; a model may write anything.
_CONTROL = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)], "\N{REPLACEMENT CHARACTER}")


def legend() -> Text:
    text = Text("colours: ")
    for source, style in STYLES.items():
        text.append(_MEANING[source], style).append("  ")
    return text


class Painter:
    """Writes one answer as it comes. Off a terminal the text goes out as it is."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last: Source | None = None
        self._is_empty = True

    def push(self, chunk: Chunk) -> None:
        if not self._console.is_terminal:
            self._write(chunk.text)
            return
        text = Text()
        at = 0
        for source, length in zip(chunk.sources, chunk.text_lengths, strict=False):
            self._append(text, chunk.text[at : at + length], source)
            at += length
            self._last = source
        # What was held back because it might have become a stop string belongs to the last token.
        self._append(text, chunk.text[at:], self._last)
        if text:
            self._is_empty = False
            self._console.print(text, end="", soft_wrap=True)

    def finish(self) -> None:
        if self._console.is_terminal:
            self._console.print()
        else:
            self._write("\n")

    def _write(self, text: str) -> None:
        if text:
            self._console.file.write(text)
            self._console.file.flush()

    def _append(self, text: Text, piece: str, source: Source | None) -> None:
        if self._is_empty and not text:
            piece = piece.lstrip(" ")  # the space between prompt and answer
        text.append(piece.translate(_CONTROL), STYLES[source] if source else None)


def summary(metrics: Mapping[str, Any], finish_reason: str) -> str:
    """One line: how fast, and what drafting brought."""
    tokens, e2e_s = metrics["num_generated_tokens"], metrics["e2e_ms"] / 1e3
    parts = [f"{tokens} tokens in {e2e_s:.2f} s" + (f" ({tokens / e2e_s:.0f} tokens/s)" if e2e_s else "")]
    parts.append(f"first after {metrics['ttft_ms']:.0f} ms")
    parts.append(f"mode {metrics['mode']}, rule {metrics['rule']}")
    if metrics["mode"] != "off":
        parts.append(metrics["length_policy"])
        parts.append(f"accepted {metrics['num_accepted_tokens']} of {metrics['num_tested_tokens']} tested")
        if num_runs := metrics["num_branch_hits"] + metrics["num_branch_misses"]:
            parts.append(f"branches hit {metrics['num_branch_hits']} of {num_runs} rejections")
        parts.append(f"mean accepted length {metrics['mean_accepted_length']:.2f}")
        parts.append(f"overlap {metrics['overlap_share']:.0%}")
    parts += [f"{count} self-decoded: {reason}" for reason, count in sorted(metrics["fallbacks"].items())]
    parts.append(f"finished by {finish_reason}")
    return " · ".join(parts)
