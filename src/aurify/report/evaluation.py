"""The page of an evaluation: all numbers in one table, what models differ by, and questions with the answers of each
model. It is made of the folder's files alone, and asks nothing of the network, as report.html of a run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aurify.files import replace_text
from aurify.report.conversation import clip_transcript
from aurify.report.markup import html_table, html_tag, html_text
from aurify.report.report import HERE, MARK, PAGE, draw_code, draw_fold, list_report_facts
from aurify.report.transcripts import draw_card, draw_pill, measure_token_heat
from aurify.tracking import jsonl
from aurify.tracking.figures import Cells, list_comparison_cells, list_evaluation_cells
from aurify.tracking.samples import split_sample_blocks

NUM_SHOWN = 40  # questions of a task on the page; the files have all
NUM_ANSWERS = 4  # of each model to a question
FACTS = ("started", "models", "tasks", "settings", "versions", "hardware")


def write_evaluation_page(folder: Path) -> Path:
    """Writes `report.html` into the folder of an evaluation and returns its path."""
    found = jsonl.read_run_file(folder / "results.json")
    rows, by_task = found["results"], defaultdict(list)
    for row in rows:
        if "answers" in row:
            by_task[row["task"]].append(row)
    title = " and ".join(dict.fromkeys(str(row["task"]) for row in rows))
    head = html_tag("nav", html_tag("div", MARK, html_tag("b", "Aurify")))
    line = html_tag("p", html_text(f"{folder.name} · {found.get('started', '')[:16].replace('T', ' ')}"), class_="dim")
    head += html_tag("header", html_tag("h1", html_text(title)), line, class_="top")
    facts = list_report_facts({name: found[name] for name in FACTS if name in found})
    origin = html_table([("", "dim"), ("", None)], [[html_text(key), html_text(value)] for key, value in facts])
    body = html_tag("h3", "Numbers", " ", html_tag("small", "± standard error"))
    body += draw_cells(list_evaluation_cells(rows))
    if comparisons := found.get("comparisons"):
        body += html_tag("h3", "On the same questions") + draw_cells(list_comparison_cells(comparisons))
        body += html_tag("p", html_text(EXPLAINED), class_="dim")
    body += "".join(draw_questions(folder, task, models) for task, models in by_task.items())
    body += html_tag("footer", html_tag("div", draw_fold("How it was asked, and on what", origin), class_="folds"))
    page = PAGE.format(
        title=html_text(f"{title} · {folder.name} · Aurify"),
        style=(HERE / "report.css").read_text(encoding="utf-8"),
        script="",
        body=head + html_tag("main", body),
    )
    replace_text(folder / "report.html", page)
    return folder / "report.html"


EXPLAINED = (
    "difference: what the model earns more than the other one, on average over questions; better, worse: on how many "
    "questions. p is that of the exact sign test (of McNemar, for answers that are right or wrong): how likely a split "
    "at least as uneven is where both are equally good. With many comparisons some p are small by chance."
)


def draw_cells(cells: Cells) -> str:
    heads, lines = cells
    columns = [(head, None) for head in heads]
    return html_tag("div", html_table(columns, [[*map(html_text, line)] for line in lines]), class_="scroll")


def draw_questions(folder: Path, task: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Questions of which the models make most different things come first, then those that earn least."""
    values = [[answers["value"] for answers in jsonl.read_log(folder / row["answers"])] for row in rows]
    by_question = list(zip(*values, strict=True))
    order = sorted(
        range(len(by_question)), key=lambda k: (min(by_question[k]) - max(by_question[k]), sum(by_question[k]))
    )
    chosen = set(order[:NUM_SHOWN])
    answers = [pick_questions(folder / row["answers"], chosen) for row in rows]
    every = [value for row in values for value in row]
    ends = (min(every), max(every))
    folds = (
        draw_question([row["model"] for row in rows], [known[index] for known in answers], ends)
        for index in order[:NUM_SHOWN]
    )
    few = f"{len(chosen)} of {len(by_question)} questions" + (", those that differ most first" if len(rows) > 1 else "")
    files = ", ".join(row["answers"] for row in rows)
    head = html_tag("h2", html_text(task)) + html_tag("p", html_text(f"{few}; all answers: {files}"), class_="dim")
    return html_tag("section", head, html_tag("div", *folds, class_="folds"))


def pick_questions(path: Path, chosen: set[int]) -> dict[int, Mapping[str, Any]]:
    return {index: row for index, row in enumerate(jsonl.read_log(path)) if index in chosen}


def draw_question(models: Sequence[str], rows: Sequence[Mapping[str, Any]], ends: tuple[float, float]) -> str:
    """A line with what each model earns, which opens to the answers."""
    pills = " ".join(draw_pill(f"{row['value']:.2f}", measure_token_heat(row["value"], *ends)) for row in rows)
    question = clip_transcript(rows[0]["question"][-1]["content"], 160)
    cards = (card for model, row in zip(models, rows, strict=True) for card in draw_answers(model, row, ends))
    return html_tag(
        "details",
        html_tag("summary", pills, " ", html_text(question)),
        draw_code(f"expected: {rows[0]['answer']}" if rows[0]["answer"] is not None else ""),
        html_tag("div", *cards, class_="pair"),
    )


def draw_answers(model: str, row: Mapping[str, Any], ends: tuple[float, float]) -> Iterator[str]:
    answers = row["answers"][:NUM_ANSWERS]
    for number, sample in enumerate(answers, 1):
        which = model if len(row["answers"]) == 1 else f"{model}, answer {number} of {len(row['answers'])}"
        yield draw_card(sample, split_sample_blocks(sample), which, ends, 0.0)
    if not answers:
        yield html_tag("article", html_text(f"{model}: no answer, it failed twice"))
