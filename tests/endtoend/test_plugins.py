"""The examples of `examples/plugins` from their recipe, on a random model: a person's own task, reward, environment,
data set and algorithm all do what they say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from pipelines import run_to_the_end, steps

from aurify import registry
from aurify.config import load_config
from aurify.errors import UserError
from aurify.pipeline.check import check_recipe
from aurify.pipeline.recipe import build_recipe

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "examples" / "plugins" / "recipe.yaml"


def values_of(*overrides: str) -> dict[str, Any]:
    values = load_config(RECIPE, overrides)
    return values | {"plugins": [str(ROOT / plugin) for plugin in values["plugins"]]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugins")
    (path / "recipe.yaml").write_text(json.dumps(values_of()))
    run_to_the_end(values_of(), path)
    return path


@pytest.fixture
def own_entries(monkeypatch):
    """The examples are registered for one test."""
    monkeypatch.setattr(registry, "ENTRIES", {kind: dict(entries) for kind, entries in registry.ENTRIES.items()})
    yield
    for name in [name for name in sys.modules if name.startswith("aurify_plugin_")]:
        del sys.modules[name]


def samples_of(stage: Path) -> str:
    return (stage / "samples.jsonl").read_text()


def test_every_kind_is_in_the_recipe():
    """A tool would bring an environment of its own; the README's is run by test_tools.py."""
    assert {Path(plugin).stem for plugin in values_of()["plugins"]} == registry.ENTRIES.keys() - {"tool"}


def test_the_data_set_teaches_the_task(run):
    sft = json.loads((run / "results.json").read_text())["sft"]
    assert sft["before"] < 0.1 and sft["after"] > 0.3


def test_the_rewards_are_weighed_and_written_down(run):
    for row in steps(run / "rl" / "metrics.jsonl"):
        assert 0 <= row["reward/last_answer"] <= 1 and -1 <= row["reward/brevity"] <= 0
        assert row["reward/mean"] == pytest.approx(row["reward/last_answer"] + 0.1 * row["reward/brevity"])


def test_the_environment_gives_a_second_chance(run):
    tries = [row["rollout/tries"] for row in steps(run / "rl" / "metrics.jsonl")]
    assert all(1 < number < 2 for number in tries), "right at once, and right or wrong at the second try"
    assert fmean(tries[-5:]) < fmean(tries[:5]) - 0.05, "with practice, fewer second tries"
    assert '"No."' in samples_of(run / "rl")


def test_the_algorithm_raises_the_reward(run):
    rewards = [row["reward/mean"] for row in steps(run / "rl" / "metrics.jsonl")]
    assert fmean(rewards[-5:]) > fmean(rewards[:5]) + 0.1
    assert {row["method"] for row in json.loads((run / "results.json").read_text()).values()} == {
        "sft",
        "best_of_group",
    }


PAIRS = """
from dataclasses import dataclass
from torch.nn.functional import relu
import aurify

@aurify.dataset
def letters(num: int):
    return [{"prompt": f"{k}?", "chosen": "aaa", "rejected": "zz"} for k in range(num)]

@aurify.algorithm("margin")
@dataclass(frozen=True)
class Margin:
    gap: float = 2.0
    learns_from = "pairs"
    needs = frozenset()
    per = "unit"

    def loss(self, out, batch):
        means = batch.sum_by_sequence(batch.weights * out.logprobs) / batch.lengths
        return relu(self.gap - means[0::2] + means[1::2]).sum(), {}
"""


def test_a_method_of_ones_own_learns_from_pairs_of_ones_own(tmp_path):
    (tmp_path / "mine.py").write_text(PAIRS)
    stage = {
        "method": "margin",
        "data": {"dataset": {"name": "letters", "num": 40}},
        "steps": 12,
        "optim": {"lr": 2e-3},
    }
    values = {"model": "random:tiny", "plugins": [str(tmp_path / "mine.py")], "stages": {"pairs": stage}}
    run_to_the_end(values, tmp_path / "run")
    losses = [row["loss"] for row in steps(tmp_path / "run" / "pairs" / "metrics.jsonl")]
    assert len(losses) == 12 and losses[-1] < 0.2 * losses[0] and losses[0] == pytest.approx(2.0, abs=0.5)
    result = json.loads((tmp_path / "run" / "results.json").read_text())["pairs"]
    assert result["measure"] == "likelier pairs" and result["after"] == 1.0


