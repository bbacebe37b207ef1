"""CI's look at a demo that has run finds what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripts_of_ours import load_script

SCRIPT = Path(__file__).parents[1] / "scripts" / "check_demo.py"


@pytest.fixture(scope="module")
def check_demo() -> Any:
    return load_script("check_demo")


def results(**changes: Any) -> dict[str, Any]:
    stage = {"status": "finished", "measure": "accuracy", "before": 0.25, "after": 0.5}
    return {name: stage | changes.get(name, {}) for name in ("sft", "reward", "dpo", "grpo")}


def run_in(folder: Path, module: Any, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]) -> None:
    (folder / "runs" / "one").mkdir(parents=True)
    (folder / "runs" / "one" / "results.json").write_text(json.dumps(values))
    monkeypatch.setattr("sys.argv", ["check_demo.py", str(folder)])
    module.main()


def test_a_good_demo_passes(tmp_path, check_demo, monkeypatch, capsys):
    run_in(tmp_path, check_demo, monkeypatch, results())
    assert "grpo 0.250 -> 0.500" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (results(grpo={"after": 0.25}), "'grpo': accuracy went from 0.25 to 0.25"),
        (results(sft={"after": None}), "'sft': accuracy went from 0.25 to None"),
        (results(dpo={"status": "running"}), "'dpo' is running"),
        ({"sft": results()["sft"]}, "'grpo' has no result"),
    ],
)
def test_a_bad_one_is_told(tmp_path, check_demo, monkeypatch, values, named):
    with pytest.raises(SystemExit, match=named):
        run_in(tmp_path, check_demo, monkeypatch, values)


def test_packages_of_the_tests_are_told(tmp_path, check_demo, monkeypatch):
    package = tmp_path / ".venv" / "lib" / "python3.11" / "site-packages" / "trl"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    with pytest.raises(SystemExit, match="trl is installed in"):
        run_in(tmp_path, check_demo, monkeypatch, results())


def test_a_folder_without_a_run_is_told(tmp_path, check_demo, monkeypatch):
    monkeypatch.setattr("sys.argv", ["check_demo.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="holds no run"):
        check_demo.main()
