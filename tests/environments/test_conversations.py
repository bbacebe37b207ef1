"""Issue 16: conversations with tools, turns that go on, limits and outcomes."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import tokenizers_in_code as made

from aurify.environments import search_r1
from aurify.environments.env import Step
from aurify.environments.multi_turn import MultiTurnEnvironment
from aurify.environments.rollout import Limits, build_datum, rollout
from aurify.environments.search_r1 import SearchR1
from aurify.environments.tool_use import ToolUse
from aurify.errors import UserError
from aurify.renderer import Renderer
from aurify.samplers.scripted import ScriptedSampler
from aurify.types import SamplingParams, Task

TASK = Task("product/1", [{"role": "user", "content": "What is 12 times 34?"}], "408")


@pytest.fixture
def renderer():
    return Renderer(made.byte_level(), tools_as_text=True)


def call(name="calculator", **arguments):
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def play(renderer, replies, environment, max_tokens=400, **options):
    sampler = ScriptedSampler(replies, renderer.tokenizer)
    params = SamplingParams(max_tokens=max_tokens)
    return asyncio.run(rollout(environment.task, environment, sampler, renderer, params, **options)), sampler


def test_a_call_is_answered_and_only_sampled_tokens_are_trained(renderer):
    trajectory, sampler = play(renderer, [call(expression="12 * 34"), "It is 408"], ToolUse(TASK, ["calculator"]))
    assert [m["role"] for m in trajectory.completion] == ["assistant", "tool", "assistant"]
    assert trajectory.completion[1]["content"] == "408" and trajectory.outcome == "done"
    assert trajectory.metrics == {"tool_calls": 1.0, "calls_failed": 0.0}
    datum = build_datum(trajectory)
    trained = [token for token, weight in zip(datum.tokens, datum.weights, strict=True) if weight]
    sampled = [token for s in trajectory.segments if s.origin == "policy" for token in s.tokens]
    assert trained == sampled
    assert sampler.prompts[1] == datum.tokens[: len(sampler.prompts[1])]  # the second turn saw the very tokens
    first, second = trajectory.turns
    assert first.environment_tokens > 0 and second.environment_tokens == 0
    assert first.num_tokens + second.num_tokens == trajectory.num_policy_tokens


def test_several_calls_of_a_turn_are_answered_in_their_order(renderer):
    replies = [call(expression="1+1") + call(expression="2+") + call("nothing"), "2"]
    trajectory, _ = play(renderer, replies, ToolUse(TASK, ["calculator"]))
    results = [m["content"] for m in trajectory.completion if m["role"] == "tool"]
    assert results[0] == "2" and "arithmetic expression" in results[1] and "no tool 'nothing'" in results[2]
    assert trajectory.metrics == {"tool_calls": 3.0, "calls_failed": 2.0}


def test_a_call_that_cannot_be_read_is_answered_too(renderer):
    trajectory, _ = play(renderer, ["<tool_call>{nonsense</tool_call>", "sorry"], ToolUse(TASK, ["calculator"]))
    assert trajectory.completion[1]["content"].startswith("Error: ")
    assert trajectory.metrics["calls_failed"] == 1


def test_long_results_are_cut_with_a_mark(renderer):
    class Long(ToolUse):
        async def step(self, message):
            step = await super().step(message)
            return Step([{**m, "content": "word " * 500} for m in step.messages], step.done)

    trajectory, _ = play(
        renderer, [call(expression="1"), "ok"], Long(TASK, ["calculator"]), limits=Limits(tool_tokens=20)
    )
    content = trajectory.completion[1]["content"]
    assert content.startswith("word word") and "tokens are cut]" in content and len(content) < 200


@pytest.mark.parametrize(
    ("limits", "max_tokens", "outcome"),
    [
        (Limits(turns=2), 400, "turn_limit"),
        (Limits(tokens=60), 400, "token_limit"),
        (Limits(), 10, "token_limit"),
        (Limits(tool_errors=2), 400, "tool_errors"),
    ],
)
def test_each_limit_is_an_outcome(renderer, limits, max_tokens, outcome):
    environment = ToolUse(TASK, ["calculator"])
    trajectory, _ = play(renderer, [call("nothing")], environment, max_tokens=max_tokens, limits=limits)
    assert trajectory.outcome == outcome and trajectory.truncated
    if outcome == "tool_errors":
        assert trajectory.metrics["calls_failed"] == 3


def test_the_context_and_time_are_outcomes_as_well(renderer):
    environment = ToolUse(TASK, ["calculator"])
    prompt = len(renderer.prompt(TASK.prompt, environment.tools))
    trajectory, _ = play(renderer, [call("nothing")], environment, max_context=prompt + 250)
    assert trajectory.outcome == "context" and len(trajectory.tokens) <= prompt + 250

    class Slow(ToolUse):
        async def step(self, message):
            await asyncio.sleep(1.1)
            return await super().step(message)

    trajectory, _ = play(renderer, [call("nothing")], Slow(TASK, ["calculator"]), limits=Limits(seconds=1))
    assert trajectory.outcome == "time_limit" and len(trajectory.turns) == 1


class Guess(MultiTurnEnvironment):
    """Plain functions; a text is the user's next message."""

    def __init__(self, task):
        super().__init__(task)
        self.outcomes = []

    def step(self, message):
        if "408" in message["content"]:
            return Step(done=True, rewards={"found": 1.0})
        return "No. Try again."

    def finish(self, outcome):
        self.outcomes.append(outcome)
        return {"finished": float(outcome == "done")}


