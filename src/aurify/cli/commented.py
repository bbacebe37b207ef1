"""Recipes as people write them: a key a line, with a comment where there is something to say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aurify.config import escape_interpolation, join_config_keys


def write_commented_recipe(values: Mapping[str, Any], comments: Mapping[str, str], head: Sequence[str]) -> str:
    """YAML that `load_config` reads back to the same values. comments: by dotted key. head: lines above it all."""
    lines = [f"# {line}".rstrip() for line in head]
    return "\n".join([*lines, *list_commented_lines(escape_interpolation(values), comments)]) + "\n"


def list_commented_lines(values: Mapping[str, Any], comments: Mapping[str, str], above: str = "") -> Iterator[str]:
    indent = "  " * (above.count(".") + 1) if above else ""
    for key, value in values.items():
        name = join_config_keys(above, key)
        comment = f"  # {comments[name]}" if name in comments else ""
        if isinstance(value, Mapping) and value:
            yield f"{indent}{key}:{comment}"
            yield from list_commented_lines(value, comments, name)
        else:
            yield f"{indent}{key}: {write_flow_value(value)}{comment}"


def write_flow_value(value: Any) -> str:
    """In one line."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")
