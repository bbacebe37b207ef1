"""Names for things that a recipe can ask for: tasks, rewards, environments, algorithms and data sets.

What Aurify brings along is declared as "module:attribute" and imported when it is asked for, so that a name costs
nothing. People add their own with the decorators `@aurify.task`, `@aurify.reward`, ..., in a file that the recipe lists
under `plugins:`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar, get_args

from aurify.config import did_you_mean, missing_file
from aurify.errors import UserError
from aurify.foreign_keys import translate_key
from aurify.signatures import EXPECTED, find_signature_problem, short_path

T = TypeVar("T")
Kind = Literal["task", "reward", "environment", "tool", "algorithm", "dataset"]

# name -> object, or "module:attribute" until it is asked for
ENTRIES: dict[str, dict[str, Any]] = {kind: {} for kind in get_args(Kind)}
REGISTERED_AT: dict[tuple[str, str], str] = {}  # (kind, name) -> file and line that registered it


def declare_entries(kind: Kind, entries: Mapping[str, str]) -> None:
    """Names what is imported on first use: `declare_entries("task", {"sorting": "aurify.tasks.numbers:sorting"})`."""
    ENTRIES[kind].update(entries)


declare_entries(
    "algorithm",
    {
        "sft": "aurify.algorithms.sft:SFT",
        "reward_model": "aurify.algorithms.reward_model:RewardModel",
        "dpo": "aurify.algorithms.dpo:DPO",
        "aot": "aurify.algorithms.aot:AOT",
        "simpo": "aurify.algorithms.simpo:SimPO",
        "cpo": "aurify.algorithms.cpo:CPO",
        "orpo": "aurify.algorithms.orpo:ORPO",
        "kto": "aurify.algorithms.kto:KTO",
        "grpo": "aurify.algorithms.grpo:GRPO",
        "dr_grpo": "aurify.algorithms.dr_grpo:DrGRPO",
        "dapo": "aurify.algorithms.dapo:DAPO",
        "gmpo": "aurify.algorithms.gmpo:GMPO",
        "vespo": "aurify.algorithms.vespo:VESPO",
        "gspo": "aurify.algorithms.gspo:GSPO",
        "cispo": "aurify.algorithms.cispo:CISPO",
        "sapo": "aurify.algorithms.sapo:SAPO",
        "rloo": "aurify.algorithms.rloo:RLOO",
        "reinforce_pp": "aurify.algorithms.reinforce_pp:ReinforcePP",
        "gdpo": "aurify.algorithms.gdpo:GDPO",
        "distillation": "aurify.algorithms.distillation:Distillation",
        "luffy": "aurify.algorithms.luffy:LUFFY",
        "exgrpo": "aurify.algorithms.exgrpo:ExGRPO",
    },
)
declare_entries(
    "task",
    {
        "mix": "aurify.tasks.mix:mix",
        "largest_number": "aurify.tasks.procedural:largest_number",
        "arithmetic": "aurify.tasks.procedural:arithmetic",
        "addition": "aurify.tasks.procedural:addition",
        "multiplication": "aurify.tasks.procedural:multiplication",
        "sorting": "aurify.tasks.procedural:sorting",
        "count_letters": "aurify.tasks.procedural:count_letters",
        "reverse_words": "aurify.tasks.procedural:reverse_words",
        "search_facts": "aurify.tasks.search_facts:search_facts",
        "gsm8k": "aurify.tasks.rows:gsm8k",
        "jsonl": "aurify.tasks.rows:jsonl",
        "episodes": "aurify.tasks.episodes:episodes",
    },
)
declare_entries(
    "reward",
    {
        "number_match": "aurify.rewards.math:number_match",
        "numbers_match": "aurify.rewards.math:numbers_match",
        "exact_match": "aurify.rewards.text:exact_match",
        "contains_answer": "aurify.rewards.text:contains_answer",
        "format": "aurify.rewards.format:format_match",
        "length": "aurify.rewards.format:length_penalty",
        "auto": "aurify.rewards.auto:auto",
        "math": "aurify.rewards.math:math",
        "choice_match": "aurify.rewards.text:choice_match",
        "rouge_l": "aurify.rewards.text:rouge_l",
        "word_f1": "aurify.rewards.text:word_f1",
        "num_words": "aurify.rewards.format:num_words",
        "repetition": "aurify.rewards.format:repetition",
        "language": "aurify.rewards.language:language",
        "tags": "aurify.rewards.format:tags",
        "judge": "aurify.rewards.judge:JudgeReward",
        "function_call": "aurify.rewards.function_calling:function_call",
        "call_valid": "aurify.rewards.function_calling:call_valid",
        "call_name": "aurify.rewards.function_calling:call_name",
        "call_arguments": "aurify.rewards.function_calling:call_arguments",
        "answer_em": "aurify.rewards.search:answer_em",
        "answer_sub_em": "aurify.rewards.search:answer_sub_em",
        "answer_f1": "aurify.rewards.search:answer_f1",
        "search_format": "aurify.rewards.search:search_format",
        "retrieval_hit": "aurify.rewards.search:retrieval_hit",
        "retrieval_mrr": "aurify.environments.retrieval:retrieval_mrr",
        "answer_similarity": "aurify.environments.retrieval:answer_similarity",
        "procedure": "aurify.procedures.reward:procedure",
        "environment": "aurify.rewards.environment:environment",
        "code": "aurify.rewards.code:code",
        "code_syntax": "aurify.rewards.code:code_syntax",
        "code_docstrings": "aurify.rewards.code:code_docstrings",
        "code_type_hints": "aurify.rewards.code:code_type_hints",
    },
)

declare_entries(
    "dataset",
    {
        "at_least": "aurify.data.filters:at_least",
        "at_most": "aurify.data.filters:at_most",
        "equals": "aurify.data.filters:equals",
        "matches": "aurify.data.filters:matches",
        "rename": "aurify.data.filters:rename",
        "drop": "aurify.data.filters:drop",
        "empty_thoughts": "aurify.data.filters:empty_thoughts",
        "rename_roles": "aurify.data.filters:rename_roles",
        "margin_from_scores": "aurify.data.filters:margin_from_scores",
    },
)
declare_entries(
    "environment",
    {
        "single_turn": "aurify.environments.single_turn:SingleTurn",
        "tool_use": "aurify.environments.tool_use:ToolUse",
        "search_r1": "aurify.environments.search_r1:SearchR1",
        "trl": "aurify.environments.trl:TRL",
        "gymnasium": "aurify.environments.gymnasium:Gymnasium",
        "openenv": "aurify.environments.openenv:OpenEnv",
    },
)
declare_entries(
    "tool",
    {
        "calculator": "aurify.tools.calculator:calculator",
        "python": "aurify.tools.python:Python",
        "search": "aurify.tools.search:Search",
        "mcp": "aurify.tools.mcp:MCP",
    },
)


def register(kind: Kind, name: str | None = None) -> Callable[[T], T]:
    """Decorator: `@register("task", "riddles")`. Without a name, the function's or class's own name is taken."""

    def add(entry: T) -> T:
        line = find_caller()
        key = name or getattr(entry, "__name__", "")
        if not key:
            raise UserError(
                f"{shorten_line(line)}: {entry!r} has no name of its own; give one, as in @aurify.{kind}('my_name')"
            )
        if problem := find_signature_problem(kind, entry):
            raise UserError(f"{shorten_line(line)}: {kind} {key!r} {problem}; expected {EXPECTED[kind]}")
        known = ENTRIES[kind].get(key)
        if known is not None and not is_same_entry(known, entry, REGISTERED_AT.get((kind, key)), line):
            first = shorten_line(REGISTERED_AT.get((kind, key), "")) or full_entry_name(known)
            raise UserError(
                f"{shorten_line(line)}: {kind} {key!r} is registered already, at {first}; choose another name"
            )
        ENTRIES[kind][key], REGISTERED_AT[kind, key] = entry, line
        return entry

    return add


def is_same_entry(known: Any, entry: Any, first: str | None, line: str) -> bool:
    """Whether the same thing is registered again: by a file that is both program and plugin, or by a notebook's
    cell."""
    if known is entry:
        return True
    if full_entry_name(known).partition(":")[2] != full_entry_name(entry).partition(":")[2]:
        return False
    return first == line or full_entry_name(known) == full_entry_name(entry) == f"__main__:{entry.__qualname__}"


def find_caller() -> str:
    """File and line of the code that called into this file. The path is whole: a plugin stays the same one where the
    working folder changes."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return f"{os.path.abspath(frame.f_code.co_filename)}:{frame.f_lineno}"


