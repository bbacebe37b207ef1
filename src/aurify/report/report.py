"""report.html: a run on one page, made from its files alone, so that it can be made again at any time.

The page asks nothing of the network: charts are SVG, style sheet and script stand inside, and a content security policy
forbids the rest. Whatever a model or a data set wrote is escaped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from aurify.files import replace_text
from aurify.report.curves import Rows, draw_learning_curves, draw_running_curves
from aurify.report.markup import html_table, html_tag, html_text
from aurify.report.plot import draw_dumbbell, draw_heat_map, draw_sparkline
from aurify.report.transcripts import draw_preference_pairs, draw_transcripts, gather_transcripts
from aurify.tracking import jsonl
from aurify.tracking.figures import (
    format_duration,
    format_heldout_error,
    format_heldout_number,
    format_short_number,
    is_heldout_share,
    judge_heldout_change,
)
from aurify.tracking.run_folder import RunFolder, StageFolder

HERE = Path(__file__).parent
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark"><title>{title}</title><style>{style}</style></head>
<body>{body}<script>{script}</script></body></html>
"""
# The alchemists' sign for gold
MARK = (
    '<svg class="mark" viewBox="0 0 24 24"><circle cx="12" cy="12" r="9.5"/>'
    '<circle class="point" cx="12" cy="12" r="2.6"/></svg>'
)
WHOLE = {  # ledger entry -> the one that it is a part of
    "ledger/groups_without_spread": "ledger/groups",
    "ledger/groups_mixing_versions": "ledger/groups",
    "ledger/trajectories_without_reward": "ledger/trajectories",
    "ledger/trajectories_masked": "ledger/trajectories",
}
Result = Mapping[str, Any]


def write_report(run: Path) -> Path:
    """Writes `report.html` into a run's folder and returns its path."""
    folder = RunFolder.open(run)
    recipe = yaml.safe_load(folder.recipe.read_text(encoding="utf-8")) or {}
    planned, found = recipe.get("stages") or {}, folder.results()
    names = dict.fromkeys([*planned, *found])
    results: dict[str, Result] = {name: {**found.get(name, {}), "status": folder.status(name)} for name in names}
    rows = {name: read_report_steps(folder.stage_folder(name)) for name in results}
    sections = (
        draw_stage(folder.stage_folder(name), result, rows[name], planned.get(name) or {}, folder.describe_legs(name))
        for name, result in results.items()
        if name in found or rows[name]
    )
    title = str(recipe.get("name") or folder.name)
    page = PAGE.format(
        title=html_text(f"{title} · {folder.name} · Aurify"),
        style=(HERE / "report.css").read_text(encoding="utf-8"),
        script=(HERE / "report.js").read_text(encoding="utf-8"),
        body=draw_heading(folder, recipe, title, list(results))
        + html_tag("main", draw_tiles(results, rows), draw_results(results), *sections, draw_origins(folder)),
    )
    replace_text(folder.report, page)
    return folder.report


def read_report_steps(stage: StageFolder) -> Rows:
    """Metrics, ledger entries and held-out numbers of each step together. Step 0 is the model as it came."""
    steps: dict[int, dict[str, Any]] = defaultdict(dict)
    for file in (stage.metrics, stage.ledger, stage.heldout):
        for row in jsonl.read_log(file):
            steps[row["step"]] |= row
    return [steps[step] for step in sorted(steps)]


# ---------------------------------------------------------------------- the top of the page


def draw_heading(folder: RunFolder, recipe: Mapping[str, Any], title: str, stages: Sequence[str]) -> str:
    started = jsonl.read_run_file(folder.info).get("started", "")[:16].replace("T", " ")
    facts = [folder.name, read_report_name(recipe.get("model")), read_report_name(recipe.get("task")), started]
    links = (html_tag("a", html_text(stage), href=f"#{stage}") for stage in stages)
    line = html_tag("p", html_text(" · ".join(fact for fact in facts if fact)), class_="dim")
    nav = html_tag("nav", html_tag("div", MARK, html_tag("b", "Aurify"), *links))
    return nav + html_tag("header", html_tag("h1", html_text(title)), line, class_="top")


def read_report_name(value: Any) -> str:
    """A model or a task is a name, or a mapping with a name and options."""
    return str((value.get("name") if isinstance(value, dict) else value) or "")


