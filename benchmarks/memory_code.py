"""The code of this repository as a knowledge base: 30 questions whose answers are functions, with our chunks and with
naive ones of a fixed size.

    python benchmarks/memory_code.py --work ../memory-code
    python benchmarks/memory_code.py --show rewards/math.py

memory_code.jsonl holds the questions; they were written before anything was measured. An answer is found if a passage
shares at least half of its lines, or of the function's, with the function. Naive chunks are 800 characters with
100 of overlap, under the same title. The folder of --work may be used again: what has not changed is not embedded
again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from aurify.evaluation.comparison import HEADINGS, list_measured_modes, measure_search
from aurify.evaluation.retrieval import Answer, Question, find_answer_ranks
from aurify.knowledge.chunking.chunk import ChunkOptions, chunk_document
from aurify.knowledge.chunking.outline import read_code_outline
from aurify.knowledge.embedding import load_embedder
from aurify.knowledge.knowledge_base import KnowledgeBase
from aurify.knowledge.types import Document, Embedder, Hit

HERE = Path(__file__).parent
SOURCE = HERE.parent / "src" / "aurify"
SIZE, OVERLAP = 800, 100  # characters of a naive chunk


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for the knowledge bases; a temporary one if not given")
    parser.add_argument("--show", metavar="FILE", help="only print how a file is cut, ours beside naive")
    args = parser.parse_args()

    embedder = load_embedder()
    if args.show:
        show(args.show, embedder)
        return
    questions = read_questions()
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        ours = fill(work / "ours", embedder, list(read_files()))
        print(f"{len(questions)} questions, {len(ours.digests())} files, {ours.store.num_chunks()} passages\n")
        show_table("ours", ours, questions)
        show_misses(ours, questions)
        naive = Naive(work / "naive", embedder)
        print(f"\nfixed size: {naive.store.num_chunks()} passages\n")
        show_table("fixed size", naive, questions)


def show_table(name: str, base: KnowledgeBase, questions: Sequence[Question]) -> None:
    print(f"| {' | '.join(HEADINGS)} |\n|---" + "|---:" * (len(HEADINGS) - 1) + "|")
    for mode, options in list_measured_modes(base.settings.search).items():
        found = measure_search(base, questions, f"{name}, {mode}", options, per_document=False, num_timed=30)
        print(f"| {' | '.join(found.to_row())} |", flush=True)


def read_files() -> Iterator[Document]:
    for path in sorted(SOURCE.rglob("*.py")):
        yield Document(path.relative_to(SOURCE).as_posix(), path.read_text(encoding="utf-8"), format="python")


def read_questions() -> list[Question]:
    """Functions are named in the file, and their lines looked up: they move, and their names stay."""
    lines = (HERE / "memory_code.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        Question(row["query"], (Answer(row["document"], find_lines(row["document"], row["symbol"])),))
        for row in map(json.loads, lines)
    ]


def find_lines(file: str, symbol: str) -> tuple[int, int]:
    stack = list(read_code_outline((SOURCE / file).read_text(encoding="utf-8"), "python").definitions)
    found = []
    while stack:
        definition = stack.pop()
        stack += definition.inside
        if definition.name == symbol:
            found.append((definition.first + 1, definition.end))
    if len(found) != 1:
        raise SystemExit(f"memory_code.jsonl: {file} defines {symbol} {len(found)} times; expected once")
    return found[0]


def fill(folder: Path, embedder: Embedder, documents: Sequence[Document], max_tokens: int = 256) -> KnowledgeBase:
    if (folder / "settings.json").exists():
        base = KnowledgeBase.open(folder, embedder)
    else:
        base = KnowledgeBase.create(folder, embedder, ChunkOptions(max_tokens=max_tokens))
    base.remove(base.digests().keys() - {document.id for document in documents})
    base.add(documents)
    return base


class Naive(KnowledgeBase):
    """Each window of each file is a document of its own; what is found is told by file and lines."""

    def __init__(self, folder: Path, embedder: Embedder) -> None:
        windows = [
            Document(f"{file.id}:{start}", text, title=file.id, metadata={"file": file.id, "line": line})
            for file in read_files()
            for start, line, text in cut_windows(file.text)
        ]
        base = fill(folder, embedder, windows)
        super().__init__(folder, base.settings, embedder)

    def search_many(self, *args, **options) -> list[list[Hit]]:  # type: ignore[no-untyped-def]
        return [[locate(hit) for hit in hits] for hits in super().search_many(*args, **options)]


def cut_windows(text: str) -> Iterator[tuple[int, int, str]]:
    """(start, line, text) of each window."""
    for start in range(0, max(1, len(text) - OVERLAP), SIZE - OVERLAP):
        if text[start : start + SIZE].strip():
            yield start, text.count("\n", 0, start) + 1, text[start : start + SIZE]


def locate(hit: Hit) -> Hit:
    before = int(hit.metadata["line"]) - 1
    chunk = replace(
        hit.chunk,
        document=str(hit.metadata["file"]),
        first_line=hit.chunk.first_line + before,
        last_line=hit.chunk.last_line + before,
    )
    return replace(hit, chunk=chunk)


def show_misses(base: KnowledgeBase, questions: Sequence[Question]) -> None:
    print("\nNot among the first five:\n")
    results = base.search_many([one.text for one in questions], 20, per_document=False)
    for question, hits in zip(questions, results, strict=True):
        found = find_answer_ranks(question, hits)
        if not found or found[0] > 5:
            best = f"{hits[0].chunk.document} {' > '.join(hits[0].chunk.breadcrumb)}".strip()
            print(f"- {question.text} (rank {found[0] if found else 'beyond 20'}; first is {best})")


def show(name: str, embedder: Embedder) -> None:
    text = (SOURCE / name).read_text(encoding="utf-8")
    for one in chunk_document(Document(name, text, format="python"), ChunkOptions(), embedder.count_tokens):
        begins = one.text.strip().splitlines()[0][:60]
        print(f"{one.first_line:4}-{one.last_line:<4} {one.kind:10} {' > '.join(one.breadcrumb):30} {begins}")
    print("\nfixed size")
    for _, line, window in cut_windows(text):
        lines = window.strip().splitlines()
        print(f"{line:4}-{line + window.count(chr(10)):<4} {lines[0][:50]!r} ... {lines[-1][-50:]!r}")


if __name__ == "__main__":
    main()
