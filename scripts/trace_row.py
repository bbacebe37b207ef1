"""One row of GSM8K on its way from the file to the gradient, told by running a step of SFT and one of GRPO.

The row is in the hands of a file if one of its functions takes or gives it: as text, columns, messages, tokens, or an
object of ours that holds one of these, alone or in a list. What carries a whole stage (a plan, a run) does not count.
A function converts the row if it takes it in one form and gives it in another, and no function that it calls does so.

    python scripts/trace_row.py
"""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping
from inspect import CO_VARARGS, CO_VARKEYWORDS
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from rich.console import Console as RichConsole

import aurify
from aurify.models.tiny import byte_tokenizer
from aurify.pipeline.recipe import build_recipe
from aurify.pipeline.run import run_pipeline
from aurify.tracking.run_folder import RunFolder
from aurify.tracking.trackers.console import Console

PACKAGE = Path(aurify.__file__).parent
MARK = "Zuzanna"  # in the question of the rows that are followed
MARK_IDS = bytes(byte_tokenizer()(MARK).input_ids)
DEPTH = 4  # levels of a value that are looked at: a list of chats of messages of texts
STAGES: dict[str, dict[str, Any]] = {
    "sft": {"method": "sft", "batch_size": 2, "data": {"path": "PATH"}},
    "grpo": {
        "method": "grpo",
        "task": {"name": "gsm8k", "path": "PATH", "num_heldout": 1},
        "prompts_per_step": 1,
        "completions_per_prompt": 2,
        "sampling": {"max_tokens": 4},
        "algorithm": {
            "flat_groups": "keep",
            "entropy_coef": 0.01,
        },  # random answers earn nothing
    },
}


def find_form(value: Any, depth: int = DEPTH) -> str:
    """text, columns, messages, tokens, or the name of a type of ours that holds the row; "" where it is not in it."""
    if isinstance(value, str):
        return "text" if MARK in value else ""
    if isinstance(value, np.ndarray | torch.Tensor):
        value = value.reshape(-1).tolist() if value.ndim <= 2 else []
    if isinstance(value, list | tuple) and value and isinstance(value[0], int):
        whole = all(isinstance(token, int) and 0 <= token < 1 << 16 for token in value)
        return "tokens" if whole and MARK_IDS in bytes(min(token, 255) for token in value) else ""
    if depth == 0:
        return ""
    inside = next(filter(None, (find_form(part, depth - 1) for part in list_parts(value))), "")
    if not inside or isinstance(value, list | tuple):
        return inside
    kind = type(value)
    if kind.__module__.startswith("aurify.pipeline."):
        return ""  # a plan or a run
    if kind.__module__.startswith("aurify."):
        return f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"
    return "messages" if "role" in value else "columns"


def list_parts(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, list | tuple):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    return ()


class Trace:
    """Watches the calls of all threads until the loss is computed."""

    def __init__(self) -> None:
        self.files: dict[str, None] = {}  # in the order in which the row came to them
        self.conversions: dict[tuple[str, str], str] = {}  # (form, form) -> file and function, the first one
        self.stacks: dict[int, list[tuple[set[str], set[str]]]] = defaultdict(list)  # (forms taken, forms made inside)
        self.ended = False

    def __call__(self, frame: FrameType, event: str, result: Any) -> None:
        path = Path(frame.f_code.co_filename)
        inside = path.is_relative_to(PACKAGE) and not frame.f_code.co_name.startswith("<")  # no comprehension
        if self.ended or event not in ("call", "return") or not inside:
            return
        code, file, stack = frame.f_code, path.relative_to(PACKAGE).as_posix(), self.stacks[threading.get_ident()]
        if event == "call":
            num = code.co_argcount + code.co_kwonlyargcount
            num += bool(code.co_flags & CO_VARARGS) + bool(code.co_flags & CO_VARKEYWORDS)
            forms = {find_form(frame.f_locals.get(name)) for name in code.co_varnames[:num]} - {""}
            stack.append((forms, set()))
        else:
            taken, made = stack.pop() if stack else (set(), set())
            form = find_form(result)
            forms = {form} - {""}
            if form and taken and form not in taken | made:
                self.conversions.setdefault((min(taken), form), f"{file} {code.co_qualname}")
            if stack:
                stack[-1][1].update(made | forms)
        if forms:
            self.files.setdefault(file)
        self.ended = self.ended or (event, code.co_name) == ("return", "loss")

    @property
    def types(self) -> list[str]:
        """Ours, that hold the row."""
        return [form for form in dict.fromkeys(form for pair in self.conversions for form in pair) if "." in form]


def trace_row(method: str) -> Trace:
    trace, threads = Trace(), torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        names = (MARK, MARK, MARK, "Petra")  # whatever is held out, one with the mark is trained
        rows = [
            {"question": f"{name} has {number} pens. She buys 2. How many?", "answer": f"She has.\n#### {number + 2}"}
            for number, name in enumerate(names)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        stage = json.loads(json.dumps(STAGES[method]).replace("PATH", str(path)))
        recipe = {
            "model": {"name": "random:tiny", "device": "cpu"},
            "evaluation": {"num_tasks": 0},
            "stages": {method: {"steps": 1, "lora": {"rank": 2}, **stage}},
        }
        torch.set_num_threads(1)
        threading.setprofile(trace)
        sys.setprofile(trace)
        try:
            console = Console(RichConsole(file=io.StringIO()))
            run_pipeline(build_recipe(recipe), RunFolder(Path(folder)), console=console)
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]
            torch.set_num_threads(threads)
    return trace


if __name__ == "__main__":
    for method in STAGES:
        trace = trace_row(method)
        converters = {where.split()[0] for where in trace.conversions.values()}
        print(
            f"{method}: in the hands of {len(trace.files)} files; converted in {len(converters)}, types: {trace.types}"
        )
        for (before, after), where in trace.conversions.items():
            print(f"  {before} -> {after}: {where}")
        print("  " + " ".join(trace.files))
