"""Suites of lm-evaluation-harness: what they say, and what our engine makes of its questions, against its own model of
transformers. The harness itself (extra `lm-eval`) is not needed for the first part."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aurify.cli.main import app
from aurify.cli.names import SHIPPED, list_recipes
from aurify.engine.engine import Engine
from aurify.errors import UserError
from aurify.evaluation.harness import list_task_files, open_harness_model, read_generation_options
from aurify.evaluation.suite import read_suite
from aurify.models.model import ModelConfig, load_model
from aurify.renderer import Renderer
from aurify.samplers.inprocess import InProcessSampler

SHIPPED_SUITES = sorted(SHIPPED[1].glob("eval/*.yaml"))
SUITE = """
tasks:
  - task: capitals
    dataset_path: json
    test_split: test
    output_type: multiple_choice
    doc_to_text: "{{question}}"
    doc_to_choice: "{{choices}}"
    doc_to_target: "{{label}}"
    metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
  - task: say_it
    dataset_path: json
    test_split: test
    output_type: generate_until
    doc_to_text: "{{question}}"
    doc_to_target: "{{choices[label]}}"
    generation_kwargs: {until: ["\\n"], max_gen_toks: 6}
    metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
files: {capitals: {test: rows.jsonl}, say_it: {test: rows.jsonl}}
offline: true
"""
ROWS = [
    {"question": f"{country}?", "choices": ["Rome", "Oslo", "Lima"], "label": label}
    for label, country in enumerate(("Italy", "Norway", "Peru"))
]


@pytest.fixture
def suite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    Path("mine.yaml").write_text(SUITE)
    return Path("mine.yaml")


# ---------------------------------------------------------------------- what a suite says


def test_the_suites_that_come_along_are_whole():
    assert [path.stem for path in SHIPPED_SUITES] == ["general", "math_full", "math_small"]
    for path in SHIPPED_SUITES:
        found = read_suite(path, [])
        assert found.tasks and found.chat_template and found.name == path.stem
    assert not [name for name in list_recipes() if name.startswith("eval/")], "they are nothing to train by"


def test_overrides_and_local_files(suite):
    found = read_suite(SHIPPED_SUITES[-1], ["limit=20", "num_fewshot=2", "files.gsm8k.test=rows.jsonl"])
    assert (found.limit_count, found.num_fewshot) == (20, 2)
    [(name, changes)] = found.list_changes()
    assert name == "gsm8k" and changes["dataset_path"] == "json" and changes["dataset_name"] is None
    assert changes["dataset_kwargs"] == {"data_files": {"test": str(Path("rows.jsonl").absolute())}}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("files.gsm8k.test=none.jsonl", "files.gsm8k.test: there is no file 'none.jsonl'"),
        ("files.gsm9k.test=rows.jsonl", "files: 'gsm9k' is none of the tasks, which are gsm8k"),
        ("tasks=[]", "tasks: none"),
        ("tasks=[{doc_to_text: a}]", "a task without a name"),
        ("fewshot=2", "unknown key 'fewshot'"),
    ],
)
def test_mistakes_in_a_suite_are_named(suite, override, told):
    with pytest.raises(UserError, match=told):
        read_suite(SHIPPED_SUITES[-1], [override])


def test_changes_of_a_known_task_include_the_harness_s_own_file(suite, tmp_path):
    class Known:
        yaml_path = Path("/harness/gsm8k.yaml")

    found = read_suite(SHIPPED_SUITES[-1], ["files.gsm8k.test=rows.jsonl"])
    [path] = list_task_files(found, {"gsm8k": Known()}, tmp_path)
    text = Path(path).read_text()
    assert "include: /harness/gsm8k.yaml" in text and "tag: null" in text and "dataset_path: json" in text
    with pytest.raises(UserError, match="lm-eval knows no task 'gsm8k'"):
        list_task_files(found, {}, tmp_path)


def test_generation_options_mean_what_the_harness_means():
    params, until = read_generation_options({"until": "\n", "do_sample": False, "temperature": 0.7}, 3)
    assert (params.temperature, params.max_tokens, until) == (0.0, 256, ["\n"])
    params, _ = read_generation_options({"until": [], "do_sample": True, "top_p": 0.9, "max_gen_toks": 7}, 3)
    assert (params.temperature, params.top_p, params.max_tokens, params.seed) == (1.0, 0.9, 7, 3)
    with pytest.raises(UserError, match="'num_beams' has no meaning here"):
        read_generation_options({"num_beams": 4}, 0)


def test_without_the_harness_it_is_told_what_to_install(suite, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    result = CliRunner().invoke(app, ["eval", "random:tiny", "--suite", "mine.yaml"])
    assert result.exit_code == 2 and "pip install 'aurify[lm-eval]'" in " ".join(result.stderr.split())
    result = CliRunner().invoke(app, ["eval", "random:tiny", "--suite", "math_smal"])
    assert "did you mean 'math_small'" in " ".join(result.stderr.split())


# ---------------------------------------------------------------------- with the harness


@pytest.fixture
def harness():
    return pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'aurify[lm-eval]'")


@pytest.fixture
def models(harness, float32) -> Iterator[tuple[Any, Any]]:
    """Ours, and the harness's own on the same weights."""
    from lm_eval.models.huggingface import HFLM

    engine, plain = (load_model(ModelConfig(name="random:tiny", dtype="float32")) for _ in range(2))
    model = Engine(engine, trainable=False)
    with asyncio.Runner() as runner:
        ours = open_harness_model(model, InProcessSampler(model), Renderer(model.tokenizer), runner.run)
        yield ours, HFLM(pretrained=plain.module, tokenizer=plain.tokenizer, batch_size=2, device="cpu")
        runner.run(ours.sampler.close())


