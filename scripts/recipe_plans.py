"""The table of docs/memory-plan.md of the recipes for GPUs: what `aurify plan RECIPE --card SIZE` says of each.

A plan needs a configuration, a tokenizer and rows. Here they come from tests/stand_in_hub.py: the configurations of the
real models, tokenizers of bytes, and rows that fill what the recipes allow.

    python scripts/recipe_plans.py
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from aurify.cli.names import list_recipes
from aurify.config import load_config
from aurify.pipeline.card import GIB, choose_memory_card
from aurify.pipeline.check import check_recipe
from aurify.pipeline.memory import StageMemory, plan_stage_memory
from aurify.pipeline.recipe import build_recipe

CARDS = ("6GB", "8GB", "12GB", "16GB", "24GB")
ROOMY = "16GB"  # more sequences at once where there is more room
FAMILIES = ("mistral", "qwen")  # the others are for a CPU
COLUMNS = {
    "weights": ("weights", "dequantised layer"),
    "adapter and optimiser": ("adapter", "optimiser"),
    "gradients": ("gradients",),
    "activations": ("activations", "gradients of activations"),
    "head": ("head",),
    "keys and values": ("keys and values",),
}


def plan_recipes() -> Iterator[tuple[str, str, StageMemory]]:
    """Recipe, card and memory: on the smallest card that the stage fits, and on a roomy one if it samples more at once
    there."""
    for name, path in list_recipes().items():
        if not name.startswith(FAMILIES):
            continue
        plan = check_recipe(build_recipe(load_config(path)), keep=False, fit=False)
        [stage] = plan.stages.values()
        found = {card: plan_stage_memory(plan, stage, choose_memory_card(stage.options.model, card)) for card in CARDS}
        smallest = next(card for card in CARDS if found[card].fits)
        several = {smallest: found[smallest], ROOMY: found[ROOMY]}
        if size_cache(found[smallest]) == size_cache(found[ROOMY]):
            del several[ROOMY]
        for card, memory in several.items():
            yield name, card, memory


def size_cache(memory: StageMemory) -> int:
    return sum(part.size for part in memory.parts if part.name == "keys and values")


def write_command(name: str, card: str, memory: StageMemory) -> str:
    """The line at the head of a recipe."""
    return f"#   aurify plan {name} --card {card}  # peak {memory.peak / GIB:.2f} GiB of {memory.card.size / GIB:.2f}"


def make_table() -> str:
    rows = [("recipe", "card", "peak", "in", *COLUMNS), ("---", "---", "---:", "---", *["---:"] * len(COLUMNS))]
    for name, card, memory in plan_recipes():
        sizes = {part.name: part.size / GIB for part in memory.parts}
        cells = [sum(sizes.get(part, 0) for part in parts) for parts in COLUMNS.values()]
        rows.append((name, card, f"{memory.peak / GIB:.2f}", memory.fullest, *(f"{cell:.2f}" for cell in cells)))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> None:
    sys.path[:0] = [str(Path(__file__).parents[1] / "tests")]
    from stand_in_hub import hub_in_folder

    logging.disable()  # what an algorithm cautions of
    with tempfile.TemporaryDirectory() as folder, hub_in_folder(Path(folder)):
        print(make_table(), end="")
        print(*(write_command(*found) for found in plan_recipes()), sep="\n", file=sys.stderr)


if __name__ == "__main__":
    main()
