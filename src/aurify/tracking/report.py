"""report.html: a run on one page, made from its files alone, so that it can be made again at any time. No network, no script."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from aurify.tracking import jsonl
from aurify.tracking.console import number
from aurify.tracking.plot import histograms, line_chart
from aurify.tracking.run_folder import INFO, RunFolder, StageFolder

CURVES = {  # in this order; what a stage does not have is left out
    "reward/mean": "Reward",
    "reward/accuracy": "Pair accuracy",
    "reward/margin": "Reward margin",
    "reward/gap": "Score gap",
    "loss": "Loss",
    "rollout/length": "Completion length (tokens)",
    "loss/kl": "KL to the reference",
    "loss/entropy": "Entropy",
    "loss/sampler_gap": "Sampler against trainer, |log p|",
    "optim/grad_norm": "Gradient norm",
    "optim/lr": "Learning rate",
    "time/tokens_per_second": "Tokens a second",
    "time/sampled_per_second": "Sampled tokens a second",
    "memory/peak_gb": "Peak memory (GiB)",
}
NUM_TRANSCRIPTS = 6

STYLE = """
:root { --paper: #fbfaf7; --ink: #22211f; --dim: #77736b; --line: #e4e0d6; --card: #ffffff; --accent: #b7791f; --good: #2f7d4f; --bad: #b23b3b; }
@media (prefers-color-scheme: dark) { :root { --paper: #17171a; --ink: #e9e6df; --dim: #98938a; --line: #313136; --card: #1f1f23;
  --accent: #e0a94a; --good: #6cc08f; --bad: #e08080; } }
* { box-sizing: border-box } body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 80px }
h1 { font-size: 26px; margin: 0 } h2 { font-size: 20px; margin: 48px 0 4px; padding-top: 20px; border-top: 1px solid var(--line) }
h3 { font-size: 13px; color: var(--dim); font-weight: 600; text-transform: uppercase; letter-spacing: .06em; margin: 28px 0 10px }
p.dim, .dim { color: var(--dim); margin: 4px 0 } .good { color: var(--good) } .bad { color: var(--bad) }
table { border-collapse: collapse; width: 100%; margin-top: 20px; background: var(--card); border: 1px solid var(--line); border-radius: 8px }
th, td { padding: 9px 14px; text-align: left; border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums }
th { color: var(--dim); font-weight: 600; font-size: 13px } tr:last-child td { border-bottom: 0 } td.n, th.n { text-align: right }
.grid-of { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 16px }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 12px 4px }
figcaption { font-size: 13px; color: var(--dim); display: flex; justify-content: space-between } figcaption b { color: var(--ink) }
svg { width: 100%; display: block } .grid { stroke: var(--line) } .tick { fill: var(--dim); font-size: 10px }
.curve { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round } .raw { fill: none; stroke: var(--accent); opacity: .3 }
.dot, .cell { fill: var(--accent) }
details { background: var(--card); border: 1px solid var(--line); border-radius: 8px; margin: 8px 0; padding: 10px 14px }
summary { cursor: pointer; display: flex; gap: 14px } summary .q { flex: 1; overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
.turn { margin: 10px 0 0; padding-left: 12px; border-left: 3px solid var(--line); white-space: pre-wrap; overflow-wrap: anywhere }
.turn.assistant { border-color: var(--accent) } .turn b { display: block; font-size: 12px; color: var(--dim) }
code { font: 13px ui-monospace, monospace }
"""


def write_report(run: Path) -> Path:
    """Writes `report.html` into a run's folder and returns its path."""
    folder = RunFolder.open(run)
    results = folder.results()
    stages = "".join(stage_section(folder.stage(name), result) for name, result in results.items())
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(folder.name)} - Aurify</title><style>{STYLE}</style><main>{heading(folder)}{table(results)}{stages}</main></html>"
    )
    jsonl.replace_text(folder.report, page)
    return folder.report


