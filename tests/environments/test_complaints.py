"""What users of other frameworks complain about, each as a test named after its issue. Issues were read where they are
quoted; verl 1696, verl 4918 and TRL 6361 are known by what issue 16 says of them."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from typing import Any

import pytest
import tokenizers_in_code as made
import torch

from aurify.algorithms.grpo import GRPO
from aurify.engine.inputs import build_row_inputs
from aurify.engine.packing import pack_rows
from aurify.environments.env import Observation, Step
from aurify.environments.multi_turn import MultiTurnEnvironment
from aurify.environments.player import RolloutOptions
from aurify.environments.rollout import Limits, build_data, rollout
from aurify.environments.search_r1 import SearchR1
from aurify.environments.tool_use import ToolUse
from aurify.loops.ledger import rollout_metrics
from aurify.loops.rollouts import Rollouts, Round
from aurify.models.model import ModelConfig
from aurify.pipeline.recipe import OnlineStage
from aurify.renderer import Renderer
from aurify.rewards.rubric import Rubric
from aurify.samplers.scripted import ScriptedSampler
from aurify.tasks.taskset import TaskSet
from aurify.types import Datum, Outputs, SamplingParams, Task, Trajectory, count_units

TASK = Task("t", [{"role": "user", "content": "What is 12 times 34?"}], "408")
CALL = f"<tool_call>{json.dumps({'name': 'calculator', 'arguments': {'expression': '12*34'}})}</tool_call>"


class Says(MultiTurnEnvironment):
    def __init__(self, task: Task = TASK, answers: Any = ("and then?",)) -> None:
        super().__init__(task)
        self.answers = list(answers)

    def step(self, message: Any) -> Any:
        return self.answers.pop(0) if self.answers else Step(done=True)


class Bounded(ScriptedSampler):
    """As an engine, it refuses what does not fit into the context."""

    max_context = 10**9

    async def sample(self, prompt: Any, params: SamplingParams, n: int = 1, **options: Any) -> Any:
        assert len(prompt) + params.max_tokens <= self.max_context, "a request beyond the context"
        return await super().sample(prompt, params, n, **options)


def play(renderer: Renderer, replies: Any, environment: Any, max_context: int = 10**9, **options: Any) -> Any:
    sampler = Bounded(replies, renderer.tokenizer)
    sampler.max_context = max_context
    params = SamplingParams(max_tokens=options.pop("max_tokens", 200))
    return asyncio.run(rollout(TASK, environment, sampler, renderer, params, **options)), sampler


def trained(data: Any) -> list[int]:
    return [token for datum in data for token, weight in zip(datum.tokens, datum.weights, strict=True) if weight]


def test_trl_5224_turns_are_never_tokenised_again() -> None:
    """ "he" and "llo" decode to "hello", which encodes otherwise: the log-probs would belong to other tokens."""
    renderer = Renderer(made.byte_level(), tools_as_text=True)
    encode = renderer.tokenizer
    spelled = [t for part in ("h", "e", "l", "l", "o ", CALL) for t in encode(part, add_special_tokens=False).input_ids]
    said = [*spelled, renderer.end_token]
    assert encode(encode.decode(spelled), add_special_tokens=False).input_ids != spelled
    trajectory, sampler = play(renderer, [said, said, "408"], ToolUse(TASK, ["calculator"]))
    [datum] = build_data(trajectory)
    assert trained([datum])[: 2 * len(said)] == [*said, *said]
    for prompt in sampler.prompts:
        assert datum.tokens[: len(prompt)] == prompt, "what was trained is what the policy saw"


def test_trl_5144_masks_are_as_long_as_their_tokens() -> None:
    """There, a turn that got shorter when it was encoded again left a mask that was longer than the ids."""
    renderer = Renderer(made.byte_level(), tools_as_text=True)
    spelled = [t for sign in "hehehe1212" for t in renderer.tokenizer(sign, add_special_tokens=False).input_ids]
    trajectory, _ = play(renderer, [[*spelled, renderer.end_token]] * 3, Says(answers=["he", "12"]))
    [datum] = build_data(trajectory, [0.5, -1.0, 2.0])
    assert all(len(stream) == len(datum.tokens) for stream in (datum.weights, datum.advantages, datum.logprobs))
    num = len(spelled) + 1
    given = [a for a, w in zip(datum.advantages, datum.weights, strict=True) if w]
    assert given == [*[0.5] * num, *[-1.0] * num, *[2.0] * num]
    assert [lp for lp, w in zip(datum.logprobs, datum.weights, strict=True) if w] == [-1.0] * 3 * num


def test_trl_6067_what_an_environment_shows_first_is_in_the_prompt() -> None:
    """There, the observation of reset() was thrown away, and the policy had no task."""

    class Hidden(Says):
        def begin(self) -> Any:
            return [{"role": "user", "content": "the board is 12 he"}]

    class Plain:
        async def start(self) -> Observation:
            return Observation([{"role": "user", "content": "the board is 12 he"}])

        async def step(self, message: Any) -> Step:
            return Step(done=True)

        async def close(self) -> None:
            pass

    renderer = Renderer(made.byte_level())
    for environment in (Hidden(), Plain()):
        trajectory, sampler = play(renderer, ["x"], environment)
        assert "the board is 12 he" in renderer.tokenizer.decode(sampler.prompts[0])
        assert trajectory.messages[0]["content"] == "the board is 12 he" and trajectory.num_prompt_messages == 1


def test_trl_6361_a_thought_that_the_prompt_opens_stands_there_once() -> None:
    renderer = Renderer(made.byte_level(made.THINKING))
    trajectory, _ = play(renderer, ["he</think>12", "ll</think>12"], Says())
    for row in trajectory.rows:
        last = renderer.tokenizer.decode([t for s in row for t in s.tokens]).rpartition("assistant\n")[2]
        assert last.count("<think>") == last.count("</think>") == 1
    prompt = renderer.prompt(TASK.prompt)
    assert renderer.reply(prompt, "<think>he</think>12") == renderer.reply(prompt, "he</think>12")
    tokens, weights = renderer.conversation([*TASK.prompt, {"role": "assistant", "content": "<think>he</think>12"}])
    assert renderer.tokenizer.decode(tokens).count("<think>") == 1 and sum(weights) > 0


@pytest.mark.parametrize("family", ["qwen3", "deepseek"])
def test_prime_rl_1334_and_verl_6854_thoughts_that_the_template_drops_make_rows(family: str) -> None:
    """There, an assertion failed that turn n + 1 begins with turn n. Here each turn is trained after the very prompt
    that the template writes, and nothing is lost."""
    renderer = Renderer(made.family(family))
    replies = ["<think>\nhe\n</think>\n\none", "<think>\nll\n</think>\n\ntwo", "three"]
    trajectory, sampler = play(renderer, replies, Says(answers=["and then?", "and now?"]))
    data = build_data(trajectory, unit=0)
    said = [token for segment in trajectory.segments if segment.origin == "policy" for token in segment.tokens]
    assert len(data) == 3 and trained(data) == said
    for number, (prompt, datum) in enumerate(zip(sampler.prompts, data, strict=True)):
        assert prompt == renderer.prompt(trajectory.messages[: 1 + 2 * number])
        assert datum.tokens[: len(prompt)] == prompt and not any(datum.weights[: len(prompt)])


def test_verl_1696_a_search_agent_cannot_get_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy that searches for ever ends at its limits, and a retriever that never answers at its time limit."""
    from aurify.environments import search_r1

    class Found:
        async def find(self, query: str) -> list[Any]:
            return []

    monkeypatch.setattr(search_r1, "open_search", lambda *_: Found())
    renderer = Renderer(made.byte_level())
    environment = SearchR1(TASK, url="http://nowhere", max_searches=2)
    trajectory, sampler = play(renderer, ["<search>x</search>"], environment, limits=Limits(turns=6))
    assert trajectory.outcome == "turn_limit" and len(sampler.prompts) == 6
    assert trajectory.metrics == {"searches": 2.0, "searches_refused": 4.0, "invalid_actions": 0.0, "answers": 0.0}

    class Never(Found):
        async def find(self, query: str) -> list[Any]:
            time.sleep(3)
            return []

    monkeypatch.setattr(search_r1, "open_search", lambda *_: Never())
    replies = iter([*["<answer>408</answer>"] * 3, *["<search>x</search>"] * 2])
    began = time.monotonic()
    made_round = sample(lambda task: SearchR1(task, url="http://nowhere"), lambda prompt: next(replies))
    metrics = rollout_metrics(made_round, GRPO().advantages(made_round.filled), STAGE)
    assert metrics["ledger/failed_time_limit"] == metrics["ledger/trajectories_failed"] == 1
    assert len(made_round.groups[0].trajectories) == 3 and time.monotonic() - began < 20


