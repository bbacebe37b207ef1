"""A checkpoint is whole or not there, and damage is named."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from aurify.engine import checkpoint
from aurify.errors import UserError


def write_weights(folder: Path) -> None:
    (folder / "sub").mkdir()
    torch.save({"w": torch.arange(1000.0)}, folder / "sub" / "weights.pt")


def draw() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


def test_state_files_and_generators_come_back(tmp_path):
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    np.random.randn()  # leaves a cached second normal number behind, part of numpy's state
    path = checkpoint.save_checkpoint(tmp_path, 7, write_weights, {"epoch": 1.5})
    expected = [*draw(), float(np.random.randn())]
    random.seed(0), np.random.seed(0), torch.manual_seed(0)

    found = checkpoint.load_checkpoint(path)
    checkpoint.set_rng_state(found.rng)
    assert [*draw(), float(np.random.randn())] == expected
    assert (found.step, found.state) == (7, {"epoch": 1.5})
    assert torch.load(path / "sub" / "weights.pt", weights_only=True)["w"].sum() == 499500


def test_the_newest_are_kept_and_nothing_else_is_left(tmp_path):
    assert checkpoint.latest_checkpoint(tmp_path / "none") is None
    (tmp_path / ".step_000001.999.tmp").mkdir()  # of a killed process
    for step in (2, 10, 9, 11):
        checkpoint.save_checkpoint(tmp_path, step, write_weights, keep=2)
    assert checkpoint.latest_checkpoint(tmp_path).name == "step_000011"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000010", "step_000011"]


def test_the_same_step_again_replaces_the_old(tmp_path):
    checkpoint.save_checkpoint(tmp_path, 1, write_weights, {"try": 1})
    path = checkpoint.save_checkpoint(tmp_path, 1, write_weights, {"try": 2})
    assert checkpoint.load_checkpoint(path).state == {"try": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["step_000001"]


def test_a_failed_write_leaves_the_earlier_ones_alone(tmp_path):
    checkpoint.save_checkpoint(tmp_path, 1, write_weights)

    def full_disk(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"step_000002.*No space left.*resume"):
        checkpoint.save_checkpoint(tmp_path, 2, full_disk)
    assert [p.name for p in tmp_path.iterdir()] == ["step_000001"]
    checkpoint.load_checkpoint(checkpoint.latest_checkpoint(tmp_path))


def test_a_process_killed_while_writing_leaves_no_half_checkpoint(tmp_path):
    code = f"""
import os, pathlib
from aurify.engine import checkpoint
def write(folder):
    (folder / "weights").write_bytes(b"x" * 1000)
    os.kill(os.getpid(), 9)
checkpoint.save_checkpoint(pathlib.Path({str(tmp_path)!r}), 5, write)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert [p.name.startswith(".step_000005") for p in tmp_path.iterdir()] == [True]
    assert checkpoint.latest_checkpoint(tmp_path) is None
    checkpoint.save_checkpoint(tmp_path, 5, write_weights)
    assert [p.name for p in tmp_path.iterdir()] == ["step_000005"]


@pytest.mark.parametrize("name", ["sub/weights.pt", "state.json", "rng.pt", "manifest.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "removed"])
def test_damage_is_an_error_that_names_the_file_and_the_mend(tmp_path, name, damage):
    checkpoint.save_checkpoint(tmp_path, 1, write_weights, keep=2)
    path = checkpoint.save_checkpoint(tmp_path, 2, write_weights, keep=2)
    file = path / name
    content = bytearray(file.read_bytes())
    if damage == "removed":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 0x80  # makes JSON undecodable too
        file.write_bytes(content)
    with pytest.raises(UserError) as raised:
        checkpoint.load_checkpoint(path)
    text = str(raised.value)
    assert str(file) in text and f"Remove the folder {path}; the run then resumes from step_000001" in text


def test_the_manifest_covers_every_file(tmp_path):
    path = checkpoint.save_checkpoint(tmp_path, 1, write_weights)
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest) == {"sub/weights.pt", "state.json", "rng.pt"}
