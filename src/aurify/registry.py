"""Names for things that a recipe can ask for: tasks, rewards, environments, algorithms and data sets.

What Aurify brings along is declared as "module:attribute" and imported when it is asked for, so that a name costs
nothing. People add their own with the decorators `@aurify.task`, `@aurify.reward`, ..., in a file that the recipe lists
under `plugins:`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from aurify.config import did_you_mean, missing_file
from aurify.errors import UserError

T = TypeVar("T")
Kind = Literal["task", "reward", "environment", "algorithm", "dataset"]

# name -> object, or "module:attribute" until it is asked for
ENTRIES: dict[str, dict[str, Any]] = {kind: {} for kind in get_args(Kind)}


def declare(kind: Kind, entries: Mapping[str, str]) -> None:
    """Names what is imported on first use: `declare("task", {"sorting": "aurify.tasks.numbers:sorting"})`."""
    ENTRIES[kind].update(entries)


declare(
    "algorithm",
    {
        "sft": "aurify.algorithms.sft:SFT",
        "reward_model": "aurify.algorithms.reward_model:RewardModel",
        "dpo": "aurify.algorithms.dpo:DPO",
        "simpo": "aurify.algorithms.simpo:SimPO",
        "cpo": "aurify.algorithms.cpo:CPO",
        "orpo": "aurify.algorithms.orpo:ORPO",
        "kto": "aurify.algorithms.kto:KTO",
        "grpo": "aurify.algorithms.grpo:GRPO",
        "luffy": "aurify.algorithms.luffy:LUFFY",
        "exgrpo": "aurify.algorithms.exgrpo:ExGRPO",
    },
)
declare(
    "task",
    {
        "largest_number": "aurify.tasks.procedural:largest_number",
        "arithmetic": "aurify.tasks.procedural:arithmetic",
        "addition": "aurify.tasks.procedural:addition",
        "sorting": "aurify.tasks.procedural:sorting",
        "count_letters": "aurify.tasks.procedural:count_letters",
        "reverse_words": "aurify.tasks.procedural:reverse_words",
        "gsm8k": "aurify.tasks.rows:gsm8k",
        "jsonl": "aurify.tasks.rows:jsonl",
    },
)
declare(
    "reward",
    {
        "number_match": "aurify.rewards.math:number_match",
        "numbers_match": "aurify.rewards.math:numbers_match",
        "exact_match": "aurify.rewards.text:exact_match",
        "contains_answer": "aurify.rewards.text:contains_answer",
        "format": "aurify.rewards.text:format_match",
        "length": "aurify.rewards.text:length_penalty",
    },
)


def register(kind: Kind, name: str | None = None) -> Callable[[T], T]:
    """Decorator: `@register("task", "riddles")`. Without a name, the function's or class's own name is taken."""

    def add(entry: T) -> T:
        key = name or entry.__name__  # type: ignore[attr-defined]
        known = ENTRIES[kind].get(key)
        if known is not None and location(known) != location(entry):
            raise UserError(f"{kind} {key!r} is registered already, as {location(known)}; choose another name")
        ENTRIES[kind][key] = entry
        return entry

    return add


def decorator(kind: Kind) -> Callable[..., Any]:
    """`@aurify.task`, `@aurify.task()` and `@aurify.task("riddles")` all register."""

    def decorate(entry: Any = None, /) -> Any:
        if entry is None or isinstance(entry, str):
            return register(kind, entry)
        return register(kind)(entry)

    decorate.__doc__ = f"Registers a {kind} under a name that recipes can use. Takes the name, or the function's own."
    return decorate


def get(kind: Kind, name: str) -> Any:
    """The object behind a name; imports it if need be."""
    entries = ENTRIES[kind]
    if name not in entries:
        raise UserError(f"unknown {kind} {name!r}{did_you_mean(str(name), entries)}")
    if isinstance(entries[name], str):
        module, _, attribute = entries[name].partition(":")
        entries[name] = getattr(importlib.import_module(module), attribute)
    return entries[name]


def names(kind: Kind) -> list[str]:
    return sorted(ENTRIES[kind])


def location(entry: Any) -> str:
    return entry if isinstance(entry, str) else f"{entry.__module__}:{entry.__qualname__}"


def load_plugins(paths: Iterable[str | Path]) -> None:
    """Runs Python files (or imports modules) that register something. A file is run once, however often it is named."""
    if isinstance(paths, str):
        raise UserError(f"'plugins' is {paths!r}; expected a list of Python files: plugins: [{paths}]")
    for path in paths:
        if not str(path).endswith(".py"):
            run_plugin(str(path), importlib.import_module, str(path))
            continue
        file = Path(path).resolve()
        name = "aurify_plugin_" + str(file.with_suffix("")).strip("/").replace("/", "_")
        if name in sys.modules:
            continue
        if not file.is_file():
            raise UserError(f"plugin {missing_file(Path(path))}")
        run_plugin(str(path), run_file, name, file)


def run_file(name: str, file: Path) -> None:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def run_plugin(path: str, run: Callable[..., object], *arguments: object) -> None:
    try:
        run(*arguments)
    except UserError:
        raise
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
        raise UserError(f"plugin {path}: {problem}; it must run on its own with `python {path}`") from error
