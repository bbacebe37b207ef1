"""Thoughts as data sets hold them: beside the text, between tags in it, or with one of the tags missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aurify.rows.columns import THOUGHT, find_column
from aurify.rows.row import Row
from aurify.thoughts import CLOSINGS

OPENED = "a thought that only ends was given the tag that opens it"


def find_thought_column(values: Mapping[str, Any]) -> str:
    """The thought that stands beside a text, in a column of its own."""
    column = find_column(values, THOUGHT, str)
    return values[column] if column else ""


def join_think_tags(thought: str, content: str) -> str:
    return f"<think>\n{thought.strip()}\n</think>\n\n{content}" if thought else content


def settle_example_thought(row: Row, where: str, thought: str, content: str) -> str:
    """The answer with its thought, once. thought: what stands beside the content."""
    opened = next((tag for tag in CLOSINGS if content.lstrip().startswith(tag)), "")
    thought = strip_think_tags(thought)
    if opened and CLOSINGS[opened] not in content:
        kind = "a thought that never ends"
        raise row.bad(
            f"{where} begins with {opened} and has no {CLOSINGS[opened]}: {kind}; finish it or remove it", kind
        )
    if opened and thought:
        inner = content.lstrip()[len(opened) :].partition(CLOSINGS[opened])[0]
        if inner.split() != thought.split():
            kind = "a thought beside the text and another one in it"
            raise row.bad(f"{where} has {kind} ({thought[:40]!r}, {inner.strip()[:40]!r}); keep one of them", kind)
        return content
    if not opened and not thought and (tag := find_lonely_think_tag(content)):
        row.changes.append(OPENED)
        return f"{tag}\n{content.lstrip()}"
    return join_think_tags(thought, content)


def strip_think_tags(thought: str) -> str:
    """Some files write the tags into the column as well."""
    for opening, closing in CLOSINGS.items():
        thought = thought.strip().removeprefix(opening).removesuffix(closing)
    return thought.strip()


def find_lonely_think_tag(content: str) -> str:
    """The tag that is missing before one that ends a thought at the end of a line or the beginning of one; in the
    midst of a sentence it is spoken of."""
    for opening, closing in CLOSINGS.items():
        if opening not in content and content.count(closing) == 1:
            before, _, after = content.partition(closing)
            if before.strip() and (before.endswith("\n") or after.startswith(("\n", "\r"))):
                return opening
    return ""
