"""Names of the package: one meaning, one word."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import defaultdict
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "aurify"
FILES = sorted(SOURCE.rglob("*.py"))
# name -> why it may be there twice
SHARED = {
    "main": "where a program begins",
    "ingest": "the command calls the function",
    "search": "the command calls the function",
}
# names that end in `_of` and read as English; kind_of is imported by scripts of others under this name
ENGLISH = {"is_one_of", "kind_of", "unless_any_of"}


def find_namesakes(texts: dict[str, str]) -> dict[str, list[str]]:
    """Public functions that several modules define, with these modules."""
    modules: dict[str, list[str]] = defaultdict(list)
    for module, text in texts.items():
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                modules[node.name].append(module)
    return {name: found for name, found in modules.items() if len(found) > 1}


def find_vague(text: str) -> set[str]:
    """Names that end in `_of`, or that speak of a place: an index, a path, a slot or a position says which one."""
    names = {t.string for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.NAME}
    vague = {name for name in names if name.endswith("_of") or re.search(r"(^|_)places?(_|$)", name.lower())}
    return vague - ENGLISH


def test_a_name_has_one_meaning():
    found = find_namesakes({str(path.relative_to(SOURCE)): path.read_text() for path in FILES})
    assert {name: modules for name, modules in found.items() if name not in SHARED} == {}
    assert set(SHARED) <= set(found), "a name that is no longer shared needs no reason"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_name_is_vague(path):
    assert not find_vague(path.read_text())


def test_planted_names_are_found():
    texts = {"a.py": "def read(): ...", "b.py": "async def read(): ...\ndef _own(): ...", "c.py": "def _own(): ..."}
    assert find_namesakes(texts) == {"read": ["a.py", "b.py"]}
    assert find_vague("def length_of(place, in_place):\n    replaced = unless_any_of") == {
        "length_of",
        "place",
        "in_place",
    }
