"""The folder of a run: what was asked for, on what it ran, and a folder a stage with everything that happened."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aurify.config import dump_config
from aurify.errors import UserError
from aurify.files import replace_text

RECIPE, INFO, RESULTS, REPORT = "recipe.yaml", "run_info.json", "results.json", "report.html"
PACKAGES = ("aurify", "torch", "transformers", "safetensors", "numpy")


@dataclass(frozen=True)
class StageFolder:
    """Files of one stage; `final/` holds the model, `checkpoints/` what a resumed run needs."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def events(self) -> Path:
        return self.path / "events.log"

    @property
    def console(self) -> Path:
        return self.path / "console.log"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def final(self) -> Path:
        return self.path / "final"


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @staticmethod
    def create(root: Path, recipe: Mapping[str, Any]) -> RunFolder:
        """A new folder `<YYYYMMDD_HHMMSS_xxxx>` under `root`, with the resolved recipe and what it runs on."""
        path = root / f"{time.strftime('%Y%m%d_%H%M%S')}_{secrets.token_hex(2)}"
        path.mkdir(parents=True)
        folder = RunFolder(path)
        replace_text(path / RECIPE, dump_config(recipe))
        replace_text(path / INFO, json.dumps(run_info(recipe.get("seed", 0)), indent=2) + "\n")
        return folder

    @staticmethod
    def open(path: Path) -> RunFolder:
        if not (path / RECIPE).is_file():
            raise UserError(f"{path}: this is no run folder (it has no {RECIPE}); `aurify runs` lists them")
        return RunFolder(path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def recipe(self) -> Path:
        return self.path / RECIPE

    @property
    def report(self) -> Path:
        return self.path / REPORT

    def stage_folder(self, name: str) -> StageFolder:
        """Where a stage's files are, if it has any."""
        return StageFolder(self.path / name)

    def stage(self, name: str) -> StageFolder:
        (self.path / name).mkdir(exist_ok=True)
        return self.stage_folder(name)

    def results(self) -> dict[str, dict[str, Any]]:
        """What each stage came to: status, method, and held-out numbers before and after."""
        file = self.path / RESULTS
        return json.loads(file.read_text()) if file.exists() else {}

    def record(self, stage: str, **values: Any) -> None:
        """Adds to a stage's results."""
        results = self.results()
        results[stage] = results.get(stage, {}) | values
        replace_text(self.path / RESULTS, json.dumps(results, indent=2) + "\n")

    def record_engine(self, stage: str, facts: Mapping[str, Any]) -> None:
        """On what a stage runs: device, dtype, attention, seed as they really were."""
        file = self.path / INFO
        info = json.loads(file.read_text()) if file.exists() else {}
        info["stages"] = info.get("stages", {}) | {stage: dict(facts)}
        replace_text(file, json.dumps(info, indent=2) + "\n")


def run_info(seed: Any) -> dict[str, Any]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "seed": seed,
        "python": platform.python_version(),
        "versions": versions,
        "hardware": hardware(),
        "git": git_commit(),
    }


def hardware() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    found: dict[str, Any] = {
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 2**30, 1),
    }
    torch = sys.modules.get("torch")  # never imported for this alone
    if torch is not None and torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name(0)
    return found


def cpu_name() -> str:
    """Linux tells in a file; elsewhere it is what Python knows."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(errors="replace").splitlines() if file.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def git_commit() -> str | None:
    """The commit of the working folder, marked if files differ from it; None outside of a repository."""
    try:
        result = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
