"""What people write for a run, a model, a recipe or a knowledge base, and where it is.

A run is its folder, its name under the folder of runs (the beginning is enough where it is unique), or `last`. A model
is a run (its last finished stage), `RUN:stage` or `RUN/stage`, a folder, a GGUF file, a catalogue name or a hub id. A
recipe is a file, or the name of one that comes with Aurify (`quickstart`, `tiny/sft`). A knowledge base is its name
under `kb/`, or a folder written with a slash.
"""

from __future__ import annotations

import glob
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from aurify.config import did_you_mean
from aurify.errors import UserError
from aurify.models.catalog import KNOWN

log = logging.getLogger(__name__)


def complete_files(beginning: str, *suffixes: str) -> list[str]:
    """What the shell offers while a path is typed: folders, and files with one of the suffixes."""
    found = [Path(path) for path in sorted(glob.glob(f"{glob.escape(beginning)}*"))]
    return [f"{path}/" if path.is_dir() else str(path) for path in found if path.is_dir() or path.suffix in suffixes]


def complete_runs(incomplete: str) -> list[str]:
    return [name for name in ("last", *(run.name for run in list_runs(RUNS))) if name.startswith(incomplete)]


def complete_models(incomplete: str) -> list[str]:
    known = [name for name in KNOWN if name.startswith(incomplete)]
    return [*known, *complete_runs(incomplete), *complete_files(incomplete, ".gguf")]


def complete_recipes(incomplete: str) -> list[str]:
    shipped = [name for name in list_recipes() if name.startswith(incomplete)]
    return [*shipped, *complete_files(incomplete, ".yaml", ".yml")]


ModelName = Annotated[
    str,
    typer.Argument(
        help="A run, RUN:stage, a folder, a GGUF file, a catalogue name or a hub id.", autocompletion=complete_models
    ),
]
RECIPE = typer.Argument(
    help="A YAML file, or the name of a recipe that comes along: quickstart.", autocompletion=complete_recipes
)
RunName = Annotated[str, typer.Argument(help="A run's folder, its name, or last.", autocompletion=complete_runs)]
RunsFolder = Annotated[Path, typer.Option("--runs", help="The folder that holds the runs.", show_default=True)]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
RUNS = Path("runs")
KBS = Path("kb")
FINAL = "final"
SHIPPED = (
    Path(__file__).parents[1] / "recipes",  # installed
    Path(__file__).parents[3] / "recipes",  # a checkout
)


@dataclass(frozen=True)
class NamedModel:
    """`name` is for `ModelConfig`; run and stage are known where a run has trained the model."""

    name: str
    run: Path | None = None
    stage: str | None = None

    @property
    def label(self) -> str:
        """RUN/stage, which can be typed again; or the name."""
        return self.name if self.run is None else f"{self.run.name}/{self.stage}"

    def recipe(self) -> dict[str, Any]:
        """The values of the run's recipe; empty where there is none."""
        from aurify.config import load_config

        if self.run is None or not (self.run / "recipe.yaml").is_file():
            return {}
        return load_config(self.run / "recipe.yaml")

    def stage_options(self) -> dict[str, Any]:
        """What the recipe says of the stage: its own options over those of the whole recipe."""
        recipe = self.recipe()
        return {**recipe, **(recipe.get("stages", {}).get(self.stage) or {})}


def list_runs(runs: Path) -> list[Path]:
    """Oldest first: their names begin with the time."""
    return sorted(filter(is_run, runs.iterdir())) if runs.is_dir() else []


def is_run(folder: Path) -> bool:
    return (folder / "recipe.yaml").is_file() or (folder / "run_info.json").is_file()


def resolve_run_argument(name: str, runs: Path = RUNS) -> Path:
    known = list_runs(runs)
    if is_run(Path(name)):
        return Path(name)
    if name in ("last", "latest"):
        if not known:
            raise UserError(f"there is no run in {runs}/ yet; `aurify demo` or `aurify train RECIPE` makes one")
        return known[-1]
    if (runs / name) in known:
        return runs / name
    matches = [run for run in known if run.name.startswith(name)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f"run {name!r} could be {', '.join(run.name for run in matches[:5])}; give more of the name")
    raise UserError(f"there is no run {name!r} in {runs}/{did_you_mean(name, [run.name for run in known])}")


def is_running(run: Path) -> bool:
    from aurify.tracking.run_folder import RunFolder

    folder = RunFolder(run)
    return any(folder.status(stage) == "running" for stage in read_values(run / "recipe.yaml").get("stages") or {})


def list_finished_stages(run: Path) -> list[str]:
    """Stages with a model, in the order of the recipe."""
    order = list(read_values(run / "results.json"))
    found = sorted(folder.name for folder in run.iterdir() if (folder / FINAL).is_dir())
    return sorted(found, key=lambda stage: order.index(stage) if stage in order else len(order))


