"""What readers of files and of the web share: which documents were refused and why, and text made clean."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

FRONT_MATTER = re.compile(r"---[ \t]*\n((?:.*\n)*?)(?:---|\.\.\.)[ \t]*(?:\n|\Z)")  # YAML at the head of Markdown
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]")  # a terminal would obey some of these


class Refused(Exception):
    """A document that is not read. The reason names nothing that is particular to it: refusals are counted by reason.
    `transient`: another attempt may succeed, so nothing follows about what is there."""

    def __init__(self, reason: str, transient: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.transient = transient


@dataclass
class Refusals:
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)  # reason -> what was first refused for it
    incomplete: str = ""  # why something could not be looked at; then nothing may be called gone

    def add(self, name: str, reason: str, transient: bool = False) -> None:
        self.counts[reason] += 1
        self.first.setdefault(reason, name)
        if transient:
            self.incomplete = self.incomplete or f"{to_refusal_line(name)}: {reason}"

    def lines(self) -> list[str]:
        return [
            f"{num:,} x {reason} (the first: {to_refusal_line(self.first[reason])})" for reason, num in self.by_number()
        ]

    def by_number(self) -> list[tuple[str, int]]:
        return sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))


def clean_document_text(text: str) -> str:
    """Lines end in a newline alone; control characters go; lone surrogates are replaced."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    return CONTROL.sub("", text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def to_refusal_line(text: str, width: int = 100) -> str:
    """One short line out of a foreign text."""
    line = " ".join(clean_document_text(text).split())
    return line if len(line) <= width else line[: width - 1] + "…"
