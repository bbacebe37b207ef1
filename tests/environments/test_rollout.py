"""Rollouts keep exactly the tokens that were sampled, and train only those."""

from __future__ import annotations

import asyncio

import pytest
import tokenizers_in_code as made

from aurify.environments.env import Observation, Step
from aurify.environments.rollout import Limits, build_datum, rollout
from aurify.environments.single_turn import SingleTurn
from aurify.errors import UserError
from aurify.renderer import Renderer
from aurify.rewards.answers import read_answer
from aurify.samplers.scripted import ScriptedSampler
from aurify.types import SamplingParams, Segment, Task, Trajectory

TASK = Task("sum/1", [{"role": "user", "content": "hello?"}], "12")


class Echo:
    """Answers every message with a question, `num_turns` times."""

    def __init__(self, num_turns: int = 2) -> None:
        self.left, self.heard, self.closed = num_turns, [], False

    async def start(self):
        return Observation(list(TASK.prompt))

    async def step(self, message):
        self.heard.append(message["content"])
        self.left -= 1
        replies = [{"role": "tool", "content": "tool says he"}, {"role": "user", "content": "go on"}]
        return Step(replies, done=self.left == 0, rewards={"turns": 1.0}, metrics={"turns": 1})

    async def close(self):
        self.closed = True


@pytest.fixture
def renderer():
    return Renderer(made.byte_level())


def play(renderer, replies, environment=None, params=None, task=TASK, **options):
    sampler = ScriptedSampler(replies, renderer.tokenizer)
    params = params or SamplingParams(max_tokens=50)
    trajectory = asyncio.run(rollout(task, environment or SingleTurn(task), sampler, renderer, params, **options))
    return trajectory, sampler


def spelled(renderer, text):
    """One token for each byte and the end: what encoding the text would never give."""
    ids = renderer.tokenizer.convert_tokens_to_ids(list(text.replace(" ", "Ġ")))
    return [*ids, renderer.end_token]


def test_the_trained_tokens_are_the_sampled_ones(renderer):
    """T1, for a tokenizer that reads the text back as other tokens."""
    first, second = spelled(renderer, "hello"), spelled(renderer, "ell 12")
    text = renderer.tokenizer.decode(first)
    assert renderer.tokenizer(text, add_special_tokens=False).input_ids != first
    trajectory, sampler = play(renderer, [first, second], Echo())
    assert [s.tokens for s in trajectory.segments if s.origin == "policy"] == [first, second]
    datum = build_datum(trajectory)
    assert [t for t, w in zip(datum.tokens, datum.weights, strict=True) if w] == first + second
    assert sampler.prompts[1] == datum.tokens[: -len(second)]  # the second turn saw the very tokens of the first


def test_a_trajectory_knows_whether_its_prompt_opens_a_thought(renderer):
    """As templates of DeepSeek-R1 and Qwen3-Thinking do: what is said before </think> is no answer."""
    assert not play(renderer, ["12"])[0].opened_thought
    tokenizer = made.byte_level()
    head, _, tail = tokenizer.chat_template.rpartition("{% endif %}")
    tokenizer.chat_template = f"{head}<think>\n{{% endif %}}{tail}"
    opening = Renderer(tokenizer)
    assert opening.opens_thought(opening.prompt(TASK.prompt))
    for reply, answer in (("12", None), ("so</think>12", "12")):
        trajectory, _ = play(opening, [reply])
        assert trajectory.opened_thought and read_answer(trajectory) == answer


def test_environment_tokens_stay_and_weigh_nothing(renderer):
    """T2: the tool's answer is context; its prediction is not trained. Log-probs stand at the policy's tokens only."""
    trajectory, _ = play(renderer, ["hello", "12"], Echo())
    origins = [segment.origin for segment in trajectory.segments]
    assert origins == ["prompt", "policy", "environment", "policy"]
    datum = build_datum(trajectory, 0.5)
    assert datum.tokens == trajectory.tokens
    place, expected = 0, []
    for segment in trajectory.segments:
        expected += [float(segment.origin == "policy")] * len(segment.tokens)
        if segment.origin == "environment":
            text = renderer.tokenizer.decode(datum.tokens[place : place + len(segment.tokens)])
            assert "tool says he" in text and "go on" in text
        place += len(segment.tokens)
    assert datum.weights == expected
    assert datum.logprobs == [-1.0 * weight for weight in expected]
    assert datum.advantages == [0.5] * len(datum.tokens)


def test_a_sampled_end_token_is_trained(renderer):
    """T3: sampled, it has weight 1."""
    trajectory, _ = play(renderer, ["hello"])
    datum = build_datum(trajectory)
    assert datum.tokens[-1] == renderer.end_token
    assert datum.weights[-1] == 1.0
    assert not trajectory.truncated


class StopsAtText(ScriptedSampler):
    """Ends its turns by a stop string, without an end token."""

    def _complete(self, prompt, params):
        completion = super()._complete(prompt, params)
        return type(completion)(completion.tokens[:-1], completion.logprobs[:-1], "stop", completion.versions[:-1])