STAGE = OnlineStage(
    method="grpo", model=ModelConfig("random:tiny"), prompts_per_step=1, completions_per_prompt=4,
    rollouts=RolloutOptions(step_seconds=0.5),
)  # fmt: skip


def sample(environment: Any, replies: Any) -> Round:
    """A step of one group of four."""
    renderer = Renderer(made.byte_level())

    def right(task: Task, trajectory: Trajectory) -> float:
        return float("408" in trajectory.text)

    taskset = TaskSet("toy", lambda seed: iter([TASK]), [TASK], Rubric([right]), environment)
    sampler = ScriptedSampler(replies, renderer.tokenizer)
    rollouts = Rollouts(sampler, renderer, taskset, taskset.rubric, STAGE, seed=1)
    return asyncio.run(rollouts.sample(0, GRPO(), None))  # type: ignore[arg-type]


class Breaks(MultiTurnEnvironment):
    """Its server is gone for the answers that say so."""

    threaded = False

    def step(self, message: Any) -> Step:
        if "gone" in message["content"]:
            raise ConnectionError("the server is gone")
        return Step(done=True)


def test_verl_6641_partial_groups_are_told_and_compare_those_that_ended() -> None:
    """There, a step trained on what was left of a group and nobody knew."""
    made_round = sample(Breaks, ["408", "gone", "no", "gone", "gone", "gone", "gone"])
    [group] = made_round.groups
    advantages = GRPO(scale="none").advantages([group])
    metrics = rollout_metrics(made_round, advantages, STAGE)
    num_left = len(group.trajectories)
    assert metrics["ledger/trajectories_failed"] == 4 - num_left > 0
    assert metrics["ledger/trajectories"] == num_left and metrics["ledger/tokens_failed"] > 0
    assert any("the server is gone" in line for line in made_round.lines)
    assert sum(advantages[0]) == pytest.approx(0) and set(advantages[0]) == {0.5, -0.5}


