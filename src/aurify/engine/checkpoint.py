"""Checkpoints: folders that are complete or not there at all, whatever kills the process while they are written.

A checkpoint is written to a scratch folder, forced to the disk, and renamed. Its manifest has the size and SHA-256 of
each file, so damage is found, and named, when it is read. What else is in it than `state.json` and the state of the
random number generators is up to the caller: `write` gets the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aurify.errors import UserError
from aurify.files import replace_folder

MANIFEST, STATE, RNG = "manifest.json", "state.json", "rng.pt"
PREFIX = "step_"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was read and found whole."""

    path: Path
    step: int
    state: dict[str, Any]
    rng: dict[str, Any]  # for set_rng_state


def save_checkpoint(
    folder: Path,
    step: int,
    write: Callable[[Path], object],
    state: Mapping[str, Any] | None = None,
    *,
    rng: Mapping[str, Any] | None = None,
    keep: int = 1,
) -> Path:
    """Writes folder/step_<step>, then removes all but the newest `keep`. state: JSON values; rng: default now."""
    path = folder / f"{PREFIX}{step:06d}"
    scratch = folder / f".{path.name}.{os.getpid()}.tmp"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        write(scratch)
        torch.save(dict(rng or rng_state()), scratch / RNG)
        (scratch / STATE).write_text(json.dumps({"step": step, **(state or {})}, indent=2) + "\n")
        (scratch / MANIFEST).write_text(json.dumps(build_checkpoint_manifest(scratch), indent=2) + "\n")
        replace_folder(scratch, path)
    except OSError as error:
        raise UserError(
            f"{path}: the checkpoint cannot be written ({error.strerror or error}). Earlier checkpoints are untouched; "
            "make room or choose another run folder, then resume"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for old in find_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    for stale in (*folder.glob(f".{PREFIX}*.tmp"), *folder.glob(f".{PREFIX}*.old")):  # of processes that were killed
        shutil.rmtree(stale, ignore_errors=True)
    return path


def find_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if (path / MANIFEST).is_file())


def latest_checkpoint(folder: Path) -> Path | None:
    return next(reversed(find_checkpoints(folder)), None)


def load_checkpoint(path: Path) -> Checkpoint:
    """Checks every file against the manifest."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        expected = {str(name): (entry["bytes"], entry["sha256"]) for name, entry in manifest.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged_checkpoint(path, MANIFEST, f"it cannot be read ({error})") from error
    for name, (size, digest) in expected.items():
        file = path / name
        if not file.is_file():
            raise damaged_checkpoint(path, name, "it is missing")
        if file.stat().st_size != size:
            raise damaged_checkpoint(path, name, f"it has {file.stat().st_size} bytes, expected {size}")
        if hash_checkpoint_file(file) != digest:
            raise damaged_checkpoint(path, name, "its SHA-256 differs from the manifest")
    state = json.loads((path / STATE).read_text())
    return Checkpoint(path, state.pop("step"), state, torch.load(path / RNG, weights_only=True))


def damaged_checkpoint(path: Path, name: str, what: str) -> UserError:
    others = [other for other in find_checkpoints(path.parent) if other != path]
    mend = f"the run then resumes from {others[-1].name}" if others else "the stage then starts again"
    return UserError(f"{path / name}: the checkpoint is damaged: {what}. Remove the folder {path}; {mend}")


def build_checkpoint_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(f.relative_to(folder)): {"bytes": f.stat().st_size, "sha256": hash_checkpoint_file(f)} for f in files}


def hash_checkpoint_file(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def rng_state() -> dict[str, Any]:
    """The global random number generators, as values that torch.load(weights_only=True) accepts."""
    numpy_state = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": numpy_state | {"state": {key: _plain(value) for key, value in numpy_state["state"].items()}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count() > 0:  # else the run moved to another machine: bits differ anyway
        torch.cuda.set_rng_state_all(state["cuda"])


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value
