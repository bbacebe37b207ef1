"""A recipe in the making: what another library's config says, until each key is taken over or listed as left."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aurify.errors import UserError
from aurify.foreign_keys import KEYS, WITHOUT
from aurify.rows.row import Row
from aurify.rows.sources import load_rows

# parts that stand at the top of the recipe; all others stand in its stage
AT_THE_TOP = ("name", "seed", "model", "task", "lora", "engine", "sampler", "limits", "template_options", "evaluation")
ONLINE = ("grpo", "dr_grpo", "gspo", "cispo", "sapo", "vespo", "rloo")
SECRET = re.compile(r"token$|key|secret|password|webhook|credential", re.IGNORECASE)


@dataclass(frozen=True)
class Left:
    """A key that is not taken over."""

    key: str
    value: Any
    reason: str

    def __str__(self) -> str:
        value = "..." if SECRET.search(self.key) else " ".join(str(self.value).split())
        return f"{self.key}: {value if len(value) <= 60 else value[:57] + '...'} ({self.reason})"


@dataclass
class Draft:
    library: str  # as people write it
    method: str
    given: dict[str, Any]  # what is not looked at yet; keys without a value say nothing
    defaults: dict[str, Any] = field(default_factory=dict)  # of the library, where ours differ
    top: dict[str, Any] = field(default_factory=dict)
    stage: dict[str, Any] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict)  # key as `put` takes it -> what it was
    left: list[Left] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.defaults = dict(self.defaults)
        self.given = {str(key): value for key, value in self.given.items() if value is not None}

    @property
    def online(self) -> bool:
        return self.method in ONLINE

    def pop(self, key: str, otherwise: Any = None) -> Any:
        """The value of a key, its default in that library, or `otherwise`. It counts as looked at."""
        return self.given.pop(key, self.defaults.get(key, otherwise))

    def put(self, target: str, value: Any, origin: str) -> None:
        """Sets a key of the recipe, counted from the stage. origin: what its comment says."""
        first = target.partition(".")[0]
        here = self.top if first in AT_THE_TOP else self.stage
        *path, last = target.split(".")
        for part in path:
            here = here.setdefault(part, {})
        here[last] = value
        self.comments[target] = origin

    def take(self, key: str, target: str | None = None, change: Callable[[Any], Any] = lambda value: value) -> Any:
        """Takes a key over as it is, or changed. Returns its value."""
        origin = key if key in self.given else f"{key}, the default of {self.library}"
        if (value := self.pop(key)) is not None:
            self.put(target or (KEYS[key].choose(self.online) if key in KEYS else key), change(value), origin)
        return value

    def pop_entries(self, key: str) -> list[dict[str, Any]]:
        """Data sets as a list of mappings, as axolotl and TRL write them."""
        entries = self.pop(key) or []
        if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
            raise UserError(f"{key}: {entries!r}; expected a list of mappings, such as - path: rows.jsonl")
        return [dict(entry) for entry in entries]

    def leave(self, key: str, reason: str, value: Any = None) -> None:
        """value: of a key that was looked at before."""
        value = self.given.pop(key, value)
        if value is not None:
            self.left.append(Left(key, value, reason))

    def leave_the_rest(self) -> None:
        for key in list(self.given):
            if key in WITHOUT:
                self.leave(key, WITHOUT[key])
            elif key in KEYS and (known := KEYS[key].describe(online=self.online)):
                self.leave(key, f"here that is {known}; it cannot be translated by itself")
            else:
                self.leave(key, "nothing here corresponds to it" if key not in KEYS else "it has no effect here")

    def read_number(self, key: str, otherwise: float) -> float:
        value = self.pop(key, otherwise)
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise UserError(f"{key}: {value!r} is no number") from None
        if isinstance(value, bool) or not math.isfinite(number):
            raise UserError(f"{key}: {value!r} is no number")
        return number

    def recipe(self) -> dict[str, Any]:
        """The values of the recipe, in the order of AT_THE_TOP."""
        ordered = {part: self.top[part] for part in AT_THE_TOP if part in self.top}
        return {**ordered, "stages": {self.method: {"method": self.method, **self.stage}}}

    def recipe_comments(self) -> dict[str, str]:
        """By the dotted keys of the recipe. A key that was called the same needs none."""
        return {
            key if key.partition(".")[0] in AT_THE_TOP else f"stages.{self.method}.{key}": " ".join(text.split())
            for key, text in self.comments.items()
            if text != key.rpartition(".")[2]
        }


def read_rows_here(path: Any) -> list[Row]:
    """Of a file here; none where there is none, or where it cannot be read."""
    if not isinstance(path, str) or not Path(path).is_file():
        return []
    try:
        return load_rows(path)
    except UserError:
        return []


def flatten(given: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The mapping with what stands in its part `key` beside all others."""
    part = given.get(key)
    rest = {name: value for name, value in given.items() if name != key}
    return {**rest, **part} if isinstance(part, Mapping) else dict(given)
