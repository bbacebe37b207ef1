"""Lets a policy act in an environment and keeps every token: who wrote it, and how likely it was when it was drawn.

What goes wrong is raised here; `player.py` makes it the outcome of the trajectory."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import cast

from aurify.bounds import Checked, NonNegativeInt, PositiveFloat, PositiveInt
from aurify.environments.answers import Answers, check_environment_messages, read_turn_numbers
from aurify.environments.env import Environment, Observation, Step, describe_environment, unwrap_environment
from aurify.environments.single_turn import SingleTurn
from aurify.errors import UserError
from aurify.renderer import History, Renderer
from aurify.renderer.traces import render_trace
from aurify.samplers.sampler import Sampler, Session, request_order
from aurify.signatures import report_crashes
from aurify.threads import settle_call
from aurify.tools.calls import read_tool_calls
from aurify.types import Datum, Message, Outcome, SamplingParams, Segment, Task, Trajectory, Turn

TURN_STRIDE = 0x9E3779B97F4A7C15  # keeps the seeds of later turns away from those of neighbouring trajectories
LONG = 80_000  # characters: of a text that is longer the beginning is looked at before it is read
MAX_TURNS = 16  # so that a policy that never finishes ends


class NoRoom(UserError):
    """A prompt that fills the context."""


@dataclass(frozen=True, kw_only=True)
class Limits(Checked):
    """What a trajectory may use; None: no limit but the context's. A trajectory that runs into one ends there, with
    that outcome."""

    turns: PositiveInt = MAX_TURNS  # of the policy
    turn_tokens: PositiveInt | None = None  # sampled in a turn; None: sampling.max_tokens
    tokens: PositiveInt | None = None  # sampled, in all
    tool_tokens: PositiveInt | None = None  # of a message of the environment; more is cut, with a mark
    tool_errors: NonNegativeInt | None = None  # calls of tools that fail, in all
    seconds: PositiveFloat | None = None  # checked between turns


NO_LIMITS = Limits()


async def rollout(
    task: Task,
    environment: Environment,
    sampler: Sampler,
    renderer: Renderer,
    params: SamplingParams,
    *,
    max_context: int | None = None,
    limits: Limits = NO_LIMITS,
    guidance: Sequence[int] = (),
    trace: Sequence[Message] = (),
    history: History = "template",
) -> Trajectory:
    """One trajectory. params.max_tokens counts for each turn. max_context: None takes the sampler's, if it has one.
    guidance: how a guide begins the first answer. The policy goes on from there, unless it ends with an end token.
    trace: instead, all that a guide and an environment said; then nothing is sampled, and no step is made. history: see
    `RolloutOptions`."""
    if max_context is None:
        max_context = getattr(sampler, "max_context", None)
    order, answers = request_order.get(), Answers()
    outcome: Outcome | None = None
    session = Session()
    turn = nullcontext() if isinstance(unwrap_environment(environment), SingleTurn) else session  # nothing to keep
    try:
        first = await observe_environment(environment)
        answers.add(Step(metrics=dict.fromkeys(first.counts, 0.0)))
        params = replace(
            params,
            stop=tuple(dict.fromkeys((*params.stop, *first.stop))),
            stop_tokens=(*params.stop_tokens, *sorted(renderer.stop_tokens)),
        )
        played = Play(first, renderer, params, limits, max_context, history)
        check_rollout_room(task, played.tokens, max_context, renderer)
        if trace:
            played.follow(render_trace(first.messages, trace, first.tools, renderer), trace)
            outcome = "done"
        while outcome is None:
            begun = guidance if not played.turns else ()
            request_order.set((*order, len(played.turns)))
            with turn:
                outcome = await played.sample_turn(sampler, begun)
            if outcome is None:
                began = time.monotonic()
                step = await step_environment(environment, played.last_message())
                answers.add(step)
                outcome = played.apply(step, time.monotonic() - began)
    finally:
        request_order.set(order)
        session.close()
        await end_environment(environment, outcome, answers)
    assert outcome is not None
    return Trajectory(
        played.segments,
        played.messages,
        len(first.messages),
        answers.rewards,
        outcome=outcome,
        opened_thought=played.opened_thought,
        turns=played.turns,
        metrics=answers.metrics,
        source="guidance" if guidance or trace else "policy",
        tools=first.tools,
        problems=answers.problems,
        environment=unwrap_environment(environment)
        if hasattr(unwrap_environment(environment), "shown_to_rewards")
        else None,
    )


class Play:
    """A conversation as it grows: tokens for the sampler, messages for the environment and for people."""

    def __init__(
        self,
        first: Observation,
        renderer: Renderer,
        params: SamplingParams,
        limits: Limits,
        max_context: int | None,
        history: History,
    ) -> None:
        self.tools, self.renderer = first.tools, renderer
        self.rewrites = history == "template"
        self.params, self.limits, self.max_context = params, limits, max_context
        self.messages = list(first.messages)
        self.history = list(first.messages)  # as the renderer sees them: a turn that went on is one message
        self.tokens = renderer.prompt(self.messages, self.tools)
        self.segments = [Segment(self.tokens, "prompt")]
        self.turns: list[Turn] = []
        self.turn: list[int] = []  # tokens of the assistant's turn so far, with what was put into it
        self.said: list[int] = []  # those that were sampled since the last step
        self.opened_thought = False
        self.num_sampled = self.num_errors = 0
        self.began = time.monotonic()

    def follow(self, segments: list[Segment], trace: Sequence[Message]) -> None:
        self.segments, self.messages = segments, [*self.messages, *trace]
        self.opened_thought = self.renderer.opens_thought(self.tokens)
        self.turns = [Turn(0, 0.0) for segment in segments if segment.origin == "guidance"]

    async def sample_turn(self, sampler: Sampler, guidance: Sequence[int]) -> Outcome | None:
        """Samples until the policy stops. None: it is the environment's turn."""
        if not self.turn:
            self.opened_thought = self.renderer.opens_thought(self.tokens)
        self.said = list(guidance)
        if guidance:
            self.segments.append(Segment(list(guidance), "guidance"))
        began, num_sampled, outcome = time.monotonic(), 0, None
        if not (guidance and guidance[-1] in self.renderer.stop_tokens):
            room, limit = self._room(len(guidance))
            if room < 1:
                if self.turns:  # nobody read the last segment, and it may be longer than the context
                    self.segments.pop()
                return limit
            params = replace(self.params, max_tokens=room, seed=self._seed())
            [completion] = await sampler.sample([*self.tokens, *self.said], params)
            self.segments.append(Segment(completion.tokens, "policy", completion.logprobs, completion.versions))
            self.said += completion.tokens
            num_sampled = len(completion.tokens)
            outcome = None if completion.finish == "stop" else limit
        self.num_sampled += num_sampled
        self.turns.append(Turn(num_sampled, time.monotonic() - began))
        message = self.renderer.parse(self.said)
        self.messages.append({**message, "goes_on": True} if self.turn else message)
        self.turn += self.said
        self.tokens = [*self.tokens, *self.said]
        return outcome

    def _room(self, num_guided: int) -> tuple[int, Outcome]:
        """How many tokens the turn may have, and which limit that is."""
        turn_tokens = self.limits.turn_tokens or self.params.max_tokens
        rooms: list[tuple[int, Outcome]] = [(turn_tokens - num_guided, "token_limit")]
        if self.limits.tokens is not None:
            rooms.append((self.limits.tokens - self.num_sampled, "token_limit"))
        if self.max_context is not None:
            rooms.append((self.max_context - len(self.tokens) - num_guided, "context"))
        return min(rooms, key=lambda room: room[0])

    def _seed(self) -> int | None:
        seed = self.params.seed
        return None if seed is None else (seed + len(self.turns) * TURN_STRIDE) % 2**64

    def last_message(self) -> Message:
        """What the environment is told, as a copy: it may change it."""
        message = deepcopy(self.messages[-1])
        if self.tools and (calls := read_tool_calls(message["content"], self.tools, self.opened_thought)):
            message["tool_calls"] = calls
        return message

    def apply(self, step: Step, seconds: float) -> Outcome | None:
        """Takes the environment's answer in. None: the policy goes on."""
        self.num_errors += int(step.metrics.get("calls_failed", 0))
        num_tokens, overflows = 0, not step.done and self._overflows(step)
        if overflows:
            self.messages += step.messages or [put_into_turn(step.continue_turn)]
        elif not step.done:
            num_tokens = self._going_on(step) if step.continue_turn else self._next_turn(step)
        turn = self.turns[-1]
        self.turns[-1] = replace(
            turn, environment_seconds=seconds, environment_tokens=num_tokens, rewards=read_turn_numbers(step.rewards)
        )
        if step.done:
            return "done"
        if overflows:
            return "context"
        if self.limits.tool_errors is not None and self.num_errors > self.limits.tool_errors:
            return "tool_errors"
        if len(self.turns) >= self.limits.turns:
            return "turn_limit"
        if self.limits.seconds is not None and time.monotonic() - self.began > self.limits.seconds:
            return "time_limit"
        return None

    def _going_on(self, step: Step) -> int:
        """Puts text into the turn, and returns how many tokens. After an end token no turn can go on: then the user
        says it."""
        if self.said[-1:] and self.said[-1] in self.renderer.stop_tokens:
            return self._next_turn(Step([{"role": "user", "content": step.continue_turn.strip()}]))
        text = self._cut(step.continue_turn)
        self.messages.append(put_into_turn(text))
        delta = self.renderer.continuation(text)
        self.turn += delta
        return self._extend(delta)

    def _next_turn(self, step: Step) -> int:
        """Puts messages after the turn, and returns how many tokens: in the row, or, where the template writes what
        came before in another way, in a further one."""
        messages = [cast(Message, {**message, "content": self._cut(message["content"])}) for message in step.messages]
        before, reply = self.history, self.renderer.parse(self.turn)
        self.history = [*before, reply, *messages]
        self.messages += messages
        extends = self.renderer.survey.extends(before, reply, messages, self.tools) if self.rewrites else None
        if extends is False:
            self.tokens = self.renderer.prompt(self.history, self.tools)
            self.segments.append(Segment(self.tokens, "prompt"))
            num_tokens = sum(len(self.renderer.continuation(message["content"])) for message in messages)
        else:
            num_tokens = self._extend(self.renderer.delta(before, self.turn, messages, self.tools, extends=extends))
        self.turn = []
        return num_tokens

    def _extend(self, tokens: list[int]) -> int:
        self.segments.append(Segment(tokens, "environment"))
        self.tokens = [*self.tokens, *tokens]
        return len(tokens)

    def _overflows(self, step: Step) -> bool:
        """Whether what the environment says is far longer than the context."""
        if self.max_context is None or self.limits.tool_tokens is not None:
            return False
        texts = [step.continue_turn, *(message["content"] for message in step.messages)]
        return any(self._read_beginning(text, self.max_context) is not None for text in texts)

    def _read_beginning(self, text: str, limit: int) -> list[int] | None:
        """The tokens that a very long text begins with, where these alone are far more than `limit`. Reading megabytes
        takes seconds, in which all other trajectories wait."""
        if len(text) <= max(64 * limit, LONG):
            return None
        for enough in (12 * limit, 32 * limit):  # the first is enough where a token has less than six characters
            tokens = self.renderer.continuation(text[:enough])
            if len(tokens) > 2 * limit:
                return tokens
        return None

    def _cut(self, text: str) -> str:
        """At most limits.tool_tokens of a message, and a mark that says how much is missing."""
        limit = self.limits.tool_tokens
        if limit is None or len(text) <= limit:  # a token has at least a character
            return text
        beginning = self._read_beginning(text, limit)
        tokens = self.renderer.continuation(text) if beginning is None else beginning
        if len(tokens) <= limit:
            return text
        kept = self.renderer.tokenizer.decode(tokens[:limit]).rstrip("\ufffd")
        missing = f"{len(tokens) - limit:,} of {len(tokens):,} tokens"
        if beginning is not None:
            missing = f"{len(text) - len(kept):,} of {len(text):,} characters"
        return f"{kept} ... [{missing} are cut]"