def shorten_line(line: str) -> str:
    path, _, number = line.rpartition(":")
    return f"{short_path(path)}:{number}" if path else line


def make_decorator(kind: Kind) -> Callable[..., Any]:
    """`@aurify.task`, `@aurify.task()` and `@aurify.task("riddles")` all register."""

    def decorate(entry: Any = None, /) -> Any:
        if entry is None or isinstance(entry, str):
            return register(kind, entry)
        return register(kind)(entry)

    decorate.__doc__ = f"Registers a {kind} under a name that recipes can use. Takes the name, or the function's own."
    return decorate


def get_entry(kind: Kind, name: str) -> Any:
    """The object behind a name, or behind `file.py:function` or `module:function`, which need no decorator."""
    entries = ENTRIES[kind]
    if name not in entries and ":" in str(name):
        return load_plugin_function(kind, name)
    if name not in entries:
        hint = translate_key(str(name)) if kind == "algorithm" else ""
        raise UserError(f"unknown {kind} {name!r}{hint or did_you_mean(str(name), entries)}")
    if isinstance(entries[name], str):
        module, _, attribute = entries[name].partition(":")
        entries[name] = getattr(importlib.import_module(module), attribute)
    return entries[name]


def list_registered(kind: Kind) -> list[str]:
    return sorted(ENTRIES[kind])


