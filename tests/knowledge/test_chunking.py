"""Chunks: nothing lost, nothing too long, places that are true; and what holds for code and for prose alone."""

from __future__ import annotations

import random
import re
import time
from itertools import pairwise

import pytest

from aurify.errors import UserError
from aurify.knowledge.chunking.chunk import ChunkOptions, chunk_document
from aurify.knowledge.types import Chunk, Document

SPECIAL = 2  # tokens around each text, as BERT has them


def count_tokens(texts):
    """Like a word piece tokenizer: marks alone, words in parts of at most four letters."""
    return [SPECIAL + len(re.findall(r"\w{1,4}|[^\w\s]", text)) for text in texts]


def chunks_of(text: str, format: str = "text", title: str = "", **options: int) -> list[Chunk]:
    return chunk_document(
        Document("folder/name", text, title=title, format=format), ChunkOptions(**options), count_tokens
    )


def check(text: str, chunks: list[Chunk], max_tokens: int = 256) -> None:
    """Every promise that `Chunk` makes about places, that nothing is missing, and that an embedder sees all of it."""
    seen = [character.isspace() for character in text]
    for number, one in enumerate(chunks):
        assert one.index == number and one.text.strip()
        assert count_tokens([one.to_embedding_text()])[0] <= max_tokens, one
        assert count_tokens([one.text])[0] - SPECIAL <= one.num_tokens <= max_tokens, one
        if one.kind == "anchor":
            continue
        assert one.text == text[one.start : one.end]
        assert one.first_line == text.count("\n", 0, one.start) + 1
        assert one.last_line == text.count("\n", 0, one.end - 1) + 1
        seen[one.start : one.end] = [True] * (one.end - one.start)
    assert all(seen), text[seen.index(False) :][:80]


SOURCES = {
    "python": (
        'import os\n\n\n@cache\nclass Shelf(Base):\n    """Holds books."""\n\n    size = 3\n\n'
        "    async def put(self, book):\n        return os.path.join(book)\n\n    def take(self):\n        pass\n",
        ["Shelf", "Shelf.put", "Shelf.take"],
    ),
    "javascript": (
        "import x from 'y';\n\n/** Adds. */\nexport const add = (a, b) => a + b;\n\nfunction* count() {}\n\n"
        "class Shelf {\n  #put() { return 1; }\n  static take = () => 2;\n}\nmodule.exports.last = function () {};\n",
        ["add", "count", "Shelf", "Shelf.#put", "Shelf.take", "module.exports.last"],
    ),
    "typescript": (
        "interface Book { title: string }\ntype Name = string;\nenum Kind { A }\nnamespace inner {\n"
        "  export function find(): void {}\n}\nexport abstract class Shelf<T> {\n  abstract size(): number;\n"
        "  put(book: T): void {}\n}\n",
        ["Book", "Name", "Kind", "inner", "inner.find", "Shelf", "Shelf.put"],
    ),
    "tsx": ("export const Page = () => <p>text</p>;\nfunction Other() { return <b/>; }\n", ["Page", "Other"]),
    "go": (
        'package a\n\nimport "fmt"\n\n// Shelf holds books.\ntype Shelf[T any] struct {\n\tsize int\n}\n\n'
        "func (s *Shelf[T]) Put(book T) error {\n\treturn nil\n}\n\nfunc New() {}\n",
        ["Shelf", "Shelf.Put", "New"],
    ),
    "rust": (
        "use std::fmt;\n\n/// Holds books.\n#[derive(Clone)]\npub struct Shelf { size: u8 }\n\n"
        "impl<T> Show for Shelf<T> {\n    fn fmt(&self) {}\n}\n\nimpl Shelf { fn put(&self) {} }\n\n"
        "mod inner { fn holds() {} }\nmacro_rules! shelf { () => {} }\n",
        ["Shelf", "Show for Shelf<T>", "Show for Shelf<T>.fmt", "Shelf", "Shelf.put", "inner", "inner.holds", "shelf"],
    ),
    "java": (
        "package a;\nimport b.c;\n\n/** Holds books. */\npublic class Shelf {\n  Shelf() {}\n"
        "  int put() { return 1; }\n  enum Kind { A; }\n  record Pair(int a) {}\n}\ninterface Other { void go(); }\n",
        ["Shelf", "Shelf.Shelf", "Shelf.put", "Shelf.Kind", "Shelf.Pair", "Other", "Other.go"],
    ),
    "c": (
        "#include <a.h>\n\nstruct shelf { int size; };\ntypedef struct { int a; } pair;\nenum kind { A };\n"
        "#define MAX(a) (a)\n#ifdef X\nstatic char **names(struct shelf *one) { return 0; }\n#endif\n",
        ["shelf", "pair", "kind", "MAX", "names"],
    ),
    "cpp": (
        "#include <a>\nnamespace store {\ntemplate <class T>\nclass Shelf : Base {\n public:\n  ~Shelf() {}\n"
        "  int put() const { return 1; }\n};\n}\nint store::Shelf::take() { return 2; }\n",
        ["store", "store.Shelf", "store.Shelf.~Shelf", "store.Shelf.put", "store::Shelf::take"],
    ),
}