def test_verl_6641_one_that_is_left_alone_teaches_nothing() -> None:
    replies = iter(["408", *["gone"] * 7])
    made_round = sample(Breaks, lambda prompt: next(replies))
    advantages = GRPO().advantages(made_round.filled)
    assert advantages == [[0.0]]
    metrics = rollout_metrics(made_round, advantages, STAGE)
    assert metrics["ledger/groups_without_spread"] == 1 and metrics["ledger/trajectories_failed"] == 3


def test_agent_lightning_448_a_rollout_that_failed_is_no_reward_of_zero() -> None:
    """A network that fails says nothing of the policy: three right answers and a failure are all right."""
    replies = iter(["408", "408", "408", "gone", "gone"])
    made_round = sample(Breaks, lambda prompt: next(replies))
    advantages = GRPO().advantages(made_round.filled)
    assert advantages == [[0.0] * 3], "with a zero among them, they would have been pushed up"
    metrics = rollout_metrics(made_round, advantages, STAGE)
    assert metrics["reward/mean"] == 1.0 and metrics["ledger/trajectories_failed"] == 1
    assert metrics["ledger/trajectories_retried"] == 1


@pytest.mark.parametrize("family", ["qwen2.5", "qwen3"])
def test_verl_tool_85_and_verl_4918_a_context_that_is_full_is_an_outcome(family: str) -> None:
    """There, "you requested 4137 tokens" of 4096 ended the run. The sampler here refuses any such request."""
    renderer = Renderer(made.family(family))
    thought = "<think>\nhe\n</think>\n\n" if family == "qwen3" else ""
    long = "word " * 60
    for max_context in range(70, 700, 37):
        environment = Says(answers=[long, "and then?"] * 10)
        said, limits = [thought + "one two three"], Limits(turns=20)
        trajectory, sampler = play(renderer, said, environment, max_context, limits=limits)
        assert trajectory.outcome in ("context", "turn_limit") and trajectory.truncated
        data = build_data(trajectory, unit=0)
        assert all(len(datum.tokens) <= max_context for datum in data)
        assert trained(data) == [t for s in trajectory.segments if s.origin == "policy" for t in s.tokens]
        assert len(sampler.prompts) == len([s for s in trajectory.segments if s.origin == "policy"])


def test_rllm_512_long_failures_do_not_dominate() -> None:
    """There, a rollout of N steps was N rows, each of which counted as a sequence. Here, a failure of five rows weighs
    as much as a success of one."""
    renderer = Renderer(made.byte_level(made.FORGETFUL))
    said = ["<think>x</think>one"]
    long, _ = play(renderer, said, Says(answers=["and then?"] * 4))
    short, _ = play(renderer, said, Says(answers=[]))
    assert [len(t.rows) for t in (long, short)] == [5, 1]

    def weigh(data: list[Datum]) -> list[float]:
        """How far a step moves the log-probs of the long and of the short one: sums of |d loss / d log-prob|."""
        [row] = pack_rows(data, 10**6)
        inputs = build_row_inputs(row, data, torch.device("cpu"))
        logprobs = torch.full((len(inputs.batch.weights),), -1.0, requires_grad=True)
        loss, _ = GRPO(aggregator="sequence").loss(Outputs(logprobs), inputs.batch)
        (loss / count_units(data)).backward()
        assert logprobs.grad is not None
        of_short = inputs.batch.sequence == len(data) - 1
        return [float(logprobs.grad[chosen].abs().sum()) for chosen in (~of_short, of_short)]

    data = [*build_data(long, -1.0, unit=7), *build_data(short, 1.0)]
    assert weigh(data) == pytest.approx([0.5, 0.5])
    assert weigh([replace(datum, unit=-1) for datum in data]) == pytest.approx([5 / 6, 1 / 6]), "a row a step"
