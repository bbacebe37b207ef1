from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from aurify.config import build_options, dump_config, find_config_keys, load_config, suggest_neighbour
from aurify.errors import UserError
from aurify.types import SamplingParams


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file into the working directory, which is empty at first."""
    monkeypatch.chdir(tmp_path)
    return lambda name, text: (Path(name).parent.mkdir(parents=True, exist_ok=True), Path(name).write_text(text))


def load(*overrides: str, path: str = "recipe.yaml") -> dict[str, Any]:
    return load_config(path, overrides)


def test_values_are_typed_as_yaml_1_2_reads_numbers(write):
    write("recipe.yaml", "lr: 1e-4\nsteps: 30\nname: a b\nnone: null\nlist: [1, two]\n")
    assert load() == {"lr": 1e-4, "steps": 30, "name": "a b", "none": None, "list": [1, "two"]}


def test_bases_are_merged_in_order_and_found_beside_the_file_that_names_them(write):
    write("shared/model.yaml", "base: deeper/size.yaml\nmodel: {name: small, dtype: auto}\n")
    write("shared/deeper/size.yaml", "model: {name: overwritten, layers: 2}\nstages: [a, b]\n")
    write("seed.yaml", "seed: 1\nmodel: {name: middle}\n")
    write("recipe.yaml", "base: [shared/model.yaml, seed.yaml]\nmodel: {dtype: float32}\nstages: [c]\n")
    assert load() == {"model": {"name": "middle", "layers": 2, "dtype": "float32"}, "stages": ["c"], "seed": 1}


def test_an_override_reaches_what_refers_to_it(write):
    write("base.yaml", "size: 8\ntext: run-${size}\n")
    write("recipe.yaml", "base: base.yaml\nbatch: ${size}\n")
    assert load("size=16") == {"size": 16, "text": "run-16", "batch": 16}
    assert load("batch=${twice}", "twice=32")["batch"] == 32


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a.b=3", 3),
        ("a.b=1e-5", 1e-5),
        ("a.b=true", True),
        ("a.b=null", None),
        ("a.b=", None),
        ("a.b=x=y", "x=y"),
        ("a.b='3'", "3"),
        ("a.b=[1, 2]", [1, 2]),
        ("a.b={d: 1}", {"d": 1}),  # replaces, does not merge
    ],
)
def test_overrides_are_typed_by_yaml(write, override, expected):
    write("recipe.yaml", "a: {b: {c: 0}}\n")
    assert load(override) == {"a": {"b": expected}}


def test_an_override_of_a_list_item_and_of_a_new_key(write):
    write("recipe.yaml", "files: [a, b]\n")
    assert load("files.1=c", "new.key=1") == {"files": ["a", "c"], "new": {"key": 1}}


def test_what_is_dumped_reads_back_the_same(write):
    values = {"lr": 1e-5, "text": "costs ${5}", "none": None, "nested": {"list": [1, "2", True, 0.5]}}
    write("recipe.yaml", dump_config(values))
    assert load() == values


@pytest.mark.parametrize(
    "text", ["${", "${a}", "a ${oc.env:HOME} b", r"\${a}", r"\\${a}", "${a}\\", "a\\", "$a", "1e3"]
)
def test_text_that_looks_like_something_else_stays_text(write, text):
    write("recipe.yaml", dump_config({"text": text, "list": [text], "nested": {"text": text}}))
    assert load() == {"text": text, "list": [text], "nested": {"text": text}}


@pytest.mark.parametrize(
    ("files", "overrides", "expected"),
    [
        ({}, [], "recipe.yaml: no such file"),
        ({"recipes.yaml": "a: 1"}, [], "recipe.yaml: no such file; did you mean 'recipes.yaml'?"),
        ({"recipe.yaml": ""}, [], "recipe.yaml: expected a mapping of keys to values"),
        ({"recipe.yaml": "just text"}, [], "found 'just text'"),
        ({"recipe.yaml": "- a\n- b"}, [], "expected a mapping of keys to values"),
        ({"recipe.yaml": "a: 1\nb: [1,\nc: 2\n"}, [], "recipe.yaml:4: not valid YAML"),
        ({"recipe.yaml": "a: 1\nb: 2\na: 3\n"}, [], "recipe.yaml:3: not valid YAML: found duplicate key a"),
        ({"recipe.yaml": "model: @sft\n"}, [], "quote text that holds ':', '#', '@'"),
        ({"recipe.yaml": "base: other.yaml"}, [], "recipe.yaml: the base other.yaml: no such file"),
        ({"recipe.yaml": "base: 3"}, [], "'base' is 3; expected a path, or a list of paths"),
        ({"recipe.yaml": "base: b.yaml", "b.yaml": "base: recipe.yaml"}, [], "`base:` leads back to this file"),
        (
            {"recipe.yaml": "a: {b: '${nope}'}"},
            [],
            "recipe.yaml: 'a.b' cannot be resolved: Interpolation key 'nope' not found",
        ),
        ({"recipe.yaml": "a: ???"}, [], "recipe.yaml: 'a' cannot be resolved: Missing mandatory value"),
        ({"recipe.yaml": "a: 1"}, ["a"], "override 'a': expected dotted.key=value"),
        ({"recipe.yaml": "a: 1"}, ["a =1"], "override 'a =1': expected dotted.key=value without spaces"),
        ({"recipe.yaml": "a: 1"}, ["a=[1,"], "override 'a=[1,': the value is not valid YAML"),
        ({"recipe.yaml": "a: 1"}, ["a.b=1"], "override 'a.b=1': 'a' is 1 and has no keys of its own"),
    ],
)
def test_what_cannot_be_read_is_an_error_that_names_the_place(write, files, overrides, expected):
    for name, text in files.items():
        write(name, text)
    with pytest.raises(UserError) as caught:
        load(*overrides)
    assert expected in str(caught.value)


def test_a_file_that_is_no_text(write):
    Path("recipe.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"recipe\.yaml: cannot be read as text"):
        load()


@dataclass(frozen=True)
class Adapter:
    rank: int = 16
    dropout: float = 0.0
    targets: str | list[str] = "all-linear"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank {self.rank} must be at least 1")


@dataclass(frozen=True)
class Stage:
    data: str
    steps: int = 30
    lr: float = 1e-4
    shuffle: bool = True
    lora: Adapter | None = None
    sampling: SamplingParams = SamplingParams()
    mode: Literal["auto", "cpu", "cuda"] = "auto"
    files: tuple[str, ...] = ()
    parts: list[Adapter] = field(default_factory=list)
    others: dict[str, Adapter] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


def test_nested_dataclasses_are_built():
    values = {
        "data": "chat.jsonl",
        "lr": 1,
        "lora": {"rank": "8", "targets": ["q_proj"]},
        "sampling": {"stop": ["\n"], "temperature": 0},
        "files": ["a", "b"],
        "parts": [{"rank": 2}],
        "others": {"x": {"rank": 3}},
        "extra": {"anything": [1]},
    }
    assert build_options(Stage, values) == Stage(
        data="chat.jsonl",
        lr=1.0,
        lora=Adapter(rank=8, targets=["q_proj"]),
        sampling=SamplingParams(stop=("\n",), temperature=0.0),
        files=("a", "b"),
        parts=[Adapter(rank=2)],
        others={"x": Adapter(rank=3)},
        extra={"anything": [1]},
    )
    assert build_options(Stage, {"data": 2024}).data == "2024"  # a name may look like a number


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, "r.yaml: missing key 's.data'; expected text"),
        ({"stesp": 3}, "r.yaml: unknown key 's.stesp'; did you mean 'steps'?"),
        ({"lora": {"rnak": 3}}, "r.yaml: unknown key 's.lora.rnak'; did you mean 'rank'?"),
        ({"lora": {"zzz": 3}}, "r.yaml: unknown key 's.lora.zzz'; known: dropout, rank, targets"),
        ({"others": {"x": {"rnak": 3}}}, "r.yaml: unknown key 's.others.x.rnak'; did you mean 'rank'?"),
        ({"steps": "abc"}, "r.yaml: 's.steps' is 'abc'; expected an integer"),
        ({"steps": 1.5}, "r.yaml: 's.steps' is 1.5; expected an integer"),
        ({"steps": True}, "r.yaml: 's.steps' is true; expected an integer"),
        ({"steps": None}, "r.yaml: 's.steps' is null; expected an integer"),
        ({"lr": "fast"}, "r.yaml: 's.lr' is 'fast'; expected a number"),
        ({"lr": float("nan")}, "r.yaml: 's.lr' is nan; expected a number that is finite"),
        ({"shuffle": 3}, "r.yaml: 's.shuffle' is 3; expected true or false"),
        ({"lora": 3}, "r.yaml: 's.lora' is 3; expected a mapping or null"),
        ({"lora": {"rank": 0}}, "r.yaml: s.lora: rank 0 must be at least 1"),
        ({"sampling": {"top_p": 2}}, "r.yaml: s.sampling.top_p: 2.0 is out of range; it must be in (0, 1]"),
        ({"mode": "autoo"}, "r.yaml: 's.mode' is 'autoo'; expected one of 'auto', 'cpu', 'cuda'; did you mean 'auto'?"),
        ({"files": ["a", {}]}, "r.yaml: 's.files.1' is {}; expected text"),
        ({"files": "a"}, "r.yaml: 's.files' is 'a'; expected a list (text each)"),
        ({"parts": [{"rank": 1}, {"rank": "x"}]}, "r.yaml: 's.parts.1.rank' is 'x'; expected an integer"),
        ({"extra": [1]}, "r.yaml: 's.extra' is [1]; expected a mapping"),
    ],
)
def test_wrong_values_name_the_key_and_what_was_expected(values, expected):
    with pytest.raises(UserError) as caught:
        build_options(Stage, {"data": "x", **values} if values else values, "r.yaml: s")
    assert str(caught.value) == expected


def test_the_place_may_be_a_file_a_key_both_or_neither():
    for where, expected in {
        "r.yaml": "r.yaml: unknown key 'rnk'",
        "lora": "unknown key 'lora.rnk'",
        "r.yaml: lora": "r.yaml: unknown key 'lora.rnk'",
        "": "unknown key 'rnk'",
    }.items():
        with pytest.raises(UserError) as caught:
            build_options(Adapter, {"rnk": 1}, where)
        assert str(caught.value).startswith(expected + ";")
    with pytest.raises(UserError, match="the recipe is 3; expected a mapping with dropout, rank, targets"):
        build_options(Adapter, 3)


# ------------------------------------------------------------------ words of other libraries, and short forms


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({"lora": {"r": 8}}, "'stages.s.lora.r'; here that is lora.rank"),
        ({"lora": {"lora_alpha": 8}}, "'stages.s.lora.lora_alpha'; here that is lora.alpha"),
        ({"learning_rate": 1e-4}, "'stages.s.learning_rate'; here that is optim.lr"),
        ({"num_generations": 8}, "'stages.s.num_generations'; here that is completions_per_prompt"),
        ({"algorithm": {"beta": 0.1}}, "'stages.s.algorithm.beta'; here that is algorithm.kl_coef"),
        (
            {"gradient_accumulation_steps": 4},
            "gradient_accumulation_steps'; here that is prompts_per_step, the rows",
        ),
        ({"report_to": "wandb"}, "'stages.s.report_to'; there is none here: every step is in metrics.jsonl"),
    ],
)
def test_keys_of_other_libraries_are_translated(stage, words):
    from aurify.pipeline.check import check_recipe
    from aurify.pipeline.recipe import build_recipe

    with pytest.raises(UserError) as raised:
        stages = {"s": {"method": "grpo", **stage}}
        check_recipe(build_recipe({"model": "random:tiny", "task": "addition", "stages": stages}))
    assert words in str(raised.value)


@pytest.mark.parametrize(("method", "words"), [("ppo", "grpo or rloo"), ("rm", "reward_model"), ("grop", "'grpo'?")])
def test_methods_of_other_libraries_are_translated(method, words):
    from aurify.pipeline.recipe import build_recipe

    with pytest.raises(UserError, match=f"unknown algorithm {method!r}.*{re.escape(words)}") as raised:
        build_recipe({"model": "random:tiny", "stages": {"s": {"method": method}}})
    assert "dpo" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "override", "expected"),
    [
        ("model: x", "model.device=cpu", {"model": {"name": "x", "device": "cpu"}}),
        ("task: sorting", "task.length=3", {"task": {"name": "sorting", "length": 3}}),
        ("s: {model: '@t'}", "s.model.dtype=float32", {"s": {"model": {"name": "@t", "dtype": "float32"}}}),
        ("s: {reward: '@t'}", "s.reward.weight=2", {"s": {"reward": {"model": "@t", "weight": 2}}}),
    ],
)
def test_an_override_reaches_into_a_short_form(tmp_path, text, override, expected):
    (tmp_path / "r.yaml").write_text(text)
    assert load_config(tmp_path / "r.yaml", [override]) == expected


def test_a_missing_file_suggests_no_hidden_one(tmp_path):
    (tmp_path / ".recipe.yaml").write_text("name: x")
    with pytest.raises(UserError) as caught:
        load_config(tmp_path / "recipe.yaml")
    assert "no such file (`aurify list recipes`" in str(caught.value) and ".recipe" not in str(caught.value)
    assert suggest_neighbour(tmp_path / "recipe.yaml") == ""


def test_an_empty_file_is_called_empty_and_an_override_cut_by_the_shell_is_explained(tmp_path):
    (tmp_path / "empty.yaml").write_text("\n")
    with pytest.raises(UserError, match="the file is empty"):
        load_config(tmp_path / "empty.yaml")
    (tmp_path / "full.yaml").write_text("name: x\n")
    with pytest.raises(UserError, match="put the whole override between quotes"):
        load_config(tmp_path / "full.yaml", ["data={path:"])


def test_a_key_given_at_the_top_is_found_where_it_belongs():
    values = {"stages": {"sft": {"optim": {"decay": 1}, "steps": 3}}, "steps": 4}
    with pytest.raises(UserError, match=r"did you mean 'stages\.sft\.steps'"):
        build_options(Top, values)
    assert list(find_config_keys(values, "decay")) == ["stages.sft.optim.decay"]


@dataclass(frozen=True)
class Top:
    stages: dict[str, Any]


def test_a_mapping_keeps_what_the_default_of_its_field_says():
    """`evaluation: {sampling: {max_tokens: 6}}` is greedy, as docs/reference.md and `aurify eval` have it."""
    from aurify.pipeline.recipe import EvaluationOptions

    built = build_options(EvaluationOptions, {"sampling": {"max_tokens": 6}})
    assert (built.sampling.max_tokens, built.sampling.temperature) == (6, 0.0)
    assert build_options(EvaluationOptions, {"sampling": {"temperature": 0.7}}).sampling.temperature == 0.7
    assert build_options(EvaluationOptions, {}).sampling == EvaluationOptions().sampling
