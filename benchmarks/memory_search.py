"""How well a knowledge base of MedQuAD's answers is searched: dense, BM25, fused in two ways, with a second stage.

    python benchmarks/memory_search.py ../shared/data/medquad/medquad.jsonl.gz --work ../bench-memory

The questions are the queries; answers alone are indexed, without their question or title. Right is every document that
answers this very question, in these words or in others. Fusion is tuned on one half of the questions and everything is
reported on the other. The second stage looks at 50 passages a question, which takes a second or two, so it is asked
--reranked questions only, and beside it stands what the first stage does on the same.

A run that was stopped goes on: documents that are stored are not embedded again, and results that are in --work stand.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aurify import config
from aurify.cli.kb_chart import draw_kb_chart
from aurify.evaluation.comparison import (
    HEADINGS,
    Measured,
    Progress,
    list_measured_modes,
    list_measured_stages,
    measure_fusions,
    measure_search,
)
from aurify.evaluation.retrieval import Answer, Question, split_retrieval_questions
from aurify.knowledge.knowledge_base import KnowledgeBase
from aurify.knowledge.rerank import load_reranker
from aurify.knowledge.search import SearchOptions
from aurify.knowledge.types import Reranker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="medquad.jsonl.gz: id, question, answer, ...")
    parser.add_argument("--work", type=Path, default=Path("bench-memory"), help="folder for everything that is made")
    parser.add_argument("--limit", type=int, help="only so many documents, drawn with a fixed seed")
    parser.add_argument("--rerank", default="maxsim:all-minilm-l6-v2", help="the second stage; none for none")
    parser.add_argument("--reranked", type=int, default=200, help="questions that the second stage is asked")
    parser.add_argument("--timed", type=int, default=200, help="questions asked one by one")
    args = parser.parse_args()

    args.work.mkdir(parents=True, exist_ok=True)
    rows = read_rows(args.file, args.limit)
    ingest(rows, args.work)
    base = KnowledgeBase.open(args.work / "kb")
    tuning, reported = split_retrieval_questions(build_questions(rows))
    results = Results(args.work / "results.json", {"documents": len(rows), "questions": len(reported)})
    best = tune_fusion(base, tuning, results)

    ways = {**list_measured_modes(SearchOptions()), "tuned": best}
    measured = [results.measure(base, reported, name, options, args.timed) for name, options in ways.items()]
    few, second = reported[: args.reranked], load_reranker(args.rerank)
    if second is not None:
        then = f"then {args.rerank.partition(':')[0]}"
        measured.append(results.measure(base, few, "tuned, same questions", best, 20))
        measured.append(results.measure(base, few, then, best, 20, second))
    report(args.work, rows, reported, few, best, measured)


def read_rows(path: Path, limit: int | None) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for number, entry in enumerate(rows):
        entry["key"] = f"{number:05}"  # the data set's own ids repeat
    return rows if limit is None else sorted(random.Random(0).sample(rows, limit), key=lambda entry: entry["key"])


def build_questions(rows: Sequence[dict[str, Any]]) -> list[Question]:
    """The same question is asked of several documents, and the same answer given in several."""
    by_question, by_answer = defaultdict(list), defaultdict(list)
    for entry in rows:
        by_question[entry["question"]].append(entry)
        by_answer[entry["answer"]].append(entry["key"])
    return [
        Question(text, tuple(Answer(key) for key in sorted({key for one in same for key in by_answer[one["answer"]]})))
        for text, same in by_question.items()
    ]


def ingest(rows: Sequence[dict[str, Any]], work: Path) -> None:
    """By the command that a person would use. Each call that added something leaves a line of counts."""
    file = work / "medquad.jsonl"
    lines = [{"id": entry["key"], "text": entry["answer"], "source": entry["source"]} for entry in rows]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    command = [sys.executable, "-m", "aurify.cli.main", "ingest", str(file), "--kb", str(work / "kb"), "--prune"]
    done = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, text=True, check=True)
    counts = json.loads(done.stdout)
    print(f"ingest: {done.stdout.strip()}", flush=True)
    if counts["new"] + counts["changed"]:
        with (work / "ingest.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(counts) + "\n")


class Results:
    """What was measured, kept as soon as it is there; dropped if it was measured on other data."""

    def __init__(self, path: Path, facts: dict[str, int]) -> None:
        self.path = path
        held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.held: dict[str, Any] = held if held.get("facts") == facts else {"facts": facts, "measured": {}}

    def measure(
        self,
        base: KnowledgeBase,
        questions: Sequence[Question],
        name: str,
        options: SearchOptions,
        num_timed: int,
        rerank: Reranker | None = None,
    ) -> Measured:
        if name not in self.held["measured"]:
            progress = count_aloud(name)
            found = measure_search(
                base, questions, name, options, rerank=rerank, num_timed=num_timed, progress=progress
            )
            self.held["measured"][name] = asdict(found)
            self.save()
        return config.build_options(Measured, self.held["measured"][name], str(self.path))

    def save(self) -> None:
        self.path.write_text(json.dumps(self.held), encoding="utf-8")


def tune_fusion(base: KnowledgeBase, questions: Sequence[Question], results: Results) -> SearchOptions:
    if "tuned" not in results.held:
        tried = measure_fusions(base, questions, progress=count_aloud("tuning"))
        results.held["tuned"] = asdict(tried[0][0])
        results.held["tried"] = [[options.describe(), found.mrr, found.recalls[4]] for options, found in tried]
        results.save()
    print("\n| fusion, on the tuning half | MRR@10 | recall@5 |\n|---|---:|---:|")
    for name, mrr, recall in results.held["tried"]:
        print(f"| {name} | {mrr:.3f} | {recall:.3f} |")
    best = config.build_options(SearchOptions, results.held["tuned"], str(results.path))
    base.remember(best)
    return best


def count_aloud(name: str) -> Progress:
    """A line on stderr now and then."""

    def progress(items: Sequence[Any]) -> Iterator[Any]:
        for number, item in enumerate(items):
            yield item
            if number * 10 // len(items) != (number + 1) * 10 // len(items):
                print(f"{name}: {number + 1} of {len(items)}", file=sys.stderr, flush=True)

    return progress


def report(
    work: Path,
    rows: Sequence[dict[str, Any]],
    reported: Sequence[Question],
    few: Sequence[Question],
    best: SearchOptions,
    measured: Sequence[Measured],
) -> None:
    lines = [
        f"{len(rows)} documents, {read_rate(work)}; {len(reported)} questions, none of them tuned on; the second stage "
        f"and the line above it: {len(few)} of them. Tuned: {best.describe()}.",
        "",
        f"| {' | '.join(HEADINGS)} |",
        "|---" + "|---:" * (len(HEADINGS) - 1) + "|",
        *(f"| {' | '.join(one.to_row())} |" for one in measured),
        "",
        "| stage | p50 ms | p95 ms |\n|---|---:|---:|",
        *(f"| {' | '.join(cells)} |" for cells in list_measured_stages(measured)),
        "",
    ]
    (work / "medquad.md").write_text("\n".join(lines), encoding="utf-8")
    complete = [one for one in measured if one.quality.num == len(reported)]
    (work / "medquad.svg").write_text(draw_kb_chart(complete), "utf-8")
    print("\n" + "\n".join(lines))


def read_rate(work: Path) -> str:
    """Over all calls that added something and came to their end."""
    log = work / "ingest.jsonl"
    entries = [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log.exists() else []
    seconds = sum(entry["seconds"] for entry in entries)
    return f"{sum(entry['new'] for entry in entries) / seconds:.1f} a second" if seconds else "stored before"


if __name__ == "__main__":
    main()