def put_into_turn(text: str) -> Message:
    """What an environment puts into the policy's turn."""
    return {"role": "assistant", "content": text, "weight": 0.0, "goes_on": True}


async def end_environment(environment: Environment, outcome: Outcome | None, answers: Answers) -> None:
    """The environment's last word, which may bring rewards, and its end. What was played stays what it is, whatever
    goes wrong here. outcome: None after an error."""
    last_word = getattr(environment, "finish", None)
    try:
        if last_word is not None:
            answers.add(Step(rewards=await settle_call(last_word, outcome or "error") or {}))
    except Exception as error:
        answers.problems.append(f"{describe_environment(environment)}: finish() raised {type(error).__name__}: {error}")
    try:
        await settle_call(environment.close)
    except Exception as error:
        answers.problems.append(f"{describe_environment(environment)}: close() raised {type(error).__name__}: {error}")


def check_rollout_room(task: Task, tokens: Sequence[int], max_context: int | None, renderer: Renderer) -> None:
    if max_context is not None and len(tokens) >= max_context:
        raise NoRoom(
            f"task {task.id!r}: its prompt has {len(tokens)} tokens and the context {max_context}, so there is no room "
            f"to answer {renderer.describe(tokens)}; shorten the prompt, or raise sampler.max_context if the model "
            "allows more"
        )