def ask(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, args, index, ("t", index, 1)) for index, args in enumerate(arguments)]


def test_log_likelihoods_are_those_of_the_harness_s_own_model(models):
    _, theirs = models
    [greedy] = theirs.generate_until(ask("generate_until", ("Italy?", {"until": [], "max_gen_toks": 3})))
    pairs = [("Italy?", " Rome"), ("Italy?", " Oslo"), ("", "Lima is far"), ("Peru? ", "Lima"), ("Italy?", greedy)]
    found, known = (model.loglikelihood(ask("loglikelihood", *pairs)) for model in models)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in known], abs=1e-3)
    assert [best for _, best in found] == [best for _, best in known] and found[-1][1], "greedy is seen"


def test_texts_longer_than_the_context_are_scored_in_windows(models):
    ours, theirs = models
    ours.max_length = theirs._max_length = 24
    texts = [("It is far from here to there and back again.",), ("short",)]
    found, known = (model.loglikelihood_rolling(ask("loglikelihood_rolling", *texts)) for model in models)
    assert found[1] == pytest.approx(known[1], abs=1e-3)
    assert found[0] == pytest.approx(known[0], rel=0.05), "the windows differ by one token"


def test_greedy_answers_are_those_of_the_harness_s_own_model(models):
    ours, theirs = models
    history = [{"role": "user", "content": "Norway?"}]
    assert ours.apply_chat_template(history) == theirs.apply_chat_template(history)
    begun = [*history, {"role": "assistant", "content": "It is"}]
    assert ours.apply_chat_template(begun, add_generation_prompt=False) == theirs.apply_chat_template(begun, False)
    prompts = [(ours.apply_chat_template(history), {"until": ["\n\n"], "max_gen_toks": 8}), ("Peru?", {"until": []})]
    prompts[1][1]["max_gen_toks"] = 5
    found, known = (model.generate_until(ask("generate_until", *prompts)) for model in models)
    assert found == known


def test_prompts_without_room_are_cut_at_their_left_and_counted(models):
    ours, theirs = models
    ours.max_length = theirs._max_length = 20
    prompts = [("this is a long prompt that leaves no room", {"until": [], "max_gen_toks": 6})]
    found, known = (model.generate_until(ask("generate_until", *prompts)) for model in models)
    assert found == known and ours.num_cut == 1


def test_a_suite_stands_in_one_table_with_a_task_of_ours(harness, suite):
    command = [
        "eval",
        "random:tiny",
        "--suite",
        "mine.yaml",
        "--task",
        "sorting",
        "--num-tasks",
        "2",
        "--max-tokens",
        "2",
    ]
    result = CliRunner().invoke(app, [*command, "--out", "both"])
    assert result.exit_code == 0, (result.output, result.exception)
    rows = json.loads(Path("both/results.json").read_text())["results"]
    assert [(row["task"], row["measure"], row["num"]) for row in rows] == [
        ("sorting", "numbers_match", 2),
        ("capitals", "acc", 2),
        ("say_it", "exact_match", 2),
    ]
    for row in rows[1:]:
        lines = [json.loads(line) for line in Path("both", row["log"]).read_text().splitlines()]
        assert sum(line[row["measure"]] for line in lines) / 2 == row["value"] and row["suite"] == "mine"
        asked = lines[0]["arguments"][0][0]
        assert "<|im_start|>user\nItaly?" in asked, "the chat template is on"
    assert "capitals" in result.stdout and "capitals" in Path("both/report.html").read_text()


def test_two_models_are_compared_on_the_questions_of_a_suite(harness, suite, tmp_path):
    from aurify.models.model import tiny_model

    other = tmp_path / "other"
    Engine(tiny_model(seed=5), trainable=False).export(other)
    result = CliRunner().invoke(
        app, ["eval", "random:tiny", str(other), "--suite", "mine.yaml", "--out", "two", "--json"]
    )
    assert result.exit_code == 0, (result.output, result.exception)
    found = json.loads(result.stdout)
    assert [(row["task"], row["measure"], row["num"]) for row in found["comparisons"]] == [
        ("capitals", "acc", 3),
        ("say_it", "exact_match", 3),
    ]
    values = {(row["model"], row["task"]): row["value"] for row in found["results"]}
    difference = values[(str(other), "capitals")] - values[("random:tiny", "capitals")]
    assert found["comparisons"][0]["difference"] == pytest.approx(difference)
