"""Writes docs/reference.md, all that a recipe can say, from the code: `python scripts/reference.py`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from aurify import registry
from aurify.cli.reference import Option, explain_entry, list_recipe_keys

PAGE = Path(__file__).parents[1] / "docs" / "reference.md"
HEAD = """# Reference

Every key of a recipe, and the options of everything that a recipe can name. This page is made from the code by
`scripts/reference.py`; `aurify help KEY` shows the same for one key, and `aurify list KIND` the names of a kind.

`NAME` is a stage's name, `N` a number from 0. `model: x` is short for `model: {name: x}`, and so with `task`;
`reward: x` of a stage for `reward: {model: x}`. A stage takes `model`, `task`, `lora`, `engine`, `sampler`, `rollouts`,
`tools_as_text` and `template_options` from the top of the recipe where it has none of its own, such as
`stages.NAME.lora.rank`; of `model` it takes each key by itself.
"""
KINDS: dict[registry.Kind, str] = {
    "algorithm": "Methods: `stages.NAME.method`, with their options under `stages.NAME.algorithm`",
    "task": "Tasks: `task`",
    "reward": "Rewards: `task.reward`",
    "environment": "Environments: `task.environment`",
    "tool": "Tools: `task.tools`",
    "dataset": "Data set functions: `data.maps` and `data.filters`",
}


def main() -> None:
    PAGE.write_text(build_page(), encoding="utf-8")


def build_page() -> str:
    page = HEAD
    for title, options in list_recipe_keys().items():
        page += f"\n## {title}\n\n{build_table(options)}"
    for kind, title in KINDS.items():
        page += f"\n## {title}\n"
        for name in registry.list_registered(kind):
            text, options = explain_entry(kind, name)
            if kind == "algorithm" and name != "grpo":
                shared = set(explain_entry("algorithm", "grpo")[1])
                if shared & set(options):
                    text, options = f"{text}. Also the options of `grpo`", [one for one in options if one not in shared]
            page += f"\n### {name}\n\n{text.rstrip('.')}.\n" + (f"\n{build_table(options)}" if options else "")
    return page


def build_table(options: Iterable[Option]) -> str:
    rows = [f"| `{one.key}` | {escape(one.type)} | {code(one.default)} | {escape(one.text)} |" for one in options]
    return "\n".join(["| key | type | default | |", "|---|---|---|---|", *rows]) + "\n"


def code(text: str) -> str:
    return text if text in ("", "required") else f"`{escape(text)}`"


def escape(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


if __name__ == "__main__":
    main()