async def observe_environment(environment: Environment) -> Observation:
    """What the environment shows first, as a copy: it may go on with its own lists."""
    where = f"{describe_environment(environment)}: start()"
    with report_crashes(describe_environment(environment), type(unwrap_environment(environment))):
        first: object = await settle_call(environment.start)
    if not isinstance(first, Observation):
        raise UserError(f"{where} gave a {type(first).__name__}; it must return an aurify.Observation")
    check_environment_messages(first.messages, where)
    return replace(first, messages=deepcopy(list(first.messages)), tools=deepcopy(list(first.tools)))


async def step_environment(environment: Environment, message: Message) -> Step:
    """The environment's answer, as a copy. Assistant messages that it writes have weight 0: they are not the
    policy's."""
    where = f"{describe_environment(environment)}: step()"
    with report_crashes(describe_environment(environment), type(unwrap_environment(environment))):
        answer: object = await settle_call(environment.step, message)
    if isinstance(answer, str):
        answer = [{"role": "user", "content": answer}]
    step = answer if isinstance(answer, Step) else Step([answer] if isinstance(answer, Mapping) else answer)  # type: ignore[arg-type,list-item]
    if answer is None or not isinstance(step.messages, Sequence):
        raise UserError(f"{where} gave a {type(answer).__name__}; it must return an aurify.Step, a text or messages")
    check_environment_messages(step.messages, where)
    messages = [
        cast(Message, {**message, "weight": 0.0}) if message["role"] == "assistant" else message
        for message in deepcopy(list(step.messages))
    ]
    return replace(step, messages=messages)


