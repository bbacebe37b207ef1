"""Conversations that a chat template does not go on with, but writes anew: Qwen3 and others drop old thoughts."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tokenizers_in_code as made
from recorder import Recorder

from aurify.algorithms.grpo import GRPO
from aurify.algorithms.rloo import RLOO
from aurify.engine.engine import Engine
from aurify.environments.env import Step
from aurify.environments.multi_turn import MultiTurnEnvironment
from aurify.environments.rollout import build_data, rollout
from aurify.loops.online import train_online
from aurify.loops.progress import Checkpoints
from aurify.loops.replay import Buffer
from aurify.loops.rollouts import Rollouts
from aurify.models.model import ModelConfig, load_model
from aurify.pipeline.recipe import OnlineStage, ReplayOptions
from aurify.renderer import Renderer
from aurify.renderer.survey import Survey
from aurify.rewards.rubric import Rubric
from aurify.samplers.scripted import ScriptedSampler
from aurify.tasks.taskset import TaskSet
from aurify.types import Completion, SamplingParams, Segment, Task, Trajectory

QUESTION = {"role": "user", "content": "hello 12?"}
TASK = Task("t", [QUESTION], "12")
THOUGHT = "<think>\nhe\n</think>\n\n"
RESULT = {"role": "tool", "content": "it rains", "name": "search", "tool_call_id": "a12345678"}
TOOL = {"type": "function", "function": {"name": "search", "description": "d", "parameters": {"type": "object"}}}


class Says(MultiTurnEnvironment):
    """Says one thing after the other."""

    def __init__(self, *answers: Any, tools: Any = (), task: Task = TASK) -> None:
        super().__init__(task)
        self.tools, self.answers = tools, list(answers)

    def step(self, message: Any) -> Any:
        return self.answers.pop(0) if self.answers else Step(done=True)


class Versioned(ScriptedSampler):
    """Its weights change with every request."""

    async def sample(self, *arguments: Any, **options: Any) -> list[Completion]:
        self.version += 1
        return await super().sample(*arguments, **options)


def play(family: str, replies: list[str], environment: Says, **options: Any) -> tuple[Trajectory, Any, Any]:
    renderer = Renderer(made.family(family), template_options=options.pop("template_options", {}))
    sampler = Versioned(replies, renderer.tokenizer)
    params = SamplingParams(max_tokens=200)
    return asyncio.run(rollout(TASK, environment, sampler, renderer, params, **options)), sampler, renderer


def trained(data: Any) -> list[int]:
    return [token for datum in data for token, weight in zip(datum.tokens, datum.weights, strict=True) if weight]


def texts(trajectory: Trajectory, renderer: Renderer) -> list[str]:
    return [renderer.tokenizer.decode([t for s in row for t in s.tokens]) for row in trajectory.rows]


def test_a_question_after_a_thought_begins_a_row_as_the_template_writes_it():
    replies = [THOUGHT + "one", THOUGHT + "two", "three"]
    trajectory, sampler, renderer = play("qwen3", replies, Says("and then?", "and then?"))
    first, second, third = texts(trajectory, renderer)
    assert first.endswith(f"assistant\n{THOUGHT}one<|im_end|>")
    assert THOUGHT not in second.removesuffix(f"{THOUGHT}two<|im_end|>") and "assistant\none<|im_end|>" in second
    assert third.count("<think>") == 0 and third.count("and then?") == 2
    messages = [QUESTION, *trajectory.completion]
    for number, prompt in enumerate(sampler.prompts):  # what the policy saw is what whoever serves the model will write
        assert prompt == renderer.prompt(messages[: 1 + 2 * number])
    data = build_data(trajectory, unit=0)
    assert [datum.unit for datum in data] == [0, 0, 0]
    assert trained(data) == [token for s in trajectory.segments if s.origin == "policy" for token in s.tokens]
    assert [s.versions for s in trajectory.segments if s.origin == "policy"] == [
        [number + 1] * turn.num_tokens for number, turn in enumerate(trajectory.turns)
    ]
    assert [turn.environment_tokens > 5 for turn in trajectory.turns] == [True, True, False]


def test_results_of_tools_stay_in_the_row_because_the_template_keeps_thoughts_there():
    replies = [THOUGHT + "call", THOUGHT + "again", THOUGHT + "done", "end"]
    environment = Says([RESULT], [RESULT], "and now?", tools=[TOOL])
    trajectory, _, renderer = play("qwen3", replies, environment)
    first, second = texts(trajectory, renderer)
    assert first.count(THOUGHT) == 3 and THOUGHT not in second
    assert second.count("it rains") == first.count("it rains") == 2


def test_the_survey_is_asked_once_a_turn(monkeypatch):
    asked, extends = [], Survey.extends
    monkeypatch.setattr(Survey, "extends", lambda *arguments: asked.append(extends(*arguments)) or asked[-1])
    replies = [THOUGHT + "call", THOUGHT + "done", "end"]
    play("qwen3", replies, Says([RESULT], "and now?", tools=[TOOL]))
    assert asked == [True, False]


def test_an_empty_thought_of_the_prompt_alone_begins_a_row():
    """Qwen3 without thinking: the empty thought stands before the last reply only (QwenLM/Qwen3 1826)."""
    options = {"template_options": {"enable_thinking": False}}
    trajectory, _, renderer = play("qwen3", ["one", "two"], Says("and then?"), **options)
    assert [text.count("<think>") for text in texts(trajectory, renderer)] == [1, 1]


def test_history_sampled_keeps_every_token_in_one_row():
    trajectory, sampler, renderer = play("qwen3", [THOUGHT + "one", "two"], Says("and then?"), history="sampled")
    [text] = texts(trajectory, renderer)
    assert THOUGHT in text and sampler.prompts[1][: len(sampler.prompts[0])] == sampler.prompts[0]


def test_a_template_that_moves_its_tools_begins_a_row_where_it_can_write_the_whole():
    """Mistral's tools stand before the last question. With results before it, it is refused: see the matrix."""
    trajectory, _, renderer = play("mistral", ["one", "two"], Says("and then?", tools=[TOOL]))
    first, second = texts(trajectory, renderer)
    assert first.startswith("<s>[AVAILABLE_TOOLS]") and second.index("one") < second.index("[AVAILABLE_TOOLS]")


