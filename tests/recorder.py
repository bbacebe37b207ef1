"""Stands where a loop wants a tracker, and remembers what it was told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from aurify.types import Group


@dataclass
class Recorder:
    rows: list[dict[str, float]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def start(self, total: int, start: int) -> None:
        self.first = start

    def step(self, step: int, metrics: dict[str, float]) -> None:
        self.rows.append({"step": step, **metrics})

    def samples(self, step: int, groups: list[Group]) -> None:
        pass

    def event(self, text: str, **_: Any) -> None:
        self.texts.append(text)