def build_data(trajectory: Trajectory, advantage: float | Sequence[float] = 0.0, unit: int = -1) -> list[Datum]:
    """What the engine trains on, a datum for each row: tokens of the policy weigh 1 (those of a guide too, for
    algorithms that imitate), all others 0. What the policy wrote weighs 1 in the row where it was sampled, so it is
    trained once. A guide's tokens count as certain (log-prob 0): nobody knows how likely they were to it.

    advantage: one for all, or one for each turn. unit: of the rows, where there are several; another one for each
    trajectory of a step."""
    rows, turn = trajectory.rows, -1
    sampled = all(segment.logprobs is not None for segment in trajectory.segments if segment.origin == "policy")
    partly = {segment.origin for segment in trajectory.segments} >= {"policy", "guidance"}
    if len(rows) > 1 and unit < 0:
        raise ValueError(f"the trajectory has {len(rows)} rows: give a unit, which keeps them together in training")
    data = []
    for row in rows:
        tokens: list[int] = []
        weights: list[float] = []
        logprobs: list[float] = []
        advantages: list[float] = []
        for segment in row:
            num, trained = len(segment.tokens), segment.origin in ("policy", "guidance")
            turn += not trained  # a prompt, or the environment, comes before each turn
            tokens += segment.tokens
            weights += [float(trained)] * num
            logprobs += segment.logprobs if trained and segment.logprobs else [0.0] * num
            here = advantage if isinstance(advantage, int | float) else advantage[turn] if trained else 0.0
            advantages += [here] * num
        datum = Datum(
            tokens,
            weights,
            advantages=advantages,
            logprobs=logprobs if sampled else None,
            unit=unit if len(rows) > 1 else -1,
            source="policy" if partly else trajectory.source,
            guided=[segment.origin == "guidance" for segment in row for _ in segment.tokens] if partly else None,
        )
        data.append(datum)
    return data


def build_datum(trajectory: Trajectory, advantage: float = 0.0) -> Datum:
    """That of a trajectory of one row."""
    [datum] = build_data(trajectory, advantage, unit=0)
    return datum