@pytest.mark.parametrize("format", SOURCES)
def test_definitions_of_each_language(format):
    text, names = SOURCES[format]
    chunks = chunks_of(text, format, max_tokens=1000, min_tokens=0)
    check(text, chunks, 1000)
    defined = re.findall(r"^defines (.*)$", chunks[0].text, re.MULTILINE)
    assert chunks[0].kind == "anchor" and defined == names
    found = [".".join(one.breadcrumb) for one in chunks if one.kind == "definition"]
    assert found == [name for name in names if name.rpartition(".")[0] not in names or format == "go"]


@pytest.mark.parametrize("format", SOURCES)
def test_small_windows_lose_nothing(format):
    text, _ = SOURCES[format]
    for max_tokens in (50, 64, 90):
        check(text, chunks_of(text, format, max_tokens=max_tokens, overlap=4, min_tokens=6), max_tokens)


def test_comments_and_decorators_stay_with_their_definition():
    text = "x = 1\n\n# Of shelves.\n# And books.\n@cache\ndef find():\n    pass\n\n# Apart.\n\ny = 2\n"
    chunks = chunks_of(text, "python", min_tokens=0)
    assert [one.text for one in chunks[1:]] == [
        "x = 1",
        "# Of shelves.\n# And books.\n@cache\ndef find():\n    pass",
        "# Apart.\n\ny = 2",
    ]


def test_a_large_class_becomes_its_methods_under_its_name():
    body = "\n".join(f"        value_{k} = compute(value_{k}, {k})" for k in range(12))
    methods = "\n\n".join(f"    def method_{k}(self):\n{body}" for k in range(3))
    text = f'class Shelf:\n    """Holds a great many books, in the order in which they came."""\n\n{methods}\n'
    chunks = chunks_of(text, "python", min_tokens=8)
    check(text, chunks)
    assert [one.breadcrumb for one in chunks[1:]] == [("Shelf",), *[("Shelf", f"method_{k}") for k in range(3)]]
    assert chunks[1].text.startswith("class Shelf:") and "method" not in chunks[1].text


def test_a_long_function_is_cut_with_overlap_and_remembers_how_it_began():
    lines = [f"    value_{k} = compute(value_{k}, {k})" for k in range(100)]
    text = "def long(values):\n" + "\n".join(lines) + "\n"
    chunks = chunks_of(text, "python", overlap=40)[1:]
    check(text, chunks_of(text, "python", overlap=40))
    assert len(chunks) > 5 and {one.breadcrumb for one in chunks} == {("long",)}
    assert [one.context for one in chunks] == ["", *["def long(values):"] * (len(chunks) - 1)]
    for one, after in pairwise(chunks):
        assert 1 <= one.last_line - after.first_line + 1 <= 3  # 13 tokens a line


