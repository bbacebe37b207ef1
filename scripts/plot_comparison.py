"""Draws what `examples/guided.py` and `examples/replay.py` wrote with --log or --out: one curve a method, mean and
range over seeds.

    python scripts/plot_comparison.py docs/data/replay.json docs/replay.svg --y replay/success_rate_fresh reward/mean
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--x", default="sampled", help="tokens: sampled or trained")
    parser.add_argument("--y", nargs="+", default=["reward/mean"], help="the first of these that a step has")
    parser.add_argument("--bins", type=int, default=8)
    args = parser.parse_args()

    text = args.log.read_text(encoding="utf-8")
    runs = json.loads(text)["runs"] if args.log.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    width = max(point[args.x] for run in runs for point in run["curve"]) / args.bins
    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    for method in dict.fromkeys(run["method"] for run in runs):
        curves = [binned(run["curve"], args.x, args.y, width) for run in runs if run["method"] == method]
        shared = sorted(set.intersection(*map(set, curves)))
        if not shared:
            print(f"{method}: no {args.y[0]} in its log")
            continue
        places = [(place + 0.5) * width for place in shared]
        columns = [[curve[place] for curve in curves] for place in shared]
        [line] = axes.plot(places, [sum(c) / len(c) for c in columns], label=method)
        low, high = zip(*((min(c), max(c)) for c in columns), strict=True)
        axes.fill_between(places, low, high, color=line.get_color(), alpha=0.15)
    axes.set(xlabel=f"tokens {args.x}", ylabel=args.y[-1], ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(args.picture, metadata={"Date": None})


def binned(curve: list[dict[str, float]], x: str, names: list[str], width: float) -> dict[int, float]:
    """Bin -> mean of its points."""
    bins: dict[int, list[float]] = {}
    for point in curve:
        if y := next((name for name in names if name in point), None):
            bins.setdefault(int(point[x] // width), []).append(point[y])
    return {place: sum(values) / len(values) for place, values in bins.items()}


if __name__ == "__main__":
    main()
