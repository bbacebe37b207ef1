"""The folder of a run: what was asked for, on what it ran, and a folder a stage with everything that happened."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aurify.config import dump_config
from aurify.errors import UserError
from aurify.files import replace_text
from aurify.tracking.machine import describe_run


class StageFolder:
    """Files of one stage; `final/` holds the model, `checkpoints/` what a resumed run needs."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        self.metrics = path / "metrics.jsonl"
        self.ledger = path / "ledger.jsonl"
        self.samples = path / "samples.jsonl"
        self.events = path / "events.log"
        self.console = path / "console.log"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = path / "checkpoints"
        self.final = path / "final"


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @staticmethod
    def create(root: Path, recipe: Mapping[str, Any]) -> RunFolder:
        """A new folder `<YYYYMMDD_HHMMSS_xxxx>` under `root`, with the resolved recipe and what it runs on."""
        folder = RunFolder(root / f"{time.strftime('%Y%m%d_%H%M%S')}_{secrets.token_hex(2)}")
        folder.path.mkdir(parents=True)
        replace_text(folder.recipe, dump_config(recipe))
        write_record(folder.info, describe_run(recipe.get("seed", 0)))
        return folder

    @staticmethod
    def open(path: Path) -> RunFolder:
        folder = RunFolder(path)
        if not folder.recipe.is_file():
            raise UserError(f"{path}: this is no run folder (it has no {folder.recipe.name}); `aurify runs` lists them")
        return folder

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def info(self) -> Path:
        return self.path / "run_info.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def stage_folder(self, name: str) -> StageFolder:
        """Where a stage's files are, if it has any."""
        return StageFolder(self.path / name)

    def stage(self, name: str) -> StageFolder:
        (self.path / name).mkdir(exist_ok=True)
        return self.stage_folder(name)

    def results(self) -> dict[str, dict[str, Any]]:
        """What each stage came to: status, method, and held-out numbers before and after."""
        return read_record(self.path / "results.json")

    def record(self, stage: str, **values: Any) -> None:
        """Adds to a stage's results."""
        results = self.results()
        results[stage] = results.get(stage, {}) | values
        write_record(self.path / "results.json", results)

    def record_engine(self, stage: str, facts: Mapping[str, Any]) -> None:
        """On what a stage runs: device, dtype, attention, seed as they really were."""
        info = read_record(self.info)
        info["stages"] = info.get("stages", {}) | {stage: dict(facts)}
        write_record(self.info, info)


def read_record(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_record(path: Path, values: Mapping[str, Any]) -> None:
    replace_text(path, json.dumps(values, indent=2) + "\n")