def test_limits_of_lines_and_characters():
    text = "def long():\n" + "    a\n" * 200
    assert max(one.last_line - one.first_line + 1 for one in chunks_of(text, "python", max_lines=20)[1:]) <= 21
    text = "def long():\n" + f"    {'a' * 80}\n" * 50
    assert max(len(one.text) for one in chunks_of(text, "python", max_tokens=5000, max_chars=600)[1:]) <= 600


def test_small_definitions_share_a_chunk():
    text = "".join(f"def f{k}():\n    pass\n\n\n" for k in range(40))
    few, many = chunks_of(text, "python", min_tokens=32), chunks_of(text, "python", min_tokens=0)
    assert len(many) == 41 and len(few) < 15
    check(text, few)


@pytest.mark.parametrize(
    "text",
    [
        "def broken(:\n  )))) class\n" * 20,
        "x = [" + "[" * 5000 + "]" * 5000 + "]\n",
        "".join(f"{' ' * k}def f{k}():\n" for k in range(300)) + " " * 300 + "pass\n",
        "a" * 20_000,
        "x = 1\r\ndef f():\r\n    return 'ü€😀'\r\n" * 30,
        "x = '\x0c\x0b\u2028\x00'\ndef f(): pass\n" * 40,
        "x = '\udc80'\n" * 10,
        "\n\n\n   \n" + "def f():\n\n\n\n    pass",
        "é" * 3000 + "\n" + "def ö(): pass\n" * 100,
    ],
    ids=["broken", "nested", "deep", "one word", "crlf", "separators", "surrogate", "blank", "wide"],
)
@pytest.mark.parametrize("format", ["python", "text", "markdown"])
def test_odd_text_is_covered(text, format):
    check(text, chunks_of(text, format, max_chars=1000))


def test_nothing_gives_nothing():
    assert chunks_of("") == chunks_of(" \n\t\n", "python") == chunks_of("\n", "markdown") == []


def test_sections_of_markdown():
    words = "word " * 50
    text = (
        f"---\ntitle: Of shelves\n---\n# Shelves\n\n{words}\n\n## Wood\n{words}\n\n"
        f"```sh\n# no heading\n\n## none either\n```\n\nMetal\n-----\n{words}\n\n"
        f"### Steel ###\n\n{words}\n\n# Books\n{words}\n"
    )
    chunks = chunks_of(text, "markdown", title="Things", max_tokens=120)
    check(text, chunks, 120)
    found = list(dict.fromkeys(one.breadcrumb for one in chunks))
    shelves = ("Shelves",)
    assert found == [shelves, (*shelves, "Wood"), (*shelves, "Metal"), (*shelves, "Metal", "Steel"), ("Books",)]
    assert (
        next(one for one in chunks if "Steel" in one.breadcrumb)
        .to_embedding_text()
        .startswith("Things\nShelves > Metal > Steel\n### Steel ###\n\nword")
    )


def test_a_heading_does_not_stand_alone():
    text = "# Title\n\n## First\n\nSome words about the first.\n\n## Second\n\n" + "Other words. " * 60
    chunks = chunks_of(text, "markdown", max_tokens=100)
    check(text, chunks, 100)
    assert chunks[0].text.startswith("# Title") and "Some words" in chunks[0].text


def test_prose_is_cut_at_paragraphs_then_sentences_then_words():
    paragraphs = ["One two three. " * 8, "Four five six. " * 8, "Ten. " * 30, "Seven eight. " * 60, "nine " * 200]
    text = "\n\n".join(part.strip() for part in paragraphs)
    chunks = chunks_of(text, max_tokens=100, overlap=12, min_tokens=0)
    check(text, chunks, 100)
    assert chunks[0].text == "\n\n".join(part.strip() for part in paragraphs[:2])
    assert chunks[1].text.startswith(paragraphs[2].strip())
    middle = [one for one in chunks[2:] if "Seven" in one.text]
    assert len(middle) > 2 and all(one.text.startswith("Seven") and one.text.endswith("eight.") for one in middle[:-1])
    assert all(middle[k + 1].start < middle[k].end for k in range(len(middle) - 2))  # whole sentences twice
    assert any(set(one.text.split()) == {"nine"} for one in chunks)


