"""Finds the recipe that a person means: a file of theirs, or one that comes with Aurify (`quickstart`, `tiny/sft`)."""

from __future__ import annotations

from pathlib import Path

SHIPPED = (
    Path(__file__).parents[1] / "recipes",  # installed
    Path(__file__).parents[3] / "recipes",  # a checkout
)


def shipped_recipes() -> Path | None:
    return next((folder for folder in SHIPPED if folder.is_dir()), None)


def find_recipe(name: str) -> Path:
    """A path that exists, or the path as it was given: reading it then says what is wrong."""
    path, folder = Path(name).expanduser(), shipped_recipes()
    if path.exists() or folder is None:
        return path
    relative = Path(name.removeprefix("recipes/"))
    candidates = (folder / relative, folder / f"{relative}.yaml")
    return next((candidate for candidate in candidates if candidate.is_file()), path)