def test_a_model_can_be_evaluated_on_a_task_of_ones_own():
    command = [
        sys.executable,
        "-m",
        "aurify.cli.main",
        "eval",
        "random:tiny",
        "--task",
        "odd_or_even",
        "--num-tasks",
        "3",
    ]
    command += ["--max-tokens", "4", "--plugin", "examples/plugins/task.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "random:tiny on odd_or_even: exact_match 0.000" in done.stdout, done.stderr


def test_a_run_can_be_evaluated_by_name_with_its_plugins(run):
    command = [sys.executable, "-m", "aurify.cli.main", "eval", str(run), "--num-tasks", "10", "--json", "digits=2"]
    done = subprocess.run([*command, "num_heldout=20"], capture_output=True, text=True, cwd=run)
    assert done.returncode == 0, done.stderr
    [result] = json.loads(done.stdout)["results"]
    assert result["task"] == "odd_or_even" and result["num"] == 10 and "reward" in result


def test_paths_are_those_of_the_working_folder():
    command = [sys.executable, "-m", "aurify.cli.main", "train", "examples/plugins/recipe.yaml", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "the data set corrected" in done.stdout, done.stderr
    lost = subprocess.run([*command[:4], str(RECIPE)], capture_output=True, text=True, cwd=ROOT / "tests")
    assert lost.returncode == 2 and "plugin examples/plugins/task.py: no such file" in lost.stderr


def test_what_the_documentation_shows_stands_in_the_examples():
    text = (ROOT / "docs" / "plugins.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    examples = [file.read_text() for file in sorted(RECIPE.parent.glob("*.py"))]
    assert len(blocks) == len(examples) == 5
    assert all(sum(block in example for example in examples) == 1 for block in blocks)


def test_the_data_set_holds_no_held_out_question(own_entries):
    from aurify import tasks
    from aurify.data.filters import apply_row_filters
    from aurify.data.sources import load_dataset
    from aurify.rows.row import Tally

    build_recipe(values_of())
    rows = load_dataset({"name": "corrected", "task": "odd_or_even", "num": 300})
    heldout = {task.prompt[0]["content"] for task in tasks.make("odd_or_even").heldout}
    assert len(rows) == 300 and not heldout & {row["messages"][0]["content"] for row in rows}
    corrected = [row["messages"] for row in rows if len(row["messages"]) == 4]
    assert 50 < len(corrected) < 100, "of every second row, those whose other answer is another one"
    assert all(first["content"] != last["content"] for _, first, _, last in corrected)
    tally = Tally()
    odd = list(apply_row_filters(rows, [], [{"name": "answered_with", "words": ["odd"]}], tally))
    assert {row["messages"][-1]["content"] for row in odd} == {"odd"}
    assert tally.filtered == {"answered_with": 300 - len(odd)} and 100 < len(odd) < 200


def test_the_algorithm_by_hand(own_entries):
    build_recipe(values_of())
    algorithm = registry.get_entry("algorithm", "best_of_group")()
    assert algorithm.chosen([0.0, 1.0, None, 1.0]) == [0, 1, 0, 0]
    assert algorithm.chosen([0.0, 0.5]) == algorithm.chosen([None, None]) == [0, 0]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("task.digist=2", "stages.sft: task 'odd_or_even' has no option 'digist'; did you mean 'digits'"),
        ("task.digits=two", "stages.sft: task 'odd_or_even': 'digits' is 'two'; expected an integer"),
        ("task.reward=[last_anwser]", "unknown reward 'last_anwser'; did you mean 'last_answer'"),
        ("task.reward=[{name: brevity, at_mots: 3}]", "reward 'brevity' has no option 'at_mots'"),
        ("task.environment=second_chanse", "unknown environment 'second_chanse'; did you mean 'second_chance'"),
        ("task.environment.chances=many", "environment 'second_chance': 'chances' is 'many'; expected an integer"),
        ("stages.sft.data.dataset.name=corected", "unknown dataset 'corected'; did you mean 'corrected'"),
        ("stages.sft.data.dataset={name: corrected}", "dataset 'corrected' needs the option 'task'"),
        ("stages.sft.data.dataset.num=1.5", "dataset 'corrected': 'num' is 1.5; expected an integer"),
        ("stages.sft.data.filters=[answered_wiht]", "unknown dataset 'answered_wiht'; did you mean 'answered_with'"),
        ("stages.sft.data.filters=[answered_with]", "filter 'answered_with' needs the option 'words'"),
        ("stages.sft.data.path=x.jsonl", "path and dataset given; set exactly one"),
        ("stages.rl.method=best_of_groups", "unknown algorithm 'best_of_groups'; did you mean 'best_of_group'"),
        ("stages.rl.algorithm={minimun: 1}", "'stages.rl.algorithm.minimun'; did you mean 'minimum'"),
    ],
)
def test_mistakes_in_the_recipe_are_seen_before_anything_runs(own_entries, override, expected):
    with pytest.raises(UserError) as caught:
        check_recipe(build_recipe(values_of(override)))
    assert expected in str(caught.value)
