"""A resource that all environments of a run share."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any

import pytest
import tokenizers_in_code as made

from aurify.environments.env import Step
from aurify.environments.multi_turn import MultiTurnEnvironment
from aurify.environments.player import Player
from aurify.environments.sharing import OPEN, SharedResource, close_shared
from aurify.errors import UserError
from aurify.renderer import Renderer
from aurify.samplers.scripted import ScriptedSampler
from aurify.types import SamplingParams, Task

TASK = Task("t", [{"role": "user", "content": "go"}])


class Database:
    """Counts who is in it."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        self.lock, self.inside, self.most, self.asked, self.closed = threading.Lock(), 0, 0, 0, False

    def ask(self) -> str:
        with self.lock:
            self.inside, self.asked = self.inside + 1, self.asked + 1
            self.most = max(self.most, self.inside)
        time.sleep(0.05)
        with self.lock:
            self.inside -= 1
        return "12"

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def none_left():
    Database.made = 0
    yield
    close_shared()


def play(shared: SharedResource[Any], num: int, *, threaded: bool = True) -> list[Any]:
    class Asks(MultiTurnEnvironment):
        async def step(self, message: Any) -> Step:
            async with shared.use() as database:
                answer = database.ask()
            return Step([{"role": "user", "content": answer}], rewards={"asked": 1.0}, done=False)

    Asks.threaded = threaded  # type: ignore[attr-defined]
    renderer = Renderer(made.byte_level())

    async def body() -> list[Any]:
        from aurify.environments.rollout import Limits

        player = Player(Asks, ScriptedSampler(["he"], renderer.tokenizer), renderer, limits=Limits(turns=2))
        return await asyncio.gather(*(player.play(TASK, SamplingParams(max_tokens=8)) for _ in range(num)))

    return asyncio.run(body())


def test_it_is_opened_once_bounded_and_closed_when_the_run_ends():
    shared = SharedResource(Database, max_users=3)
    trajectories = play(shared, 12)
    assert [t.rewards["asked"] for t in trajectories] == [2.0] * 12, "every call was served"
    [database] = shared._opened
    assert Database.made == 1 and database.asked == 24 and 2 <= database.most <= 3
    assert not database.closed
    close_shared()
    assert database.closed and not OPEN
    play(shared, 1, threaded=False)
    assert Database.made == 2, "a later run opens it again"


def test_an_opening_that_fails_fails_that_trajectory_alone(caplog):
    tries = iter(range(10))

    def open_late() -> Database:
        if next(tries) == 0:
            raise ConnectionError("not yet")
        return Database()

    shared = SharedResource(open_late, max_users=1, close=lambda database: 1 / 0)
    assert [t.rewards["asked"] for t in play(shared, 1)] == [2.0], "the second attempt"
    with caplog.at_level(logging.WARNING):
        close_shared()
    assert "closing a shared resource raised ZeroDivisionError" in caplog.text


def test_an_async_factory_and_a_bad_bound():
    async def open_it() -> Database:
        return Database()

    play(SharedResource(open_it), 2, threaded=False)
    assert Database.made == 1
    with pytest.raises(UserError, match="max_users is 0"):
        SharedResource(Database, max_users=0)
