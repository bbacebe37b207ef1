"""Files that are whole or not there, the cache folder, and modules of extras."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from aurify.errors import UserError


def cache_folder() -> Path:
    """$AURIFY_CACHE, or aurify's folder in the user's cache."""
    if chosen := os.environ.get("AURIFY_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "aurify"


def require(module: str, extra: str, purpose: str) -> Any:
    """The imported module, or an error that names the extra to install: "to read PDF files, install pypdf with ..."."""
    try:
        return import_module(module)
    except ImportError as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) and error.name else module
        raise UserError(f"{purpose}, install {missing.split('.')[0]} with: pip install 'aurify[{extra}]'") from None


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """A scratch path to write, which is moved to `path` at the end, durably. After an error `path` is as before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield scratch
        sync_file(scratch)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Writes the whole text, or leaves the old file. Lone surrogates are written as escapes."""
    with replaced_file(path) as scratch:
        scratch.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def replace_folder(scratch: Path, folder: Path) -> None:
    """Moves a finished folder to `folder`, durably. The old one is removed once the new one is there."""
    for path in scratch.rglob("*"):
        sync_file(path)
    sync_file(scratch)
    old = folder.with_name(f".{folder.name.lstrip('.')}.{os.getpid()}.old")
    if folder.exists():
        os.replace(folder, old)  # a folder cannot be renamed over another
    os.replace(scratch, folder)
    sync_file(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def new_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """A scratch path to make a folder at, which is moved to `folder` at the end. After an error nothing is left.
    replace: what is there already is replaced."""
    if folder.exists() and not replace:
        raise UserError(f"{folder} is there already; name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        yield scratch
        replace_folder(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def sync_file(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows opens no folder
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
