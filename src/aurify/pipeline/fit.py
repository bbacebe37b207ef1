"""What to change so that a stage fits its card, as overrides of the recipe: `memory: auto` makes them, `aurify plan`
shows them. What costs time comes before what changes the result."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from aurify.engine.budget import LEAST_TOKENS
from aurify.engine.lora import LoraConfig
from aurify.models.model import ModelConfig
from aurify.pipeline.card import Card, choose_memory_card
from aurify.pipeline.memory import StageMemory, format_memory, plan_stage_memory
from aurify.pipeline.plan import Plan, PlannedStage
from aurify.pipeline.recipe import INHERITED, OfflineStage, OnlineStage, Recipe

LEAST_BATCH, LEAST_RANK, LEAST_ANSWER = 8, 4, 64
START_RANK = 16  # of an adapter in place of all weights


@dataclass(frozen=True, slots=True)
class Change:
    """Of an option inside a part of a stage, such as `rank` in `lora`. key "": the part as a whole."""

    part: str
    key: str
    value: Any

    def make(self, given: Any) -> Any:
        return replace(given, **{self.key: self.value}) if self.key else self.value


def suggest_memory_changes(plan: Plan, stage: PlannedStage, card: Card) -> tuple[list[Change], StageMemory]:
    """The fewest changes that make the stage fit, and its memory with them. If nothing does, those that come
    nearest."""
    changes: dict[tuple[str, str], Change] = {}
    memory = plan_stage_memory(plan, stage, card)
    for change in list_memory_changes(stage, memory):
        if memory.fits:
            break
        tried = changes | {(change.part, change.key): change}
        found = plan_stage_memory(plan, change_stage_memory(stage, tried.values()), card)
        if found.peak < memory.peak:
            changes, memory = tried, found
    for key in list(changes):  # what later ones made needless
        fewer = {other: change for other, change in changes.items() if other != key}
        found = plan_stage_memory(plan, change_stage_memory(stage, fewer.values()), card)
        if found.fits:
            changes, memory = fewer, found
    return list(changes.values()), memory


def list_memory_changes(stage: PlannedStage, memory: StageMemory) -> Iterator[Change]:
    options, whole = stage.options, stage.options.lora is None
    if memory.activations == "kept":
        yield Change("engine", "checkpointing", True)
    for tokens in halve_down_to(memory.micro_batch_tokens, LEAST_TOKENS):
        yield Change("engine", "micro_batch_tokens", tokens)
    for batch in halve_down_to(options.sampler.max_batch, LEAST_BATCH):
        yield Change("sampler", "max_batch", batch)
    if memory.card.device_type != "cpu":
        yield Change("engine", "checkpointing", "offload")
    if whole and not stage.scores:
        yield Change("lora", "", LoraConfig(rank=START_RANK))
    if any(field.name == "quantize" for field in fields(ModelConfig)) and not whole:
        yield Change("model", "quantize", "nf4")
    if options.lora is not None:
        for rank in halve_down_to(options.lora.rank, LEAST_RANK):
            yield Change("lora", "rank", rank)
    if isinstance(options, OnlineStage):
        for tokens in halve_down_to(options.sampling.max_tokens, LEAST_ANSWER):
            yield Change("sampling", "max_tokens", tokens)


def halve_down_to(number: int, least: int) -> Iterator[int]:
    while number // 2 >= least:
        number //= 2
        yield number


def change_stage_memory(stage: PlannedStage, changes: Any) -> PlannedStage:
    options = stage.options
    for change in changes:
        options = replace(options, **{change.part: change.make(getattr(options, change.part))})
    assert stage.bulk is not None
    lora = options.lora
    rank = stage.bulk.rank if lora == stage.options.lora else None if lora is None else lora.rank
    return replace(stage, options=options, bulk=replace(stage.bulk, rank=rank))


# ---------------------------------------------------------------------- in a recipe


def apply_memory_changes(recipe: Recipe, name: str, changes: Sequence[Change]) -> tuple[Recipe, list[str]]:
    """The recipe with the changes of a stage, and the overrides that say the same. What the stage takes over from the
    top is changed there. Stages whose adapters have one rank go on having one."""
    overrides = []
    for change in changes:
        stage = recipe.stages[name]
        given = getattr(stage, change.part)
        new = change.make(given)
        same = [other for other, options in recipe.stages.items() if getattr(options, change.part, None) == given]
        if change.part in INHERITED and getattr(recipe, change.part) == given and given not in list_recipe_defaults():
            recipe = replace(recipe, **{change.part: new})
            names, prefixes = same, [change.part]
        else:
            names = same if change.part == "lora" and change.key else [name]
            prefixes = [f"stages.{other}.{change.part}" for other in names]
        stages: dict[str, OfflineStage | OnlineStage] = {
            other: replace(options, **{change.part: new}) if other in names else options
            for other, options in recipe.stages.items()
        }
        recipe = replace(recipe, stages=stages)
        overrides += [write_recipe_override(prefix, change) for prefix in prefixes]
    return recipe, overrides


def list_recipe_defaults() -> list[Any]:
    """Of parts: what a recipe has that says nothing of them."""
    specs = {spec.name: spec.default for spec in fields(Recipe)}
    return [specs[name] for name in ("engine", "sampler", "lora")]


def write_recipe_override(prefix: str, change: Change) -> str:
    if isinstance(change.value, LoraConfig):
        return f"{prefix}={{rank: {change.value.rank}}}"
    value = str(change.value).lower() if isinstance(change.value, bool) else change.value
    return f"{prefix}.{change.key}={value}"


def fit_recipe(plan: Plan, done: Collection[str]) -> tuple[Recipe, list[str]] | None:
    """The recipe with what makes its first stage fit that does not, and the overrides. None: nothing is to be done, or
    nothing helps."""
    for name, stage in plan.stages.items():
        card = choose_memory_card(stage.options.model)
        if name in done or plan_stage_memory(plan, stage, card).fits:
            continue
        changes, memory = suggest_memory_changes(plan, stage, card)
        if memory.fits:
            return apply_memory_changes(plan.recipe, name, changes)
        plan.cautions.append(
            f"stages.{name}: it needs {format_memory(memory.peak)} even with all that memory: auto can change, and "
            f"there are {format_memory(card.size)}; take a smaller model, or shorter rows"
        )
    return None
