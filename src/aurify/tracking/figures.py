"""How numbers are written for people, the same on the console and in the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def format_heldout_number(value: float | None) -> str:
    """A held-out number."""
    return "-" if value is None else f"{value:.3f}"


def format_heldout_error(details: Mapping[str, Any]) -> str:
    """The standard error of a held-out number; empty where there is none."""
    return f"±{details['error']:.3f}" if details.get("error") else ""


def format_heldout_estimate(value: float, details: Mapping[str, Any]) -> str:
    """`0.312 ±0.041 (64), margin +0.210 ±0.013`: a held-out number, its error, of how many, and its margin."""
    text = " ".join(filter(None, (format_heldout_number(value), format_heldout_error(details))))
    text += f" ({details['num']:,})" if "num" in details else ""
    return text + (f", margin {details['margin']:+.3f} ±{details['margin_error']:.3f}" if "margin" in details else "")


def judge_heldout_change(result: Mapping[str, Any]) -> tuple[float | None, str]:
    """How far a stage moved its held-out number, and whether that is "better", "worse" or "same": no more than its
    standard error. A loss improves when it falls."""
    before, after = result.get("before"), result.get("after")
    if before is None or after is None:
        return None, "same"
    errors = [(result.get(f"details_{when}") or {}).get("error", 0.0) for when in ("before", "after")]
    change = after - before
    if abs(change) < max(5e-4, math.hypot(*errors)) or not math.isfinite(change):
        return change, "same"
    return change, "better" if (change > 0) != is_heldout_loss(result) else "worse"


def is_heldout_loss(result: Mapping[str, Any]) -> bool:
    return str(result.get("measure", "")).endswith("loss")


def is_heldout_share(result: Mapping[str, Any]) -> bool:
    """Whether the held-out number goes from 0 to 1, with 1 the best."""
    known = [value for key in ("before", "after") if (value := result.get(key)) is not None]
    return bool(known) and not is_heldout_loss(result) and all(0 <= value <= 1 for value in known)


def format_short_number(value: float) -> str:
    """Three or four digits that say the size: 0.0123, 12.3, 1234, 65.3k, 1.2M, 3e-5."""
    size = abs(value)
    if not math.isfinite(value):
        return str(value)
    for limit, unit, suffix in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if size >= limit:
            return f"{value / unit:.3g}{suffix}"
    if size >= 1000:
        return f"{value:.0f}"
    if size and size < 1e-3:
        mantissa, _, exponent = f"{value:.2g}".partition("e")
        return f"{mantissa}e{int(exponent)}" if exponent else mantissa
    return f"{value:.3g}"


def format_duration(seconds: float) -> str:
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


Cells = tuple[list[str], list[list[str]]]  # headings, and rows below them


def list_evaluation_cells(rows: Sequence[Mapping[str, Any]]) -> Cells:
    """The numbers of an evaluation, one row a model and task."""
    rates = [(key, k) for key in ("pass_at", "majority_at") for k in collect_answer_counts(rows, key)]
    heads = ["model", "task", "measure", "value", "of", *(f"{key.removesuffix('_at')}@{k}" for key, k in rates)]
    lines = []
    for row in rows:
        line = [str(row["model"]), str(row["task"]), str(row["measure"]), format_rate(row), f"{row['num']:,}"]
        lines.append([*line, *(format_rate(row.get(key, {}).get(k)) for key, k in rates)])
    return heads, lines


def collect_answer_counts(rows: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    """The k of pass@k or majority@k that some row has."""
    return sorted({k for row in rows for k in row.get(key, {}) if key == "pass_at" or k != "1"}, key=int)


def format_rate(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None:
        return ""
    return " ".join(filter(None, (format_heldout_number(estimate["value"]), format_heldout_error(estimate))))


def list_comparison_cells(comparisons: Sequence[Mapping[str, Any]]) -> Cells:
    """What two models differ by on the same questions."""
    heads = ["task", "measure", "model", "less", "difference", "better", "worse", "sign test p"]
    lines = []
    for row in comparisons:
        counts = [str(row["num_better"]), str(row["num_worse"]), f"{row['p']:.2g}"]
        difference = f"{row['difference']:+.3f} ±{row['error']:.3f}"
        lines.append([row["task"], row["measure"], row["second"], row["first"], difference, *counts])
    return heads, lines