def draw_tiles(results: Mapping[str, Result], rows: Mapping[str, Rows]) -> str:
    every = [row for part in rows.values() for row in part]
    finished = sum(result["status"] == "finished" for result in results.values())
    facts = [(f"{finished} of {len(results)}", "stages finished")]
    if seconds := sum(result.get("seconds", 0) for result in results.values()):
        facts.append((format_duration(seconds), "for all stages"))
    for metric, label, together in (
        ("ledger/tokens_sampled", "tokens sampled", sum),
        ("ledger/tokens_trained", "tokens trained", sum),
        ("memory/peak_gb", "peak memory", max),
    ):
        if values := [row[metric] for row in every if row.get(metric) is not None]:
            unit = " GiB" if metric == "memory/peak_gb" else ""
            facts.append((format_short_number(together(values)) + unit, label))
    plain = (
        html_tag("div", html_tag("b", html_text(value)), html_tag("span", label), class_="tile")
        for value, label in facts
    )
    return html_tag("div", draw_headline(results), *plain, class_="tiles")


def draw_headline(results: Mapping[str, Result]) -> str:
    """The number that most stages report, before the first of them and after the last. It is not coloured as a success
    where the last stage lost some of it again."""
    whole = [result for result in results.values() if judge_heldout_change(result)[0] is not None]
    if not whole:
        return ""
    measures = [result["measure"] for result in whole]
    measure = max(dict.fromkeys(measures), key=measures.count)
    chain = [result for result in whole if result["measure"] == measure]
    first, last = chain[0], chain[-1]
    ends = {name: first.get(name) for name in ("measure", "before", "details_before")}
    ends |= {name: last.get(name) for name in ("after", "details_after")}
    task = read_report_name(last.get("task"))
    label = f"held-out {measure.removeprefix('held-out ')}" + (f" on {task}" if task else "") + ", before and after"
    worse = judge_heldout_change(last)[1] == "worse" and len(chain) > 1
    after = html_tag(
        "em", format_heldout_number(last["after"]), class_="same" if worse else judge_heldout_change(ends)[1]
    )
    error = html_tag("small", format_heldout_error(last.get("details_after") or {}))
    numbers = html_tag("b", format_heldout_number(first["before"]), " <i>→</i> ", after, " ", error)
    steps = " → ".join(format_heldout_number(last[when]) for when in ("before", "after"))
    fall = f"the last stage made it worse: {steps}"
    note = html_tag("span", fall, class_="worse") if worse else ""
    return html_tag("div", numbers, html_tag("span", html_text(label)), note, class_="tile lead")


def draw_results(results: Mapping[str, Result]) -> str:
    """Held-out numbers before and after each stage."""
    rows = []
    for stage, result in results.items():
        change, verdict = judge_heldout_change(result)
        details = result.get("details_after") or result.get("details_before") or {}
        measure = html_text(result.get("measure", ""))
        if "num" in details:
            measure += " " + html_tag("small", f"n = {details['num']:,}")
        if "margin" in details:
            measure += "<br>" + html_tag("small", "margin")
        shown = change is not None and is_heldout_share(result)
        rows.append(
            [
                html_tag("a", html_text(stage), href=f"#{stage}"),
                html_text(result.get("method", "")),
                html_text(result.get("model", "")),
                measure,
                draw_measured(result, "before"),
                draw_measured(result, "after"),
                "" if change is None else html_tag("span", f"{change:+.3f}", class_=verdict),
                draw_dumbbell(result["before"], result["after"], verdict) if shown else "",
                format_duration(result["seconds"]) if "seconds" in result else draw_badge(result),
            ]
        )
    head = [("Stage", None), ("Method", None), ("Starts from", "from-model"), ("Held-out number", None)]
    head += [("Before", "n"), ("After", "n"), ("Change", "n"), ("", None), ("Time", "n")]
    return html_tag("div", html_table(head, rows, class_="results"), class_="scroll")


def draw_measured(result: Result, when: str) -> str:
    """The number with its standard error; below it the margin of pairs, which the column before names."""
    value, details = result.get(when), result.get(f"details_{when}") or {}
    if value is None:
        return ""
    html = format_heldout_number(value) + (
        " " + html_tag("small", error) if (error := format_heldout_error(details)) else ""
    )
    if "margin" in details:
        html += "<br>" + html_tag("small", f"{details['margin']:+.3f} ±{details['margin_error']:.3f}")
    return html


def draw_badge(result: Result) -> str:
    return html_tag("span", html_text(result["status"]), class_=f"badge {result['status']}")


