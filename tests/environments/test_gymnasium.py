"""Environments of Gymnasium are played in words: its own FrozenLake, and one whose observations and actions are
texts."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers_in_code as made

from aurify.environments.gymnasium import Gymnasium
from aurify.environments.rollout import Limits, rollout
from aurify.errors import UserError
from aurify.renderer import Renderer
from aurify.rewards.rubric import build_rubric
from aurify.samplers.scripted import ScriptedSampler
from aurify.types import SamplingParams, Task

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'aurify[gymnasium]'")

FILE = '''
import gymnasium
from gymnasium.spaces import Box, Dict, Text


class Words(gymnasium.Env):
    """Asks for words; the third step ends it, "stop" cuts it off."""

    observation_space = Text(200, charset="".join(map(chr, range(32, 127))))
    action_space = Text(min_length=2, max_length=12, charset="abcdefghijklmnopqrstuvwxyz ")

    def __init__(self, first="Say a word"):
        self.first, self.closed = first, False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.said = []
        return f"{self.first} ({int(self.np_random.integers(1000))}, {options})", {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.said.append(action)
        return f"You said {action}", float(len(action)), len(self.said) == 3, action == "stop", {}

    def close(self):
        self.closed = True


class Boxed(Words):
    action_space = Box(0, 1, shape=(1,))
    observation_space = Box(0, 1, shape=(2,))

    def reset(self, *, seed=None, options=None):
        return self.observation_space.low, {}

    def step(self, action):
        return self.observation_space.high, float(action[0]), True, False, {}


def read_number(text):
    if "no" in text:
        raise ValueError("write a number from 0 to 1")
    return [float(text)]


class Broken(Words):
    def step(self, action):
        raise RuntimeError("the game is broken")
'''
ASK = [{"role": "user", "content": "Walk to G."}]
LAKE = {"env": "FrozenLake-v1", "actions": ["left", "down", "right", "up"]}
DRY = {"render_mode": "ansi", "is_slippery": False}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.py").write_text(FILE)
    return "words.py"


def play(replies: list[str], task: Task | None = None, limits: Limits | None = None, **options: Any) -> Any:
    environment = Gymnasium(task or Task("t", ASK, None, {"seed": 3}), **options)
    tokenizer = made.byte_level()
    sampler, params = ScriptedSampler(replies, tokenizer), SamplingParams(max_tokens=300)
    played = rollout(environment.task, environment, sampler, Renderer(tokenizer), params, limits=limits or Limits())
    trajectory = asyncio.run(played)
    asyncio.run(build_rubric("environment").score(environment.task, [trajectory]))
    return trajectory, environment


def said(trajectory: Any) -> list[str]:
    return [message["content"] for message in trajectory.completion if message["role"] == "user"]


def test_frozen_lake_is_won_in_words() -> None:
    way = ["go down", "<think>left or up?</think>Down!", "right", "<action>right</action> not left", "DOWN", "right"]
    trajectory, _ = play(way, **LAKE, options=DRY)
    assert trajectory.messages[0]["content"].startswith("Walk to G.\n\n\n\x1b[41mS\x1b[0mFFF\nFHFH\n")
    assert len(said(trajectory)) == 5 and "(Down)" in said(trajectory)[-1]
    assert trajectory.outcome == "done" and trajectory.rewards == {"environment": 1.0} and trajectory.reward == 1.0
    assert trajectory.metrics == {"steps": 6.0, "invalid_actions": 0.0, "cut_off": 0.0}
    assert [turn.rewards.get("environment") for turn in trajectory.turns] == [0, 0, 0, 0, 0, 1]


def test_a_wrong_action_is_answered_and_costs_no_step() -> None:
    replies = ["I do not know", "left, or right?", "<think>for ever", "2", "leftover upper"]
    trajectory, _ = play(replies, **LAKE, options=DRY, limits=Limits(turns=5))
    answers = said(trajectory)
    assert answers[0] == answers[3] == "Error: none is named. Write one action, of: left, down, right, up"
    assert answers[1] == "Error: several are named: left, right. Write one action, of: left, down, right, up"
    assert answers[2] == "Error: the thought does not end; end it, and then write the action"
    assert trajectory.outcome == "turn_limit" and trajectory.metrics["invalid_actions"] == 5
    assert trajectory.reward == 0.0, "an episode without a step earned nothing; it is not masked"


def test_actions_without_names_are_numbers() -> None:
    trajectory, _ = play(["-1", "4", "2.", "action 2"], env="FrozenLake-v1", options=DRY, limits=Limits(turns=4))
    assert [answer.startswith("Error: none is named") for answer in said(trajectory)] == [True, True, False, False]
    assert "(Right)" in said(trajectory)[2]


def test_the_seed_is_that_of_the_task() -> None:
    """Slippery ice: the same actions lead to the same places for one task, and elsewhere for another."""

    def walk(task: Task) -> list[str]:
        return said(play(["right"] * 6, task, Limits(turns=6), **LAKE, options={"render_mode": "ansi"})[0])

    tasks = [Task(f"t/{k}", ASK) for k in range(8)]
    walks = [walk(task) for task in tasks]
    assert walks == [walk(task) for task in tasks] and len(set(map(tuple, walks))) > 1
    assert walk(Task("a", ASK, None, {"seed": 7})) == walk(Task("b", ASK, None, {"seed": 7}))


def test_texts_are_actions_as_they_are(file: str) -> None:
    task = Task("t", [{"role": "user", "content": ""}], "gold", {"seed": 1, "level": 2})
    replies = ["Ab!", "x", "a word that is too long", "hello", "stop"]
    trajectory, environment = play(replies, task, env=f"{file}:Words", options={"first": "Now a word"})
    first = trajectory.messages[0]["content"]
    assert first.startswith("Now a word (") and first.endswith(", {'answer': 'gold', 'level': 2})")
    assert said(trajectory) == [
        "Error: an action must not have '!' 'A' in it",
        "Error: an action has 2 to 12 characters; yours has 1",
        "Error: an action has 2 to 12 characters; yours has 23",
        "You said hello",
    ]
    assert trajectory.reward == 9.0 and trajectory.outcome == "done", "rewards are summed"
    assert trajectory.metrics == {"steps": 2.0, "invalid_actions": 3.0, "cut_off": 1.0}
    assert environment.env.closed


def test_any_space_is_played_with_a_parser_of_ones_own(file: str) -> None:
    options = {"env": f"{file}:Boxed", "parse": f"{file}:read_number"}
    trajectory, _ = play(["no", "<action> 0.5 </action>"], **options)
    assert trajectory.messages[0]["content"] == "Walk to G.\n\n[0. 0.]"
    assert said(trajectory) == ["Error: write a number from 0 to 1"] and trajectory.reward == 0.5


def test_what_raises_in_an_environment_is_no_answer(file: str) -> None:
    with pytest.raises(RuntimeError, match="the game is broken"):
        play(["hello"], env=f"{file}:Broken")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"env": "FrozenLak-v1"}, "FrozenLak-v1 cannot be made: NameNotFound"),
        ({"env": "FrozenLake-v1", "options": {"sise": 3}}, "with the options {'sise': 3} cannot be made: TypeError"),
        ({"env": "FrozenLake-v1", "actions": ["a", "b"]}, "FrozenLake-v1 has 4 actions, and actions names 2: a, b"),
        ({"env": "words.py:Wrods"}, "words.py has no 'Wrods'; did you mean 'Words'"),
        ({"env": "words.py:Boxed"}, "no text can be read as one; give parse: file.py:function"),
        ({"env": "words.py:Words", "actions": ["a"]}, "names of actions are given; give parse"),
        ({"env": "words.py:Boxed", "parse": "words.py:read"}, "words.py has no 'read'"),
    ],
)
def test_what_cannot_be_played_is_said_with_the_mend(file: str, options: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Gymnasium(Task("t", ASK), **options)
    assert message in str(caught.value)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(UserError, match=r"pip install 'aurify\[gymnasium\]'"):
        Gymnasium(Task("t", ASK), env="FrozenLake-v1")
