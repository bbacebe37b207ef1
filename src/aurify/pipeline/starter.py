"""A first recipe for a model, its data and a method, made to fit a card: what `aurify init` writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aurify import registry
from aurify.config import apply_override
from aurify.data.forms import detect_row_form
from aurify.data.sources import Part, read_data_source
from aurify.errors import UserError
from aurify.pipeline.card import choose_memory_card
from aurify.pipeline.check import check_recipe
from aurify.pipeline.contents import Tell
from aurify.pipeline.fit import apply_memory_changes, suggest_memory_changes
from aurify.pipeline.memory import format_memory, plan_stage_memory
from aurify.pipeline.recipe import build_recipe, is_online_method
from aurify.rows.row import Tally

METHODS = {"answers": "sft", "pairs": "dpo", "labels": "kto"}  # by what the rows hold
LOOKED_AT = 100  # rows
NEEDS_PAIRS = "pairs"
LEARNING_RATES = {"answers": 2e-4, "pairs": 2e-5, "labels": 2e-5, "rollouts": 5e-5}
ANSWER = 256  # tokens


@dataclass
class Starter:
    values: dict[str, Any]
    comments: dict[str, str] = field(default_factory=dict)  # by dotted key
    memory: list[str] = field(default_factory=list)  # what each stage needs of the card


def is_task(name: str) -> bool:
    """A name of `aurify list tasks`, and no file of a person's own."""
    return not Path(name).exists() and (name in registry.list_registered("task") or name.startswith("gym:"))


def choose_starter_method(data: str) -> str:
    """By what is in the rows; a task is for rollouts."""
    if is_task(data):
        return "grpo"
    rows = read_data_source(Part(path=data, max_rows=LOOKED_AT), Tally())
    return METHODS[detect_row_form(rows).form.holds]


def make_starter(model: str, data: str, method: str, name: str) -> Starter:
    """Before it is fitted to a card."""
    algorithm = registry.get_entry("algorithm", method)
    lesson, online = algorithm.learns_from, is_online_method(method)
    starter = Starter({"name": name, "seed": 0, "memory": "auto", "model": model})
    values, comments, stage = starter.values, starter.comments, f"stages.{method}"
    comments["memory"] = "where less is free than was planned with, options of memory are changed, and that is said"
    comments["model"] = "a name of `aurify list models`, a folder, a GGUF file or owner/name of a hub"
    if is_task(data):
        values["task"] = {"name": data}
        comments["task"] = f"`aurify help {data}` has its options"
    elif online:
        values["task"] = {"name": "jsonl", "path": data, "reward": "auto"}
        comments["task"] = "a tenth of the questions is held out"
        comments["task.reward"] = "by the kind of each answer; `aurify list rewards` has others, and file.py:function"
    values["lora"] = {"rank": 16, "alpha": 32}
    comments["lora"] = "an adapter is trained; without this part all weights are"
    if "task" in values:
        values["evaluation"] = {"num_tasks": 32, "sampling": {"max_tokens": ANSWER, "temperature": 0.0}}
        comments["evaluation"] = "held-out answers before and after each stage"
    options: dict[str, Any] = {"method": method}
    comments[f"{stage}.method"] = f"`aurify help {method}` has its options, which go under algorithm:"
    if online:
        options |= {"steps": 100, "prompts_per_step": 8, "completions_per_prompt": 8}
        options["sampling"] = {"max_tokens": ANSWER}
        comments[f"{stage}.steps"] = "rounds of sampling and training"
        comments[f"{stage}.completions_per_prompt"] = "a group, whose answers are compared with each other"
        comments[f"{stage}.sampling"] = "longer answers are cut off"
    else:
        options["data"] = choose_starter_data(data, lesson)
        options |= {"epochs": 1 if lesson == NEEDS_PAIRS else 2, "batch_size": 8, "overlong": "drop"}
        comments[f"{stage}.data"] = "`aurify data inspect` shows what the rows hold and how long they are"
        comments[f"{stage}.overlong"] = "rows above the model's context, or above max_length; they are counted"
    options["optim"] = {"lr": LEARNING_RATES.get(lesson, 1e-4), "schedule": "cosine", "warmup_ratio": 0.05}
    comments[f"{stage}.optim.lr"] = "the first thing to change: lower if the loss jumps"
    options["checkpoint_every"] = 20
    comments[f"{stage}.checkpoint_every"] = "steps; `aurify train --resume last` goes on from there"
    values["stages"] = {method: options}
    return starter


def choose_starter_data(data: str, lesson: str) -> dict[str, Any]:
    if not is_task(data):
        return {"path": data}
    if lesson == NEEDS_PAIRS:
        return {"sample": {"num_tasks": 128, "group_size": 8, "sampling": {"max_tokens": ANSWER}}}
    return {"demonstrations": 512}


def fit_starter(starter: Starter, wish: str | None, tell: Tell = lambda line: None) -> None:
    """Checks the recipe as a dry run does, and changes what does not fit. wish: a card, as `aurify plan` takes it;
    None: that of this machine."""
    from omegaconf import OmegaConf

    plan = check_recipe(build_recipe(starter.values), keep=False, fit=False, tell=tell)
    [(name, stage)] = plan.stages.items()
    card = choose_memory_card(stage.options.model, wish)
    memory = plan_stage_memory(plan, stage, card)
    if not memory.fits:
        changes, memory = suggest_memory_changes(plan, stage, card)
        if not memory.fits:
            raise UserError(
                f"{starter.values['model']} needs {format_memory(memory.peak)} for {name} even with all that could be "
                f"changed, and {card.name} has {format_memory(card.size)}; take a smaller model, or shorter rows"
            )
        values = OmegaConf.create(starter.values)
        for override in apply_memory_changes(plan.recipe, name, changes)[1]:
            apply_override(values, override)
            starter.comments[override.partition("=")[0]] = f"so that it fits {card.name}"
        starter.values = OmegaConf.to_container(values)  # type: ignore[assignment]
        check_recipe(build_recipe(starter.values), keep=False, fit=False, tell=tell)
    starter.memory.append(f"{name}: peak {format_memory(memory.peak)} of {format_memory(card.size)} on {card.name}")
