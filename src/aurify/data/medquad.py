"""MedQuAD (Ben Abacha and Demner-Fushman 2019) for an agent that retrieves: a knowledge base of its answers, and its
questions, each with the answer and the documents that hold it. Questions are held out by what they are about, so that
no disease stands on both sides. A few of those that are trained come with a search to imitate."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aurify.errors import UserError
from aurify.knowledge.chunking.chunk import ChunkOptions
from aurify.knowledge.knowledge_base import AddSummary, KnowledgeBase
from aurify.knowledge.types import Document
from aurify.rows.row import BadRow, Row
from aurify.rows.sources import open_rows
from aurify.tracking.jsonl import write_log

CHUNK_TOKENS = 253
COLUMNS = {
    "question": ("question", "Question"),
    "answer": ("answer", "Answer"),
    "focus": ("focus", "question_focus"),
    "type": ("question_type", "qtype"),
    "source": ("source", "document_source"),
}
SENTENCE = re.compile(r"(?<=[.!?])\s+")
SHORT_ANSWER = 240  # characters of an answer to imitate
TRAIN, HELDOUT, DEMONSTRATIONS = "train.jsonl", "heldout.jsonl", "demonstrations.jsonl"


@dataclass(frozen=True)
class Question:
    text: str
    focus: str
    type: str
    answer: str
    documents: tuple[str, ...]


@dataclass
class Medquad:
    documents: list[Document] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)  # rows, by the reason


def read_medquad(path: str, max_documents: int | None, seed: int) -> Medquad:
    """An answer that several rows give is one document. max_documents: that many, chosen by the seed."""
    made, rows = Medquad(), list[dict[str, str]]()
    for row in open_rows(path):
        if isinstance(row, BadRow):
            made.left_out["cannot be read"] += 1
        elif (values := find_medquad(row)) is None:
            made.left_out["without a question or an answer"] += 1
        else:
            rows.append(values)
    by_answer: dict[str, dict[str, str]] = {}
    for values in rows:
        by_answer.setdefault(values["answer"], values)
    if not by_answer:
        raise UserError(f"{path}: no row has a question and an answer; columns like {COLUMNS} are looked for")
    chosen = sorted(by_answer)
    if max_documents is not None and max_documents < len(chosen):
        chosen = sorted(random.Random(f"medquad/{seed}").sample(chosen, max_documents))
    ids = {answer: medquad_row_id(by_answer[answer]) for answer in chosen}
    made.documents = [write_medquad_document(ids[answer], by_answer[answer]) for answer in chosen]
    asked: dict[str, list[dict[str, str]]] = {}
    for values in rows:
        if values["answer"] in ids:
            asked.setdefault(values["question"], []).append(values)
        else:
            made.left_out["of a document that was not chosen"] += 1
    for text, same in asked.items():
        first, documents = same[0], dict.fromkeys(ids[values["answer"]] for values in same)
        made.questions.append(Question(text, first["focus"], first["type"], first["answer"], tuple(documents)))
    return made


def find_medquad(row: Row) -> dict[str, str] | None:
    found = {
        name: next((" ".join(row[c].split()) for c in columns if isinstance(row.get(c), str)), "")
        for name, columns in COLUMNS.items()
    }
    return found if found["question"] and found["answer"] else None


def medquad_row_id(values: dict[str, str]) -> str:
    """Stays the same whatever else is chosen."""
    name = re.sub(r"\W+", "-", f"{values['focus']} {values['type']}".lower()).strip("-") or "answer"
    return f"{name}-{hashlib.sha256(values['answer'].encode()).hexdigest()[:6]}"


def write_medquad_document(name: str, values: dict[str, str]) -> Document:
    title = ": ".join(filter(None, (values["focus"], values["type"])))
    metadata = {"source": values["source"]} if values["source"] else {}
    return Document(name, values["answer"], title, source="medquad", metadata=metadata)


def split_medquad_questions(
    questions: Sequence[Question], share: float, seed: int
) -> tuple[list[Question], list[Question]]:
    """Train and held out: about that share of what questions are about, both in a random order."""
    focuses = sorted({question.focus or question.text for question in questions})
    generator = random.Random(f"medquad/heldout/{seed}")
    chosen = set(generator.sample(focuses, round(len(focuses) * share)))
    sides: dict[bool, list[Question]] = {False: [], True: []}
    for question in questions:
        sides[(question.focus or question.text) in chosen].append(question)
    for side, name in ((False, "train"), (True, "held-out")):
        if not sides[side]:
            raise UserError(
                f"medquad: of {len(focuses)} topics a share of {share:g} leaves no {name} question; take more "
                "documents or another share"
            )
        generator.shuffle(sides[side])
    return sides[False], sides[True]


def make_medquad(
    path: str,
    folder: Path,
    *,
    max_documents: int | None = None,
    heldout_share: float = 0.1,
    num_demonstrations: int = 64,
    topk: int = 2,
    max_chars: int = 700,
    instructions: str,
    show: Callable[[str, int, int], str],
    seed: int = 0,
    progress: Callable[[AddSummary], None] | None = None,
) -> dict[str, Any]:
    """Writes `kb/`, train.jsonl, heldout.jsonl and demonstrations.jsonl, and returns counts. show: what the environment
    would put into a turn for a query, with so many passages and characters."""
    if not 0 < heldout_share < 1:
        raise UserError(f"medquad: a held-out share of {heldout_share:g}; it must lie between 0 and 1")
    made = read_medquad(path, max_documents, seed)
    train, heldout = split_medquad_questions(made.questions, heldout_share, seed)
    folder.mkdir(parents=True, exist_ok=True)
    kb = folder / "kb"
    base = KnowledgeBase.open(kb) if (kb / "settings.json").is_file() else create_medquad_kb(kb)
    base.remove(base.digests("medquad").keys() - {document.id for document in made.documents})
    added = base.add(made.documents, progress=progress)
    for name, questions in ((TRAIN, train), (HELDOUT, heldout)):
        write_log(folder / name, (write_medquad_question(question, instructions) for question in questions))
    shown = random.Random(f"medquad/demonstrations/{seed}").sample(train, min(num_demonstrations, len(train)))
    write_log(
        folder / DEMONSTRATIONS,
        (
            write_medquad_search(question, instructions, show(write_medquad_query(question), topk, max_chars))
            for question in shown
        ),
    )
    return {
        "documents": len(made.documents),
        "passages": sum(record.num_chunks for record in base.records()),
        "train": len(train),
        "heldout": len(heldout),
        "demonstrations": len(shown),
        "left_out": dict(made.left_out),
        "seconds": round(added.seconds, 1),
    }


def create_medquad_kb(folder: Path) -> KnowledgeBase:
    return KnowledgeBase.create(folder, chunking=ChunkOptions(max_tokens=CHUNK_TOKENS))


def write_medquad_question(question: Question, instructions: str) -> dict[str, Any]:
    prompt = instructions + question.text
    return {"prompt": prompt, "answer": question.answer, "documents": list(question.documents)}


def write_medquad_query(question: Question) -> str:
    return " ".join(filter(None, (question.focus, question.type))) or question.text


def write_medquad_search(question: Question, instructions: str, found: str) -> dict[str, Any]:
    """A search, what the environment answered, and the beginning of the right answer: its first sentences."""
    answer = ""
    for sentence in SENTENCE.split(question.answer):
        if answer and len(answer) + len(sentence) > SHORT_ANSWER:
            break
        answer = f"{answer} {sentence}".strip()
    said: list[dict[str, Any]] = [
        {"role": "user", "content": instructions + question.text},
        {"role": "assistant", "content": f"<search> {write_medquad_query(question)} </search>"},
        {"role": "assistant", "content": found, "weight": 0, "goes_on": True},
        {"role": "assistant", "content": f"<answer> {answer[: 2 * SHORT_ANSWER]} </answer>", "goes_on": True},
    ]
    return {"messages": said}
