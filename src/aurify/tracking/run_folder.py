"""The folder of a run: what was asked for, on what it ran, and a folder a stage with everything that happened."""

from __future__ import annotations

import secrets
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from aurify.config import dump_config
from aurify.errors import UserError, explain_os_error
from aurify.files import replace_text
from aurify.tracking import jsonl
from aurify.tracking.lock import find_run_holder, lock_run_folder
from aurify.tracking.machine import describe_run_start, format_run_time

TRACEBACK_FRAMES = 4


class StageFolder:
    """Files of one stage; `final/` holds the model, `checkpoints/` what a resumed run needs."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        self.metrics = path / "metrics.jsonl"
        self.ledger = path / "ledger.jsonl"
        self.heldout = path / "heldout.jsonl"
        self.samples = path / "samples.jsonl"
        self.events = path / "events.log"
        self.console = path / "console.log"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = path / "checkpoints"
        self.final = path / "final"
        self.best = path / "best"  # until the stage is finished: the best step so far

    def log(self, text: str) -> None:
        """Adds to events.log: a line with the time, and further lines of the text below it."""
        with self.events.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} " + "\n    ".join(text.splitlines()) + "\n")


class RunFolder:
    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        self.recipe = path / "recipe.yaml"
        self.info = path / "run_info.json"
        self.report = path / "report.html"

    @staticmethod
    def create(root: Path, recipe: Mapping[str, Any]) -> RunFolder:
        """A new folder `<YYYYMMDD_HHMMSS_xxxx>` under `root`, with the resolved recipe and what it runs on."""
        folder = RunFolder(root / f"{time.strftime('%Y%m%d_%H%M%S')}_{secrets.token_hex(2)}")
        folder.path.mkdir(parents=True)
        replace_text(folder.recipe, dump_config(recipe))
        jsonl.write_run_file(folder.info, describe_run_start(recipe.get("seed", 0)))
        return folder

    @staticmethod
    def open(path: Path) -> RunFolder:
        folder = RunFolder(path)
        if not folder.recipe.is_file():
            raise UserError(f"{path}: this is no run folder (it has no {folder.recipe.name}); `aurify runs` lists them")
        return folder

    def stage_folder(self, name: str) -> StageFolder:
        """Where a stage's files are, if it has any."""
        return StageFolder(self.path / name)

    def stage(self, name: str) -> StageFolder:
        (self.path / name).mkdir(exist_ok=True)
        return self.stage_folder(name)

    def results(self) -> dict[str, dict[str, Any]]:
        """What each stage came to: status, method, and held-out numbers before and after."""
        return jsonl.read_run_file(self.path / "results.json")

    def record(self, stage: str, **values: Any) -> None:
        """Adds to a stage's results; a value that is None is taken out."""
        results = self.results()
        known = results.get(stage, {}) | values
        results[stage] = {name: value for name, value in known.items() if value is not None}
        jsonl.write_run_file(self.path / "results.json", results)

    def record_engine(self, stage: str, facts: Mapping[str, Any]) -> None:
        """On what a stage runs: device, dtype, attention, seed as they really were."""
        info = jsonl.read_run_file(self.info)
        info["stages"] = info.get("stages", {}) | {stage: dict(facts)}
        jsonl.write_run_file(self.info, info)

    def record_leg(self, recipe: Mapping[str, Any], changes: Mapping[str, str], steps: Mapping[str, int]) -> None:
        """The run goes on with another recipe; the one it had is kept beside it. steps: how many each stage has done
        that has begun."""
        info = jsonl.read_run_file(self.info)
        legs = info.setdefault("legs", {})
        told = {"changes": dict(changes), "steps": dict(steps)}
        legs[str(len(legs) + 2)] = {"started": format_run_time(), "command": sys.argv, **told}
        replace_text(self.path / f"recipe.{len(legs)}.yaml", self.recipe.read_text(encoding="utf-8"))
        replace_text(self.recipe, dump_config(recipe))
        jsonl.write_run_file(self.info, info)

    def describe_legs(self, stage: str | None = None) -> list[str]:
        """With what other options the run went on, and after which step; only those of a stage where one is named."""
        lines = []
        for number, leg in jsonl.read_run_file(self.info).get("legs", {}).items():
            changes = leg["changes"].items()
            told = [
                f"{key}: {change}" for key, change in changes if stage is None or key.startswith(f"stages.{stage}.")
            ]
            done = leg.get("steps", {}).get(stage)
            if told:
                lines.append(f"leg {number}{f' (after step {done})' if done else ''}: {', '.join(told)}")
        return lines

    def lock(self) -> AbstractContextManager[None]:
        """For as long as a process works in this folder. Raises where another one does."""
        return lock_run_folder(self.path)

    @contextmanager
    def attempt(self, stage: str) -> Iterator[None]:
        """Records how a stage ends where it does not finish: interrupted, or failed with its error."""
        self.record(stage, status="running", error=None)
        try:
            yield
        except KeyboardInterrupt:
            self.record(stage, status="interrupted")
            raise
        except Exception as error:
            told = describe_run_error(error)
            self.record(stage, status="failed", error=told)
            if not isinstance(error, UserError):  # the stage has told those
                self.stage(stage).log("failed: " + "\n".join(told.values()))
            raise

    def status(self, stage: str) -> str:
        """not started, running, finished, failed, interrupted, or killed: the process that ran it has gone."""
        status = str(self.results().get(stage, {}).get("status", "not started"))
        return "killed" if status == "running" and find_run_holder(self.path) is None else status

    def is_locked(self) -> bool:
        return find_run_holder(self.path) is not None

    def has_work(self) -> bool:
        """Whether anything was measured, sampled or trained that a resumed run would go on with."""
        files = {file.name for file in self.path.glob("*/*")} - {"events.log", "console.log", "tensorboard"}
        return bool(files) or any("before" in result for result in self.results().values())


def describe_run_error(error: Exception) -> dict[str, str]:
    """What happened, the mend where it is known, and for other errors where it happened."""
    if isinstance(error, UserError):
        return {"text": str(error)}
    told = {"text": f"{type(error).__name__}: {error}"}
    if mend := explain_os_error(error):
        return told | {"mend": mend}
    frames = traceback.format_exception(error)[-TRACEBACK_FRAMES - 1 : -1]
    return told | {"traceback": "".join(frames).rstrip()}