def test_a_title_longer_than_the_window_leaves_room():
    chunks = chunks_of("word " * 300, title="title " * 500, max_tokens=64, overlap=8, min_tokens=8)
    assert 5 < len(chunks) < 30


def test_random_texts_are_covered():
    random.seed(0)
    parts = ["# head\n", "\n", "\n\n", "word ", "A sentence. ", "```\n", "    code\n", "---\n", "- item\n", "。"]
    parts += ["x" * 40, "def f():\n", "class A:\n", "    def g(self):\n", "        return 1\n", "@dec\n", "# note\n"]
    for _ in range(150):
        text = "".join(random.choices(parts, k=random.randrange(1, 120)))
        for format in ("text", "markdown", "python"):
            check(text, chunks_of(text, format, max_tokens=48, overlap=6, min_tokens=8), 48)


def test_large_documents_take_no_longer_a_chunk():
    begin = time.process_time()
    for format, text in (("text", "a " * 100_000), ("text", "a" * 200_000), ("python", "x = 1\n" * 30_000)):
        assert chunks_of(text, format)
    assert time.process_time() - begin < 10  # 1.5 here; all three would take minutes if each chunk looked at all text


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_tokens": 0}, "max_tokens: 0"), ({"overlap": 256}, "overlap: 256"), ({"min_tokens": -1}, "min_tokens")],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        ChunkOptions(**options)


def test_a_missing_grammar_names_the_extra(monkeypatch):
    from aurify.knowledge.chunking import outline

    monkeypatch.setitem(outline.LANGUAGES, "none", outline.Language("tree_sitter_none", "", ""))
    with pytest.raises(UserError, match=r"tree-sitter-none.*aurify\[memory\]"):
        chunks_of("x", "none")


def test_passages_of_code_are_embedded_with_what_their_file_and_class_are_for():
    filler = "".join(f"        value = compute({k})\n" for k in range(30))
    text = (
        '"""Keeps books in order. Long since.\n\nMore."""\n\nimport os\n\n\nclass Shelf:\n    """Holds books\n'
        f'    of wood. More."""\n\n    def put(self, book):\n{filler}\n    def take(self):\n{filler}\n'
        "\ndef free():\n    return os.name\n"
    )
    chunks = chunks_of(text, "python", min_tokens=0)
    check(text, chunks)
    contexts = {one.breadcrumb: one.context for one in reversed(chunks) if one.kind == "definition"}
    assert contexts[("Shelf",)] == contexts[("free",)] == "Keeps books in order."
    assert contexts[("Shelf", "take")] == "Keeps books in order.\nHolds books of wood."
    put = [one for one in chunks if one.breadcrumb == ("Shelf", "put")]
    assert put[0].to_embedding_text().splitlines()[:4] == [
        "folder/name", "Shelf > put", "Keeps books in order.", "Holds books of wood."
    ]  # fmt: skip
    assert len(put) > 1 and put[1].context.endswith("\ndef put(self, book):")


@pytest.mark.parametrize(
    ("format", "text", "expected"),
    [
        ("python", "#!/usr/bin/env python\n# Sorts shelves. Fast.\nimport os\n", "Sorts shelves."),
        ("python", "'''\nSorts\nshelves'''\nx = 1\n", "Sorts shelves"),
        ("python", "x = 1\n", ""),
        ("go", "// Copyright 2020 Somebody\n// Sorts.\npackage a\n", ""),
        ("java", "/*\n * Sorts shelves. Fast.\n */\nclass A {}\n", "Sorts shelves."),
        ("rust", "//! Sorts\n//! shelves.\n\nfn f() {}\n", "Sorts shelves."),
        ("c", "#include <a.h>\nint x;\n", ""),
        ("javascript", "// SPDX-License-Identifier: MIT\nf();\n", ""),
    ],
)
def test_what_a_file_is_for(format, text, expected):
    from aurify.knowledge.chunking.outline import read_code_outline

    assert read_code_outline(text, format).about == expected
