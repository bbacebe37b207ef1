"""Environments of OpenEnv, against servers that its own package runs on this machine."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tokenizers_in_code as made
from openenv_servers import count_sessions, open_servers

from aurify.environments.openenv import OpenEnv
from aurify.environments.player import Player
from aurify.environments.rollout import Limits, rollout
from aurify.errors import UserError
from aurify.renderer import Renderer
from aurify.rewards.rubric import build_rubric
from aurify.samplers.scripted import ScriptedSampler
from aurify.types import SamplingParams, Task

ASK = [{"role": "user", "content": "Play."}]
TASK = Task("t", ASK, None, {"seed": 3, "level": 2})


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    pytest.importorskip("openenv.core", reason="openenv is not installed: pip install 'aurify[openenv]'")
    with open_servers(tmp_path_factory.mktemp("openenv")) as begin:
        yield begin


@pytest.fixture(scope="module")
def numbers(start: Any) -> tuple[str, Path, Any]:
    return start("numbers")


def play(replies: Any, environment: Any, limits: Limits | None = None) -> Any:
    tokenizer = made.byte_level()
    sampler, params = ScriptedSampler(replies, tokenizer), SamplingParams(max_tokens=300)
    renderer = Renderer(tokenizer, tools_as_text=True)
    played = rollout(environment.task, environment, sampler, renderer, params, limits=limits or Limits())
    trajectory = asyncio.run(played)
    asyncio.run(build_rubric("environment").score(environment.task, [trajectory]))
    return trajectory


def said(trajectory: Any) -> list[str]:
    return [message["content"] for message in trajectory.completion if message["role"] in ("user", "tool")]


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def test_an_action_of_one_field_is_the_answer(numbers: Any) -> None:
    url, log, _ = numbers
    before = count_sessions(log)[0]
    trajectory = play(["seven", "<think>7?</think> 2", "99", "<action>3</action>"], OpenEnv(TASK, url))
    assert trajectory.messages[0]["content"] == "Play.\n\nGuess my number, level 2."
    answers = said(trajectory)
    assert answers[0].endswith("Expected: action(number: integer)") and "VALIDATION_ERROR" in answers[0]
    assert answers[1] == "no" and "from 0 to 9, please" in answers[2]
    assert trajectory.outcome == "done" and trajectory.reward == 0.75 and trajectory.tools == []
    assert trajectory.metrics == {"steps": 2.0, "calls_failed": 2.0}
    assert count_sessions(log) == (before + 1, before + 1), "the session of the trajectory is closed"


def test_all_of_a_group_play_the_same_episode_each_in_a_session_of_its_own(numbers: Any) -> None:
    url, log, _ = numbers
    before = count_sessions(log)[0]
    tokenizer = made.byte_level()
    sampler = ScriptedSampler(lambda prompt: "3" if "\nno" in tokenizer.decode(prompt) else "1", tokenizer)
    player = Player(partial(OpenEnv, url=url), sampler, Renderer(tokenizer))

    async def group() -> list[Any]:
        return await asyncio.gather(*(player.play(TASK, SamplingParams(max_tokens=20, seed=k)) for k in range(4)))

    played = asyncio.run(group())
    assert [trajectory.rewards for trajectory in played] == [{"environment": 0.75}] * 4
    assert count_sessions(log) == (before + 4, before + 4)


def test_an_episode_without_a_step_earned_nothing(numbers: Any) -> None:
    trajectory = play(["<think>for ever"], OpenEnv(TASK, numbers[0]), Limits(turns=2))
    assert trajectory.outcome == "turn_limit" and trajectory.reward == 0.0
    assert said(trajectory) == ["Error: the thought does not end; end it, and then write the action"] * 2


def test_an_action_of_several_fields_is_a_tool(start: Any) -> None:
    url = start("moves")[0]
    replies = [
        call("act", direction="left"),
        call("act", direction="up", steps=2) + call("act", direction="down"),
        call("act", direction="up", steps=2) + call("act", direction="up"),
    ]
    trajectory = play(replies, OpenEnv(TASK, url))
    [tool] = trajectory.tools
    assert tool["function"]["parameters"]["properties"].keys() == {"direction", "steps"}
    assert trajectory.messages[0]["content"].startswith("Play.")
    assert json.loads(trajectory.messages[0]["content"].partition("\n\n")[2]) == {"text": "You stand at 0.", "left": 2}
    answers = said(trajectory)
    assert (
        answers[0].startswith("Error: act: ")
        and 'action(direction: "up" or "down", steps: integer (optional))' in answers[0]
    )
    assert json.loads(answers[2])["text"] == "You stand at 1."
    assert trajectory.outcome == "done" and trajectory.reward == 3.0
    assert trajectory.metrics["steps"] == 3 and trajectory.metrics["calls_failed"] == 2, "no step after the end"
    shown = play(["up"], OpenEnv(TASK, url, field="direction", show="text"), Limits(turns=1))
    assert shown.messages[0]["content"] == "Play.\n\nYou stand at 0." and said(shown) == ["You stand at 1."]
    for options, message in (
        ({"field": "way"}, "has no action field 'way'; it takes action(direction: "),
        ({"show": "picture"}, "observations of .* have no field 'picture'; they have text, left"),
    ):
        with pytest.raises(UserError, match=message.replace("(", r"\(")):
            play(["up"], OpenEnv(TASK, url, **options))


def test_an_mcp_environment_offers_its_tools(start: Any) -> None:
    url = start("tools")[0]
    replies = [
        call("echo", message="hi") + call("measure", message="four"),
        call("echo", message="boom") + call("echo"),
        "never asked",
    ]
    trajectory = play(replies, OpenEnv(TASK, url))
    assert [tool["function"]["name"] for tool in trajectory.tools] == ["echo", "measure"]
    assert trajectory.messages[0]["content"] == "Play."
    answers = said(trajectory)
    assert answers == ["hi", '{"length": 4}'], "the last answers end the episode, and nobody reads them"
    assert trajectory.outcome == "done" and trajectory.reward == 2.0
    assert trajectory.metrics == {"steps": 4.0, "tool_calls": 4.0, "calls_failed": 2.0}
    failing = play([call("echo", message="boom"), call("shout"), "done"], OpenEnv(TASK, url))
    assert "boom!" in said(failing)[0] and "no tool 'shout'; the tools are: echo, measure" in said(failing)[1]
    assert failing.metrics["calls_failed"] == 2 and failing.reward == 0.5


def test_more_trajectories_than_sessions_are_told_what_to_change(start: Any) -> None:
    url = start("numbers", 1)[0]

    async def both() -> None:
        first, second = OpenEnv(TASK, url), OpenEnv(TASK, url)
        await first.start()
        try:
            with pytest.raises(UserError, match=r"gives no episode.*max_concurrent_envs"):
                await second.start()
        finally:
            await first.close()
            await second.close()

    asyncio.run(both())


def test_a_server_that_dies_or_hangs_is_the_outcome_of_its_trajectories(start: Any) -> None:
    url, _, process = start("numbers")
    tokenizer = made.byte_level()
    sampler = ScriptedSampler(["97"], tokenizer)
    player = Player(partial(OpenEnv, url=url, seconds=0.5), sampler, Renderer(tokenizer))
    assert asyncio.run(player.play(TASK, SamplingParams(max_tokens=20))) is None
    assert "is lost: TimeoutError" in player.last_reason, player.last_reason
    sampler = ScriptedSampler(["98"], tokenizer)
    player = Player(partial(OpenEnv, url=url), sampler, Renderer(tokenizer))
    assert asyncio.run(player.play(TASK, SamplingParams(max_tokens=20))) is None
    process.wait(10)
    assert "gives no episode: ConnectionError" in player.last_reason, "the second attempt finds no server"


def test_without_a_server_or_the_package(monkeypatch: pytest.MonkeyPatch, start: Any) -> None:
    with pytest.raises(UserError, match=r"no server of OpenEnv answers at http://127.0.0.1:9 .*start it first"):
        play(["x"], OpenEnv(TASK, "http://127.0.0.1:9"))
    monkeypatch.setitem(sys.modules, "openenv.core", None)
    with pytest.raises(UserError, match=r"pip install 'aurify\[openenv\]'"):
        OpenEnv(TASK, "http://127.0.0.1:9")