def resolve_model_argument(name: str, runs: Path = RUNS) -> NamedModel:
    """Text models only: a reward model cannot write."""
    run_name, colon, stage = name.rpartition(":")
    if colon and run_name and run_name != "random" and not Path(name).exists():
        return find_stage_model(resolve_run_argument(run_name, runs), stage)
    folder = Path(name).expanduser()
    if (folder / FINAL).is_dir() and is_run(folder.parent):
        return find_stage_model(folder.parent, folder.name)
    run_name, _, stage = name.rpartition("/")
    if run_name and not folder.exists() and names_a_run(run_name, runs):
        return find_stage_model(resolve_run_argument(run_name, runs), stage)
    begins_a_run = not folder.exists() and any(run.name.startswith(name) for run in list_runs(runs))
    if name in ("last", "latest") or is_run(folder) or begins_a_run:
        run = resolve_run_argument(name, runs)
        writers = [stage for stage in list_finished_stages(run) if not is_reward_model(run / stage / FINAL)]
        if not writers:
            running = "it is running: wait for its first stage"
            mend = running if is_running(run) else f"`aurify train --resume {run}` goes on with it"
            raise UserError(f"run {run.name} has no finished stage with a model yet; {mend}")
        return find_stage_model(run, writers[-1])
    if folder.is_dir() and is_reward_model(folder):
        raise UserError(f"{folder} is a reward model: it scores answers and cannot write any")
    if not any(c in name for c in "/:.") and name not in KNOWN and not folder.exists():
        log.info("no run in %s/ begins with %r; looking for a model of that name", runs, name)
    return NamedModel(name)


def names_a_run(name: str, runs: Path) -> bool:
    return name in ("last", "latest") or is_run(Path(name)) or any(run.name.startswith(name) for run in list_runs(runs))


def find_stage_model(run: Path, stage: str) -> NamedModel:
    finished = list_finished_stages(run)
    if stage not in finished:
        raise UserError(f"run {run.name} has no finished stage {stage!r}{did_you_mean(stage, finished)}")
    if is_reward_model(run / stage / FINAL):
        raise UserError(f"stage {stage!r} of run {run.name} is a reward model: it scores answers and cannot write any")
    return NamedModel(str(run / stage / FINAL), run, stage)


def is_reward_model(folder: Path) -> bool:
    config = read_values(folder / "config.json")
    adapter = read_values(folder / "adapter_config.json")
    architectures = config.get("architectures") or [""]
    return "SequenceClassification" in architectures[0] or adapter.get("task_type") == "SEQ_CLS"


def read_values(path: Path) -> dict[str, Any]:
    """The mapping in a JSON or YAML file that Aurify wrote; empty where the file is missing or cut short."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def resolve_recipe_argument(name: str) -> Path:
    """A file of the user's, or a recipe that comes along. A missing file is left to whoever reads it."""
    path, shipped = Path(name).expanduser(), list_recipes()
    if path.exists():
        return path
    short = name.removeprefix("recipes/").removesuffix(".yaml")
    if short in shipped:
        return shipped[short]
    if path.suffix or (path.parent.is_dir() and str(path.parent) != "."):
        return path
    raise UserError(
        f"there is no recipe {name!r}, as a file or among those that come along{did_you_mean(name, shipped)}"
    )


def list_recipes() -> dict[str, Path]:
    """Those that come with Aurify and can be run as they are."""
    folder = next((folder for folder in SHIPPED if folder.is_dir()), None)
    files = sorted(folder.rglob("*.yaml")) if folder is not None else []
    named = {str(file.relative_to(folder).with_suffix("").as_posix()): file for file in files}  # type: ignore[arg-type]
    return {name: file for name, file in named.items() if not name.startswith(("base/", "eval/"))}


def resolve_suite_argument(name: str) -> Path:
    """A file of the user's, or a suite of lm-evaluation-harness that comes along in recipes/eval."""
    path = Path(name).expanduser()
    folder = next((folder / "eval" for folder in SHIPPED if (folder / "eval").is_dir()), None)
    shipped = {file.stem: file for file in sorted(folder.glob("*.yaml"))} if folder is not None else {}
    if path.is_file():
        return path
    if name.removeprefix("eval/") in shipped:
        return shipped[name.removeprefix("eval/")]
    hint = did_you_mean(name, shipped)
    raise UserError(f"--suite: there is no suite {name!r}, as a file or among those that come along{hint}")


def resolve_kb_argument(name: str, *, new: bool = False) -> Path:
    """The folder of a knowledge base; a folder that is not there yet is an error unless it may be `new`."""
    folder = Path(name).expanduser() if "/" in name or name in (".", "..") else KBS / name
    if not name:
        raise UserError("--kb is empty; give a name such as --kb notes, or a folder such as --kb ./notes")
    if not new and not is_kb(folder):
        known = [other.name for other in KBS.iterdir() if is_kb(other)] if KBS.is_dir() else []
        raise UserError(
            f"there is no knowledge base at {folder} (`aurify ingest PATH --kb {name}` makes one)"
            f"{did_you_mean(folder.name, known)}"
        )
    return folder


def is_kb(folder: Path) -> bool:
    return (folder / "settings.json").is_file()