def full_entry_name(entry: Any) -> str:
    if isinstance(entry, str):
        return entry
    return f"{entry.__module__}:{getattr(entry, '__qualname__', type(entry).__qualname__)}"


def load_plugins(paths: Iterable[str | Path]) -> None:
    """Runs Python files (or imports modules) that register something. A file is run once, however often it is named."""
    if isinstance(paths, str):
        raise UserError(f"'plugins' is {paths!r}; expected a list of Python files: plugins: [{paths}]")
    for path in paths:
        before = {kind: dict(entries) for kind, entries in ENTRIES.items()}
        if is_plugin_loaded(path):
            continue
        module = load_plugin_module(str(path), "plugin")
        if before == ENTRIES:
            sys.modules.pop(module.__name__, None)
            decorators = ", ".join(f"@aurify.{kind}" for kind in ENTRIES)
            raise UserError(f"plugin {path} registers nothing; put one of {decorators} above a function or class in it")


def load_object(what: str, name: str) -> Any:
    """What `file.py:name` or `module:name` stands for. what: names it in errors."""
    path, _, attribute = name.rpartition(":")
    if not path:
        raise UserError(f"{what} {name!r}: write file.py:name or module:name")
    module = load_plugin_module(path, what)
    found = getattr(module, attribute, None)
    if found is None:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"{what} {name!r}: {path} has no {attribute!r}{did_you_mean(attribute, known)}")
    return found


def load_plugin_function(kind: Kind, name: str) -> Any:
    found = load_object(kind, name)
    if problem := find_signature_problem(kind, found):
        raise UserError(f"{kind} {name!r} {problem}; expected {EXPECTED[kind]}")
    return found


def is_plugin_loaded(path: str | Path) -> bool:
    return (name_plugin_module(Path(path).resolve()) if str(path).endswith(".py") else str(path)) in sys.modules


def name_plugin_module(file: Path) -> str:
    return "aurify_plugin_" + str(file.with_suffix("")).strip("/").replace("/", "_")


def load_plugin_module(path: str, what: str) -> ModuleType:
    """Runs a file, or imports a module by its name, once. All or nothing: what it registered before it failed is
    forgotten, so that it can be mended and run anew. what: names it in errors."""
    if not path.endswith(".py"):
        return run_plugin_or_forget(path, None, what, partial(importlib.import_module, path))
    file = Path(path).resolve()
    if name_plugin_module(file) in sys.modules:
        return sys.modules[name_plugin_module(file)]
    if not file.is_file():
        raise UserError(f"{what} {missing_file(Path(path))}")
    return run_plugin_or_forget(path, file, what, partial(run_plugin_file, file))


def run_plugin_file(file: Path) -> ModuleType:
    name = name_plugin_module(file)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def run_plugin_or_forget(path: str, file: Path | None, what: str, run: Callable[[], ModuleType]) -> ModuleType:
    before = {kind: dict(entries) for kind, entries in ENTRIES.items()}
    try:
        return run()
    except (Exception, SystemExit) as error:
        for kind, entries in before.items():
            ENTRIES[kind].clear()
            ENTRIES[kind].update(entries)
        line = f"{path}{find_plugin_line(error, file)}"
        if isinstance(error, UserError):
            raise error if str(error).startswith(line) else UserError(f"{what} {line}: {error}") from error
        problem = f"{type(error).__name__}: {error}"
        raise UserError(f"{what} {line}: {problem}; it must run on its own with `python {path}`") from error


def find_plugin_line(error: BaseException, file: Path | None) -> str:
    """`:3`, the line in a plugin's file that an exception came from."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f":{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f":{lines[-1]}" if lines else ""
