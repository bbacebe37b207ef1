"""What a stage names: models, earlier stages and files."""

from __future__ import annotations

from pathlib import Path

from aurify.config import suggest_neighbour
from aurify.data.sources import check_data_source
from aurify.errors import UserError
from aurify.pipeline.plan import PlannedStage
from aurify.pipeline.recipe import OfflineStage, OnlineStage, read_stage_reference
from aurify.rows.sources import is_one_row_file


def name_stage_models(stage: OfflineStage | OnlineStage) -> dict[str, str]:
    """The models that a stage uses, by the option that names them."""
    names: dict[str, str | None] = {"model": stage.model.name}
    if isinstance(stage, OnlineStage):
        names |= {"reward": stage.reward.model if stage.reward else None, "teacher": stage.teacher}
    else:
        names["data.sample.reward"] = stage.data.sample.reward if stage.data.sample else None
    return {key: name for key, name in names.items() if name}


def find_stage_references(stage: OfflineStage | OnlineStage) -> dict[str, str]:
    """The earlier stages that this one needs, by the option that names them."""
    names = name_stage_models(stage)
    if isinstance(stage, OfflineStage) and (name := stage.data.stage):
        if not read_stage_reference(name):
            raise UserError(f"data.stage: {name!r} is no stage; write it with an @: '@{name}'")
        names["data.stage"] = name
    return {key: target for key, name in names.items() if (target := read_stage_reference(name)) is not None}


def check_stage_reference(stage: PlannedStage, key: str, target: PlannedStage) -> None:
    """target: what the option `key` names."""
    if key in ("reward", "data.sample.reward") and not target.scores:
        method = target.options.method
        raise UserError(f"{key}: '@{target.name}' trains no reward model (its method is {method})")
    if key in ("model", "teacher") and target.scores and not stage.scores:
        raise UserError(
            f"{key}: '@{target.name}' is a reward model: it has a scalar head and cannot write; name a stage before it"
        )
    if key == "data.stage" and target.algorithm.learns_from != "pairs":
        raise UserError(f"{key}: '@{target.name}' has no preference pairs to take over")


def name_stage_files(stage: OfflineStage | OnlineStage) -> dict[str, Path]:
    """The single files that a stage reads, by the option that names them."""
    if isinstance(stage, OnlineStage):
        return {"guidance.path": Path(stage.guidance.path)} if stage.guidance and stage.guidance.path else {}
    paths = {"data.path": stage.data.path, "data.heldout_path": stage.data.heldout_path}
    paths |= {f"data.mix.{number}.path": part.path for number, part in enumerate(stage.data.mix or ())}
    return {key: Path(path) for key, path in paths.items() if path and is_one_row_file(path)}


def check_stage_files(stage: OfflineStage | OnlineStage) -> None:
    for key, path in name_stage_files(stage).items():
        if not path.is_file():
            raise UserError(f"{key}: there is no file {str(path)!r}{suggest_neighbour(path)}")
    for part in stage.data.parts if isinstance(stage, OfflineStage) else ():
        check_data_source(part)