def heading(folder: RunFolder) -> str:
    info = json.loads((folder.path / INFO).read_text()) if (folder.path / INFO).exists() else {}
    hardware, versions = info.get("hardware", {}), info.get("versions", {})
    parts = [
        info.get("started", ""),
        f"{hardware.get('cores', '?')} cores, {hardware.get('memory_gb', '?')} GB" + (f", {hardware['gpu']}" if "gpu" in hardware else ""),
        f"seed {info.get('seed')}",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]
    return f"<h1>{escape(folder.name)}</h1><p class='dim'>{escape(' · '.join(part for part in parts if part))}</p>"


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Held-out numbers before and after each stage."""
    rows = []
    for stage, result in results.items():
        before, after = result.get("before"), result.get("after")
        change = "" if before is None or after is None else f"{after - before:+.3f}"
        colour = "good" if change.startswith("+") else "bad"
        seconds = f"{result['seconds']:.0f} s" if "seconds" in result else ""
        cells = [escape(str(result.get(key, ""))) for key in ("method", "measure", "status")]
        rows.append(
            f"<tr><td><a href='#{escape(stage)}'>{escape(stage)}</a></td>"
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + f"<td class='n'>{number(before)}</td><td class='n'>{number(after)}</td><td class='n {colour}'>{change}</td><td class='n'>{seconds}</td></tr>"
        )
    head = "".join(f"<th>{h}</th>" for h in ("Stage", "Method", "Held-out number", "Status"))
    head += "".join(f"<th class='n'>{h}</th>" for h in ("Before", "After", "Change", "Time"))
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def stage_section(stage: StageFolder, result: Mapping[str, Any]) -> str:
    rows = jsonl.read(stage.metrics)
    charts = [
        line_chart(title, [row["step"] for row in known], [row[name] for row in known])
        for name, title in CURVES.items()
        if (known := [row for row in rows if name in row])
    ]
    samples = jsonl.read(stage.samples)
    by_step: dict[int, list[float]] = defaultdict(list)
    for sample in samples:
        if sample["reward"] is not None:
            by_step[sample["step"]].append(sample["reward"])
    if by_step:
        charts.insert(1, histograms("Rewards of sampled completions", sorted(by_step.items())))
    html = f"<h2 id='{escape(stage.name)}'>{escape(stage.name)}</h2><p class='dim'>{escape(str(result.get('method', '')))}, {len(rows)} steps</p>"
    if charts:
        html += f"<h3>Curves</h3><div class='grid-of'>{''.join(charts)}</div>"
    html += ledger_section(stage)
    if samples:
        html += f"<h3>Transcripts</h3>{''.join(map(transcript, chosen_samples(samples)))}"
    return html


def ledger_section(stage: StageFolder) -> str:
    """Sums over the stage: where every token and group went."""
    sums: dict[str, float] = defaultdict(float)
    for row in jsonl.read(stage.ledger):
        for name, value in row.items():
            if name not in ("step", "ledger/epoch"):
                sums[name] += value
    if not sums:
        return ""
    cells = "".join(
        f"<tr><td>{escape(name.removeprefix('ledger/').replace('_', ' '))}</td><td class='n'>{value:,.0f}</td></tr>"
        for name, value in sums.items()
    )
    return f"<details><summary><span class='q'>Ledger: what became of every token</span></summary><table>{cells}</table></details>"


def chosen_samples(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Best and worst of the first and of the last step that was written down, and some between."""
    steps = sorted({sample["step"] for sample in samples})
    chosen = []
    for step in {steps[0]: 0, steps[len(steps) // 2]: 0, steps[-1]: 0}:
        judged = sorted((s for s in samples if s["step"] == step and s["reward"] is not None), key=lambda s: s["reward"])
        if judged:
            chosen += [judged[-1], judged[0]] if len(judged) > 1 else judged
    return chosen[:NUM_TRANSCRIPTS]


def transcript(sample: Mapping[str, Any]) -> str:
    turns = "".join(
        f"<div class='turn {escape(message['role'])}'><b>{escape(message['role'])}</b>{escape(message['content'])}</div>"
        for message in sample["messages"]
    )
    breakdown = ", ".join(f"{name} {'-' if value is None else f'{value:.3g}'}" for name, value in sample["rewards"].items())
    question = next((m["content"] for m in sample["messages"] if m["role"] == "user"), sample["task"])
    answer = f" · answer: {sample['answer']}" if sample.get("answer") else ""
    reward = "-" if sample["reward"] is None else f"{sample['reward']:.2f}"
    return (
        f"<details><summary><b>{reward}</b><span class='q'>{escape(question)}</span><span class='dim'>step {sample['step']}</span></summary>"
        f"<p class='dim'>{escape(breakdown + answer)} · {sample['tokens']} tokens{' · truncated' if sample['truncated'] else ''}</p>{turns}</details>"
    )