def draw_error(result: Result) -> str:
    """What ended a stage, the mend where it is known, and else where it happened."""
    error = result.get("error")
    if not error:
        return ""
    mend = html_tag("p", html_text(error["mend"])) if "mend" in error else ""
    return html_tag(
        "div", html_tag("p", html_text(error["text"])), mend, draw_code(error.get("traceback", "")), class_="error"
    )


# ---------------------------------------------------------------------- a stage


def draw_stage(
    stage: StageFolder, result: Result, rows: Rows, options: Mapping[str, Any], legs: Sequence[str] = ()
) -> str:
    """legs: with what other options it went on."""
    samples = gather_transcripts(jsonl.read_log(stage.samples))
    charts = draw_learning_curves(rows)
    if samples.rewards:
        charts.insert(1, draw_heat_map("Rewards of the completions", samples.columns))
    num_steps = sum(row["step"] > 0 for row in rows)
    facts = [result.get("method"), f"from {result['model']}" if result.get("model") else None, f"{num_steps} steps"]
    facts.append(format_duration(result["seconds"]) if "seconds" in result else None)
    line = html_text(" · ".join(fact for fact in facts if fact))
    if result["status"] != "finished":
        line += " " + draw_badge(result)
    if result["status"] in ("interrupted", "failed", "killed"):
        line += " " + html_text(f"aurify train --resume {stage.path.parent.name} goes on with it")
    html = html_tag("h2", html_text(stage.name)) + html_tag("p", line, class_="dim")
    html += (
        "".join(html_tag("p", html_text(leg), class_="dim") for leg in legs) + draw_error(result) + draw_grid(charts)
    )
    if samples.rewards:
        html += html_tag("h3", "What it wrote") + draw_transcripts(samples)
    elif examples := list(islice(jsonl.read_log(stage.path / "pairs.jsonl"), 3)):
        html += html_tag("h3", "Pairs it learned from") + draw_preference_pairs(examples)
    events = stage.events.read_text(encoding="utf-8", errors="replace") if stage.events.exists() else ""
    settings = yaml.safe_dump(dict(options), sort_keys=False, allow_unicode=True)
    html += html_tag(
        "div",
        draw_fold("Speed, memory and optimiser", draw_grid(draw_running_curves(rows))),
        draw_fold("Ledger: what became of tokens, groups and rewards", draw_ledger(rows)),
        draw_fold("Settings", draw_code(settings if options else "")),
        draw_fold("Events", draw_code(events)),
        class_="folds",
    )
    return html_tag("section", html, id=stage.name)


def draw_grid(charts: Sequence[str]) -> str:
    return html_tag("div", *charts, class_="charts") if charts else ""


def draw_ledger(rows: Rows) -> str:
    """Sums over the stage, and how they went."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            if name.startswith("ledger/") and name != "ledger/epoch" and value is not None:
                values[name].append(value)
    lines = []
    for name, series in values.items():
        whole = sum(values.get(WHOLE.get(name, ""), ()))
        share = f"{sum(series) / whole:.1%} of {WHOLE[name].partition('/')[2]}" if whole else ""
        title, mean = name.partition("/")[2].replace("_", " "), format_short_number(sum(series) / len(series))
        lines.append([html_text(title), f"{sum(series):,.0f}", share, mean, draw_sparkline(series)])
    head = [("Entry", None), ("Sum", "n"), ("", "dim"), ("Mean of a step", "n"), ("Over the steps", None)]
    return html_table(head, lines) if lines else ""


def draw_fold(title: str, body: str) -> str:
    return html_tag("details", html_tag("summary", html_text(title)), body) if body else ""


def draw_code(words: str) -> str:
    return html_tag("pre", html_text(words.rstrip())) if words.strip() else ""


# ---------------------------------------------------------------------- the end of the page


def draw_origins(folder: RunFolder) -> str:
    """What is needed to run it again."""
    facts = [[html_text(key), html_text(value)] for key, value in list_report_facts(jsonl.read_run_file(folder.info))]
    folds = draw_fold("Recipe", draw_code(folder.recipe.read_text(encoding="utf-8")))
    folds += draw_fold("Versions and hardware", html_table([("", "dim"), ("", None)], facts) if facts else "")
    line = f"Made from the files of {folder.name}; aurify report {folder.name} makes it anew."
    return html_tag("footer", html_tag("div", folds, class_="folds"), html_tag("p", html_text(line), class_="dim"))


def list_report_facts(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if key == "checks":  # of packed rows: dozens of numbers, which stand in run_info.json
            continue
        if isinstance(value, dict):
            rows += list_report_facts(value, f"{prefix}{key} ")
        else:
            rows.append((f"{prefix}{key}", " ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return rows