def test_plain_functions_make_an_environment(renderer):
    environment = Guess(TASK)
    trajectory, _ = play(renderer, ["400", "408"], environment)
    assert [m["content"] for m in trajectory.completion] == ["400", "No. Try again.", "408"]
    assert trajectory.rewards == {"found": 1.0, "finished": 1.0} and environment.outcomes == ["done"]
    assert [dict(turn.rewards) for turn in trajectory.turns] == [{}, {"found": 1.0}]


def test_finish_is_called_however_it_ends(renderer):
    environment = Guess(TASK)
    trajectory, _ = play(renderer, ["400"], environment, limits=Limits(turns=3))
    assert environment.outcomes == ["turn_limit"] and trajectory.rewards == {"finished": 0.0}

    class Broken(Guess):
        def step(self, message):
            raise RuntimeError("gone")

    environment = Broken(TASK)
    with pytest.raises(UserError, match="gone"):
        play(renderer, ["400"], environment)
    assert environment.outcomes == ["error"]


def test_a_step_without_a_return_is_told(renderer):
    class Silent(Guess):
        def step(self, message):
            pass

    with pytest.raises(UserError, match=r"gave a NoneType; it must return an aurify.Step"):
        play(renderer, ["400"], Silent(TASK))


class Library(SearchR1):
    """Searches in a dict."""

    def __init__(self, task, **options):
        super().__init__(task, **options)
        self.search = self

    async def find(self, query):
        from aurify.tools.search import Passage

        return [Passage("Capitals", f"about {query}: the capital of Peru is Lima")]


CAPITAL = Task("capital/1", [{"role": "user", "content": "What is the capital of Peru?"}], "Lima")


def test_search_r1_goes_on_within_a_turn_and_trains_no_passage(renderer):
    replies = ["<think>hm</think><search>Peru</search>", "<think>ah</think><answer>Lima</answer>"]
    trajectory, sampler = play(renderer, replies, Library(CAPITAL))
    datum = build_datum(trajectory)
    trained = [token for token, weight in zip(datum.tokens, datum.weights, strict=True) if weight]
    said = renderer.tokenizer.decode(trained)
    assert "<information>" not in said and said == "".join(replies)
    assert sampler.prompts[1] == datum.tokens[: len(sampler.prompts[1])]
    assert "<information>Doc 1(Title: Capitals) about Peru" in renderer.tokenizer.decode(sampler.prompts[1])
    assert trajectory.outcome == "done"
    assert trajectory.metrics == {"searches": 1.0, "answers": 1.0, "invalid_actions": 0.0, "searches_refused": 0.0}
    assert "Peru is Lima" not in trajectory.text  # rewards read what the policy wrote


def test_search_r1_corrects_and_refuses_further_searches(renderer):
    replies = ["I do not know.</answer>", "<search>a</search>", "<search>b</search>", "<answer>Lima</answer>"]
    trajectory, _ = play(renderer, replies, Library(CAPITAL, max_searches=1))
    assert trajectory.metrics == {"invalid_actions": 1.0, "searches": 1.0, "searches_refused": 1.0, "answers": 1.0}


def test_search_r1_goes_on_after_an_end_token_with_a_user_message(renderer):
    trajectory, _ = play(renderer, ["no tags at all", "<answer>Lima</answer>"], Library(CAPITAL))
    assert [m["role"] for m in trajectory.completion] == ["assistant", "user", "assistant"]
    assert "neither a search nor an answer" in trajectory.completion[1]["content"]


def test_trajectories_that_begin_together_share_one_knowledge_base(monkeypatch):
    """Each would load an embedder of its own."""
    made = []

    class Slow:
        def __init__(self, *options):
            time.sleep(0.05)
            made.append(options)

    monkeypatch.setattr(search_r1, "Search", Slow)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: search_r1.open_search("kb/together", None, 3), range(8)))
    assert made == [("kb/together", None, 3)] and len(set(map(id, found))) == 1