@pytest.mark.parametrize("family", ["smollm2", "qwen2.5", "llama3.1", "gemma", "phi3", "glm", "gpt-oss", "deepseek"])
def test_templates_that_extend_need_one_row(family):
    trajectory, _, renderer = play(family, ["one", "two", "three"], Says("and then?", "and then?"))
    assert len(trajectory.rows) == 1 and texts(trajectory, renderer)[0].count("and then?") == 2


def test_a_row_that_does_not_fit_is_not_trained():
    long = "x" * 60
    trajectory, _, _ = play("qwen3", [THOUGHT + "one", "two"], Says(long, "and then?"), max_context=100)
    assert trajectory.outcome == "context" and len(trajectory.rows) == 1
    assert trained(build_data(trajectory)) == [t for s in trajectory.segments if s.origin == "policy" for t in s.tokens]


class Forgetting(Says):
    def __init__(self, task: Task) -> None:
        super().__init__("and then?", task=task)


@pytest.mark.parametrize("method", [GRPO(aggregator="sequence"), RLOO(reward_kl_coef=0.05)])
def test_rollouts_of_several_rows_are_trained_replayed_and_resumed(tmp_path: Path, method: Any) -> None:
    engine = Engine(load_model(ModelConfig("random:tiny", dtype="float32")))
    engine.tokenizer.chat_template = made.FORGETFUL
    options = OnlineStage(
        method="grpo", model=ModelConfig("random:tiny"), steps=3, prompts_per_step=2, completions_per_prompt=4,
        replay=ReplayOptions(start=0.0), sampling=SamplingParams(max_tokens=100),
    )  # fmt: skip
    asked: Counter[str] = Counter()

    def reply(prompt: list[int]) -> str:
        """Counts how often a task was asked, and says the number twice. The order of the requests does not matter."""
        text = engine.tokenizer.decode(prompt)
        asked[text] += 1
        number = re.findall(r"\d", text)[-1] if "and then?" in text else asked[text] % 7
        return f"<think>x</think>{number}"

    sampler = ScriptedSampler(reply, engine.tokenizer)
    tasks = [Task(f"t{k}", [{"role": "user", "content": f"say {k}"}], str(k)) for k in range(3)]

    def even(task: Task, trajectory: Trajectory) -> float:
        return float(trajectory.text[-1] in "0246")

    taskset = TaskSet("toy", lambda seed: iter(tasks), tasks, Rubric([even]), Forgetting)
    rollouts = Rollouts(
        sampler, Renderer(engine.tokenizer), taskset, taskset.rubric, options, seed=1, buffer=Buffer(options.replay, 4)
    )
    recorder, checkpoints = Recorder(), Checkpoints(tmp_path, every=0, keep=1, identity="x")
    train_online(engine, method, rollouts, tracker=recorder, checkpoints=checkpoints)  # type: ignore[arg-type]
    assert sum(row.get("ledger/tokens_trained", 0) for row in recorder.rows) > 0
    assert sum(row["replay/used"] for row in recorder.rows) > 0
    for entry in rollouts.buffer.entries.values():
        again = entry.trajectory()
        assert len(again.rows) == 2
        known = [[lp for s in row for lp in s.logprobs or [0.0] * len(s.tokens)] for row in again.rows]
        for datum, values in zip(build_data(again, unit=0), known, strict=True):
            [now] = engine.logprobs([datum])
            pairs = [(a, b) for a, b, w in zip(now, values, datum.weights, strict=True) if w]
            assert pairs and all(b != 0 and abs(a - b) < 1.0 for a, b in pairs), "log-probs belong to their tokens"


def test_segments_without_a_prompt_are_one_row():
    assert len(Trajectory([Segment([1], "policy"), Segment([2], "environment")], [], 0).rows) == 1
