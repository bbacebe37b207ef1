"""Every preference method as a recipe's stage, in float32 and in bfloat16: data from a file, held-out numbers, what is
left on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pipelines import run, steps, tiny

from aurify.errors import UserError
from aurify.loops.reference import FILE
from aurify.pipeline.check import check_recipe
from aurify.pipeline.recipe import build_recipe


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def pairs(tmp_path) -> str:
    rows = [{"prompt": f"number {k}?", "chosen": "aaaa", "rejected": "zzzz"} for k in range(30)]
    return write(tmp_path / "pairs.jsonl", rows)


@pytest.fixture
def labels(tmp_path) -> str:
    rows = [
        {"prompt": f"number {k}?", "completion": text, "label": text == "aaaa"}
        for k in range(20)
        for text in ("aaaa", "zzzz")
    ]
    return write(tmp_path / "labels.jsonl", rows)


def recipe(method: str, path: str, dtype: str, **options: Any) -> dict[str, Any]:
    stage = {"method": method, "data": {"path": path, "heldout_share": 0.2}, "steps": 8, "batch_size": 4}
    optim = {"lr": 3e-3}
    return {"model": tiny(dtype), "stages": {"only": {**stage, "optim": optim, **options}}}


@pytest.mark.parametrize(
    ("method", "algorithm"),
    [("dpo", {}), ("dpo", {"loss_type": "ipo"}), ("simpo", {}), ("cpo", {}), ("orpo", {"beta": 1.0})],
)
def test_pairs(tmp_path, pairs, method, algorithm, dtype):
    results = run(recipe(method, pairs, dtype, algorithm=algorithm), tmp_path / "run")["only"]
    assert (results["status"], results["measure"], results["after"]) == ("finished", "likelier pairs", 1.0)
    rows = steps(tmp_path / "run" / "only" / "metrics.jsonl")
    assert rows[-1]["reward/margin"] > rows[0]["reward/margin"]
    assert (tmp_path / "run" / "only" / FILE).exists() == (method == "dpo")


@pytest.mark.parametrize("source", ["labels", "pairs"])
@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["full", "lora"])
def test_kto(tmp_path, request, source, lora, dtype):
    """From answers with labels, and from pairs, which give one answer of each label."""
    optim = {"lr": 3e-3 if lora is None else 3e-2}
    values = recipe("kto", request.getfixturevalue(source), dtype, lora=lora, optim=optim)
    results = run(values, tmp_path / "run")["only"]
    assert (results["measure"], results["after"]) == ("likelier desirable", 1.0)
    rows = steps(tmp_path / "run" / "only" / "metrics.jsonl")
    assert rows[0]["loss"] == pytest.approx(0.5) and rows[-1]["loss"] < 0.45
    assert sum(row["reward/desirable"] for row in rows) == pytest.approx(4, abs=1.5), "both labels, about equally often"


def test_reward_model_reports_its_correlation_with_length(tmp_path, dtype):
    """Chosen answers are longer by rule, and that is what is learnt."""
    rows = [{"prompt": f"{k}?", "chosen": "a" * (8 + k % 5), "rejected": "a" * (1 + k % 3)} for k in range(30)]
    values = recipe("reward_model", write(tmp_path / "long.jsonl", rows), dtype, steps=15)
    results = run(values, tmp_path / "run")["only"]
    assert results["measure"] == "pair accuracy" and results["after"] == 1
    assert results["details_after"]["length_correlation"] > 0.7
    assert "correlation of score and length: +" in (tmp_path / "run" / "only" / "events.log").read_text()
    assert steps(tmp_path / "run" / "only" / "metrics.jsonl")[-1]["reward/longer"] == 1


def test_demonstrations_are_nothing_for_kto():
    values = {"model": "random:tiny", "task": "sorting"}
    stage = {"method": "kto", "data": {"demonstrations": 8}, "steps": 1}
    with pytest.raises(UserError, match=r"stages\.only: data\.demonstrations: kto learns from desirable"):
        check_recipe(build_recipe({**values, "stages": {"only": stage}}))
