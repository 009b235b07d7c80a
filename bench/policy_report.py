"""What the sweep prints: rows with the figures of each policy at its best, as JSON and as tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import grids, oracle
from bench.resample import interval
from bench.row import Row, Setting, quartiles, ratios
from bench.tuning import Group, Outcome

BASELINE = "fixed"  # what adaptive policies are held against

KEYS = """JSON (--json), one object:
  commit, machine, arguments     where and how this was measured
  cells[]                        one a ratio and temperature
    .ratio                       {wanted, reached, verify_ms, draft_ms, num_parameters}; null without --ratio;
                                 verifying is a pass over 7 tokens after 128 cached ones, drafting one over 1
    .served                      {verify_ms_per_pass, draft_ms_per_token, ratio} as the report's fixed drafts saw them
    .temperature, .num_prompts   of the report
    .rows[]                      mode, policy ("off", a policy's name or "oracle"), parameters, and the columns:
                                 tokens_per_s, speed_up and speed_up_quartiles (over off), over_fixed and
                                 over_fixed_interval (over the best fixed length of the mode; 95 %),
                                 accepted_per_draft, accepted_per_tested, wasted_tokens, wasted_per_drafted,
                                 mean_draft_length, passes_per_token, overlap_share, verify_ms_per_pass,
                                 draft_ms_per_token, fallbacks (self-decodes by reason), num_prompts;
                                 computed (true: not run)
    .tuning[]                    mode, policy, parameters, tokens_per_s, num_prompts: every point that was tried
    .calibration                 of the long drafts, offline: num_tested, num_drafts, entropy_accepted,
                                 entropy_rejected, auc {entropy, margin, top_prob}, by_entropy[] {from_nats, to_nats,
                                 num_tested, acceptance, num_drafts, accepted_length}; null if not made
    .left_out[]                  what there was no time for, in words
  rules[]                        with --rules: rule, length, accepted_per_draft, accepted_per_tested,
                                 block_efficiency (tokens a pass), over_token, over_token_interval, num_prompts,
                                 num_drafts, fallbacks
  left_out[]                     of the whole run, in words
speed_up and over_fixed are medians of ratios within a prompt (over_fixed 0.1: 10 % more); null: nothing drafted."""


def rows_of(outcome: Outcome, verify_ms_per_token: float) -> list[dict[str, Any]]:
    """The report's rows: plain decoding, each mode's policies, and each mode's oracle."""
    rows = [{"mode": "off", "policy": "off", "parameters": ""} | _over_off(outcome.off, outcome)]
    for mode in dict.fromkeys(mode for mode, _ in outcome.best):
        fixed = outcome.best.get((mode, BASELINE))
        for (of_mode, name), row in outcome.best.items():
            if of_mode == mode:
                entry = {"mode": mode, "policy": name, "parameters": row.setting.policy}
                rows.append(entry | _over_off(row, outcome) | _over_fixed(row, fixed))
        if outcome.long and outcome.long.total("num_drafts"):
            totals = oracle.Totals.of(outcome.long)
            found = oracle.bound(totals, verify_ms_per_token, hidden=mode == "pearl")
            rows.append({"mode": mode, "policy": "oracle", "parameters": outcome.long.setting.policy} | found)
    return rows


def _over_off(row: Row[Setting], outcome: Outcome) -> dict[str, Any]:
    first, median, third = quartiles(ratios(row, outcome.off))
    return row.figures() | {"speed_up": median, "speed_up_quartiles": [first, third]}


def _over_fixed(row: Row[Setting], fixed: Row[Setting] | None) -> dict[str, Any]:
    if fixed is None or fixed is row:
        return {}
    gains = [ratio - 1 for ratio in ratios(row, fixed)]
    return {"over_fixed": statistics.median(gains), "over_fixed_interval": interval(gains, statistics.median)}


def tuning_of(outcome: Outcome) -> list[dict[str, Any]]:
    return [
        {
            "mode": mode,
            "policy": name,
            "parameters": row.setting.policy,
            "tokens_per_s": row.tokens_per_s,
            "num_prompts": len(row.samples),
        }
        for (mode, name), points in outcome.tuned.items()
        for row in points
    ]


def served_of(best: Mapping[Group, Row[Setting]]) -> dict[str, Any] | None:
    """What a pass and a drafted token took in the served processes, where nothing else ran at the time."""
    row = best.get(("sequential", BASELINE)) or next(iter(best.values()), None)
    if row is None:
        return None
    figures = row.figures()
    verify_ms, draft_ms = figures["verify_ms_per_pass"], figures["draft_ms_per_token"]
    ratio = verify_ms / draft_ms if verify_ms and draft_ms else None
    return {"verify_ms_per_pass": verify_ms, "draft_ms_per_token": draft_ms, "ratio": ratio}


def rounded(value: Any) -> Any:
    """The document with floats of five significant digits, since more is noise; null for what is no number."""
    if isinstance(value, Mapping):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(entry) for entry in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def show_cell(cell: Mapping[str, Any], console: Console) -> None:
    table = Table(title=_title(cell))
    for column in ("policy", "tokens/s", "over off (quartiles)", "over fixed (95 %)"):
        table.add_column(column, justify="left" if column == "policy" else "right", no_wrap=True)
    for column in ("accepted/draft", "accepted/tested", "wasted", "draft length", "passes/token"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in cell["rows"]:
        names = ("accepted_per_draft", "accepted_per_tested", "wasted_tokens", "mean_draft_length", "passes_per_token")
        table.add_row(
            _name(row),
            f"{row['tokens_per_s']:.1f}",
            _spread(row.get("speed_up"), row.get("speed_up_quartiles"), "{:.2f}"),
            _spread(row.get("over_fixed"), row.get("over_fixed_interval"), "{:+.1%}"),
            *("" if row.get(key) is None else f"{row[key]:.{0 if key == 'wasted_tokens' else 2}f}" for key in names),
        )
    console.print(table)
    if cell["calibration"]:
        _show_calibration(cell["calibration"], console)
    for line in cell["left_out"]:
        console.print(f"left out: {line}", highlight=False)


def _name(row: Mapping[str, Any]) -> str:
    if row["policy"] == "off":
        return "off"
    if row["policy"] == "oracle":
        return f"{row['mode']} oracle, computed{', drafting hidden' if row['mode'] == 'pearl' else ''}"
    return f"{row['mode']} {grids.label(row['parameters'])}"


def _title(cell: Mapping[str, Any]) -> str:
    parts = [f"temperature {cell['temperature']:g}", f"{cell['num_prompts']} prompts, not those tuned on"]
    ratio, served = cell["ratio"], cell["served"]
    if ratio:
        parts.append(
            f"verify/draft wanted {ratio['wanted']:g}, reached {ratio['reached']:.1f} "
            f"({ratio['verify_ms']:.1f} / {ratio['draft_ms']:.2f} ms, {ratio['num_parameters'] / 1e6:.1f} M parameters)"
        )
    if served and served["ratio"]:
        parts.append(
            f"served {served['verify_ms_per_pass']:.1f} / {served['draft_ms_per_token']:.2f} ms = {served['ratio']:.1f}"
        )
    return "; ".join(parts)


def _spread(value: float | None, bounds: Sequence[float] | None, form: str) -> str:
    if value is None or bounds is None:
        return ""
    return f"{form.format(value)} ({form.format(bounds[0])} to {form.format(bounds[1])})"


def _show_calibration(found: Mapping[str, Any], console: Console) -> None:
    aucs = ", ".join(f"{name} {value:.3f}" for name, value in found["auc"].items() if value is not None)
    table = Table(title=f"{found['num_tested']} drafted tokens, rows computed offline; AUC for acceptance: {aucs}")
    for column in ("entropy (nats)", "tested", "accepted/tested", "drafts beginning there", "accepted length"):
        table.add_column(column, justify="right")
    for bucket in found["by_entropy"]:
        upper = "up" if bucket["to_nats"] is None else f"to {bucket['to_nats']:g}"
        table.add_row(
            f"{bucket['from_nats']:g} {upper}",
            str(bucket["num_tested"]),
            *_cells(bucket["acceptance"]),
            str(bucket["num_drafts"]),
            *_cells(bucket["accepted_length"]),
        )
    console.print(table)


def _cells(*values: float | None) -> tuple[str, ...]:
    return tuple("" if value is None else f"{value:.2f}" for value in values)


def show_rules(entries: Sequence[Mapping[str, Any]], temperature: float, console: Console) -> None:
    table = Table(title=f"rules, mode sequential, fixed lengths, temperature {temperature:g}")
    for column in ("length", "rule", "accepted/draft", "accepted/tested", "tokens/pass", "over token (95 %)", "drafts"):
        table.add_column(column, justify="right")
    for entry in entries:
        table.add_row(
            str(entry["length"]),
            entry["rule"],
            *_cells(entry["accepted_per_draft"], entry["accepted_per_tested"], entry["block_efficiency"]),
            _spread(entry.get("over_token"), entry.get("over_token_interval"), "{:+.1%}"),
            f"{entry['num_drafts']:.0f}",
        )
    console.print(table)