def test_an_end_token_that_the_runtime_adds_is_not_trained(renderer):
    """T3: the policy stopped at a stop string; the end token before the tool's answer is the template's."""
    sampler = StopsAtText(["hello", "12"], renderer.tokenizer)
    trajectory = asyncio.run(rollout(TASK, Echo(), sampler, renderer, SamplingParams()))
    policy, following = trajectory.segments[1], trajectory.segments[2]
    assert renderer.end_token not in policy.tokens
    assert following.tokens[0] == renderer.end_token
    datum = build_datum(trajectory)
    start = len(trajectory.segments[0].tokens) + len(policy.tokens)
    assert datum.weights[start - 1 : start + 1] == [1.0, 0.0]


def test_the_environment_hears_text_and_its_rewards_are_summed(renderer):
    environment = Echo(3)
    trajectory, _ = play(renderer, ["hello", "12", "all"], environment)
    assert environment.heard == ["hello", "12", "all"]
    assert environment.closed
    assert trajectory.rewards == {"turns": 3.0}
    assert trajectory.metrics == {"turns": 3.0}
    assert trajectory.text == "hello\n12\nall"
    assert [m["role"] for m in trajectory.messages] == ["user", *["assistant", "tool", "user"] * 2, "assistant"]


def test_truncation_by_tokens_context_and_turns(renderer):
    trajectory, _ = play(renderer, ["hello all"], params=SamplingParams(max_tokens=3))
    assert trajectory.truncated
    assert trajectory.num_policy_tokens == 3

    num_prompt = len(renderer.prompt(TASK.prompt))
    trajectory, _ = play(renderer, ["hello all"], max_context=num_prompt + 4)
    assert trajectory.truncated
    assert len(trajectory.tokens) == num_prompt + 4

    environment = Echo(9)
    trajectory, sampler = play(renderer, ["he"], environment, limits=Limits(turns=3))
    assert trajectory.truncated
    assert len(sampler.prompts) == 3
    assert environment.closed


def test_a_context_that_fills_up_between_turns_truncates(renderer):
    num_prompt = len(renderer.prompt(TASK.prompt))
    trajectory, sampler = play(renderer, ["he"], Echo(9), max_context=num_prompt + 20)
    assert trajectory.truncated
    assert len(sampler.prompts) == 1  # the tool's answer left no room


def test_the_context_of_the_sampler_counts_too(renderer):
    sampler = ScriptedSampler(["hello all"], renderer.tokenizer)
    sampler.max_context = len(renderer.prompt(TASK.prompt)) + 2
    trajectory = asyncio.run(rollout(TASK, SingleTurn(TASK), sampler, renderer, SamplingParams()))
    assert trajectory.num_policy_tokens == 2


def test_a_prompt_without_room_names_its_task(renderer):
    environment = Echo()
    with pytest.raises(UserError, match=r"'sum/1': its prompt has 23 tokens and the context 10"):
        play(renderer, ["x"], environment, max_context=10)
    assert environment.closed


def test_every_turn_has_its_own_seed(renderer):
    seen = []

    class Recording(ScriptedSampler):
        async def sample(self, prompt, params, n=1):
            seen.append(params.seed)
            return await super().sample(prompt, params, n)

    for seed in (7, 8):
        params = SamplingParams(seed=seed)
        sampler = Recording(["he"], renderer.tokenizer)
        asyncio.run(rollout(TASK, Echo(3), sampler, renderer, params))
    assert seen[0] == 7
    assert len(set(seen)) == 6
    assert all(0 <= seed < 2**64 for seed in seen)


def test_guidance_is_trained_without_log_probs():
    segments = [Segment([1, 2], "prompt"), Segment([3], "guidance"), Segment([4], "policy", [-0.5], [0])]
    datum = build_datum(Trajectory(segments, [], 0, source="guidance"))
    assert datum.weights == [0, 0, 1, 1]
    assert datum.logprobs == [0, 0, 0, -0.5]
    assert datum.source == "policy" and datum.guided == [False, False, True, False]
    whole = build_datum(Trajectory(segments[:2], [], 0, source="guidance"))
    assert whole.source == "guidance" and whole.guided is None and whole.logprobs == [0, 0, 0]
    without = [Segment([1], "prompt"), Segment([4], "policy")]
    assert build_datum(Trajectory(without, [], 0)).logprobs is None


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (lambda: 1 / 0, r"environment 'Broken' raised ZeroDivisionError: division by zero \(.*test_rollout.py:\d+\)"),
        (lambda: None, "environment 'Broken': step\\(\\) gave a NoneType; it must return an aurify.Step"),
    ],
)
def test_what_an_environment_does_wrong_is_named_and_it_is_closed(renderer, reply, expected):
    class Broken(Echo):
        async def step(self, message):
            return reply()

    environment = Broken()
    with pytest.raises(UserError, match=expected):
        play(renderer, ["hello"], environment)
    assert environment.closed
