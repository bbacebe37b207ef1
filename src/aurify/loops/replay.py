"""Replay: the policy's own past successes stand in a group again (ExGRPO, arXiv 2510.02245). A source of trajectories
and no loop, as guidance is.

Kept are, by question, the successes of groups that were neither all wrong nor all right: their token ids (never text
that would have to be encoded again) with the trainer's log-probs of that time. A step takes a share of its prompts
from the buffer: first a bucket (questions with k successes of n) by a normal density around n / 2, then a question of
it, then the trajectory that the policy of now is surest of. Questions that are always answered right retire.

Where we leave the reference: the entropy is that of the answer's own tokens (its mask is negated there, and rows are
not aligned). A question that the policy fails completely goes down to the lowest bucket and keeps its past successes,
whether it was replayed or drawn fresh. A question whose stored answer is judged wrong is dropped (both stay in their
bucket there). Copies are told by ids. The buffer is bounded for each question and as a whole, and the oldest entry goes
first. Sigma is 1 in counts: taken as shares, as the paper writes it, all buckets would be about equal.

For rewards that are no yes or no, `buckets: spread` takes instead of k the standard deviation of a question's rewards,
between the smallest and the largest of the step, times n, rounded; `success` then says from which value of the first
reward on an answer is kept."""

from __future__ import annotations

import json
import math
import random
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

import torch

from aurify.environments.rollout import build_data
from aurify.errors import UserError
from aurify.loops.units import join_rollout_units
from aurify.pipeline.recipe import ReplayOptions
from aurify.rewards.combine import TRUNCATED
from aurify.types import Datum, Group, Message, Metrics, Origin, Policy, Segment, Task, Trajectory

if TYPE_CHECKING:
    from aurify.rewards.rubric import Rubric

BYTES_PER_TOKEN = 8  # an id and a log-prob
Logprobs = Sequence[Sequence[float] | None]  # one row for each trajectory of a group; None: it was not trained


@dataclass(frozen=True, slots=True)
class Entry:
    """One success, as it was sampled."""

    question: str
    tokens: array[int]
    logprobs: array[float]  # of the trainer when it was sampled, 0 on tokens that the policy did not write
    origins: list[tuple[Origin, int]]  # of the segments, with their lengths
    messages: list[Message]
    num_prompt_messages: int
    rewards: dict[str, float | None]
    step: int

    @staticmethod
    def of(task: Task, trajectory: Trajectory, logprobs: Sequence[float], step: int) -> Entry:
        return Entry(
            task.id,
            array("i", trajectory.tokens),
            array("f", logprobs),
            [(segment.origin, len(segment.tokens)) for segment in trajectory.segments],
            trajectory.messages,
            trajectory.num_prompt_messages,
            {name: value for name, value in trajectory.rewards.items() if name != TRUNCATED},
            step,
        )

    def trajectory(self) -> Trajectory:
        """The trajectory again, to be scored again. Its log-probs are the trainer's of that time."""
        segments, begin = [], 0
        for origin, length in self.origins:
            part = slice(begin, begin + length)
            logprobs = list(self.logprobs[part]) if origin == "policy" else None
            segments.append(Segment(list(self.tokens[part]), origin, logprobs))
            begin += length
        messages = list(self.messages)
        return Trajectory(segments, messages, self.num_prompt_messages, dict(self.rewards), source="replay")


@dataclass
class Question:
    task: Task
    bucket: int  # by its latest group
    entries: list[int] = field(default_factory=list)  # keys, oldest first


class Buffer:
    """What is remembered. `state_dict` holds all of it, so that a resumed run replays what the straight run would."""

    def __init__(self, options: ReplayOptions, group_size: int) -> None:
        self.options, self.group_size = options, group_size
        self.entries: dict[int, Entry] = {}  # oldest first
        self.questions: dict[str, Question] = {}
        self.retired: set[str] = set()
        self.started = False
        self.num_tokens = 0
        self.next_key = 0

    # ------------------------------------------------------------------ taking out

    def choose(self, num_prompts: int, policy: Policy, temperature: float, seed: int) -> list[tuple[Task, Entry]]:
        """The questions that a step of `num_prompts` replays, each with one of its trajectories."""
        if not self.started:
            return []
        generator = random.Random(seed)
        chosen = self.draw(min(num_replayed(self.options.share, num_prompts), len(self.questions)), generator)
        surest = self.surest(chosen, policy, temperature, generator)
        return [(self.questions[question].task, self.entries[surest[question]]) for question in chosen]

    def draw(self, num: int, generator: random.Random) -> list[str]:
        """Different questions: each time a bucket by its weight, among those that have one left, then any of it."""
        buckets: dict[int, list[str]] = {}
        for name, question in self.questions.items():
            buckets.setdefault(question.bucket, []).append(name)
        weights = replay_bucket_weights(self.group_size, self.options.sigma)
        chosen = []
        for _ in range(num):
            [k] = generator.choices(list(buckets), [max(weights[k], 1e-300) for k in buckets])
            bucket = buckets[k]
            index = generator.randrange(len(bucket))
            bucket[index], bucket[-1] = bucket[-1], bucket[index]
            chosen.append(bucket.pop())
            if not bucket:
                del buckets[k]
        return chosen

    def surest(
        self, questions: Sequence[str], policy: Policy, temperature: float, generator: random.Random
    ) -> dict[str, int]:
        """For each question the key of the trajectory with the lowest mean entropy (or negative log-prob) of the
        tokens that the policy wrote, under the policy of now."""
        known = {name: self.questions[name].entries for name in questions}
        if self.options.select == "random":
            return {name: generator.choice(keys) for name, keys in known.items()}
        keys = [key for entries in known.values() if len(entries) > 1 for key in entries]
        data = [datum for k, key in enumerate(keys) for datum in build_data(self.entries[key].trajectory(), unit=k)]
        if self.options.select == "entropy":
            values = policy.entropies(data, temperature=temperature)
        else:
            values = [[-value for value in row] for row in policy.logprobs(data, temperature=temperature)]
        joined, rest = join_rollout_units(data), iter([value for row in values for value in row])
        means = {key: mean_replayed_value(rest, datum) for key, datum in zip(keys, joined, strict=True)}
        return {name: min(entries, key=lambda key: (means.get(key, 0.0), key)) for name, entries in known.items()}

    # ------------------------------------------------------------------ putting in

    def learn(self, groups: Sequence[Group], logprobs: Sequence[Logprobs], rubric: Rubric, step: int) -> Metrics:
        """Takes in a step's groups, with the trainer's log-probs of their trajectories. Returns what to report."""
        own_results: list[bool] = []
        fresh_results: list[bool] = []  # of new questions: replayed ones were chosen, and say less of the policy
        num_used = num_evicted = 0
        for group, rows, bucket in zip(groups, logprobs, self.find_buckets(groups, rubric), strict=True):
            results = [rubric.succeeded(t, self.options.success) for t in group.trajectories]
            judged = list(zip(group.trajectories, results, rows, strict=True))
            own = [right for t, right, _ in judged if t.source == "policy"]
            stored = [right for t, right, _ in judged if t.source == "replay"]
            own_results += own
            fresh_results += own if not stored else []
            num_used += len(stored)
            if not self.started:
                continue
            self.note_result(group.task.id, bucket, own, stored)
            if group.task.id in self.retired:
                continue
            for trajectory, right, row in judged:
                if right and row is not None and trajectory.source == "policy" and not trajectory.truncated:
                    num_evicted += self.add(group.task, bucket, Entry.of(group.task, trajectory, row, step))
        rate = sum(own_results) / max(1, len(own_results))
        self.started = self.started or rate > self.options.start
        metrics = {"replay/success_rate": rate, "replay/used": float(num_used), "replay/evicted": float(num_evicted)}
        if fresh_results:
            metrics["replay/success_rate_fresh"] = fmean(fresh_results)
        return metrics | self.metrics()

    def find_buckets(self, groups: Sequence[Group], rubric: Rubric) -> list[int]:
        """The bucket of each group: its successes, at least 1, or where its spread lies among those of the step."""
        own = [[t for t in group.trajectories if t.source != "guidance"] for group in groups]
        if self.options.buckets == "successes":
            return [max(1, sum(rubric.succeeded(t, self.options.success) for t in row)) for row in own]
        rewards = [[t.reward for t in row if t.reward is not None] for row in own]
        spreads = [pstdev(row) if row else 0.0 for row in rewards]
        low, high = min(spreads, default=0.0), max(spreads, default=0.0)
        return [round(self.group_size * (value - low) / (high - low)) if high > low else 0 for value in spreads]

    def note_result(self, name: str, bucket: int, own: Sequence[bool], stored: Sequence[bool]) -> None:
        """What a group's results say about its question, whether or not anything of the group is kept."""
        if all((*own, *stored)):
            self.retired.add(name)
            self.forget(name)
        elif not any((*own, *stored)) and stored:  # the stored answer is judged wrong now
            self.forget(name)
        elif name in self.questions:
            self.questions[name].bucket = bucket

    def add(self, task: Task, bucket: int, entry: Entry) -> int:
        """Keeps an entry, and returns how many others had to go."""
        question = self.questions.setdefault(task.id, Question(task, bucket))
        for key in question.entries:
            if self.entries[key].tokens == entry.tokens:  # the newer log-probs are nearer to the policy of now
                self.remove(key, drop=False)
                break
        self.entries[self.next_key] = entry
        question.entries.append(self.next_key)
        self.next_key += 1
        self.num_tokens += len(entry.tokens)
        num_evicted = 0
        if len(question.entries) > self.options.per_question:
            self.remove(question.entries[0])
            num_evicted += 1
        while self.num_tokens > self.options.max_tokens:
            self.remove(next(iter(self.entries)))
            num_evicted += 1
        return num_evicted

    def remove(self, key: int, *, drop: bool = True) -> None:
        """drop: a question without any trajectory goes too."""
        entry = self.entries.pop(key)
        self.num_tokens -= len(entry.tokens)
        question = self.questions[entry.question]
        question.entries.remove(key)
        if drop and not question.entries:
            del self.questions[entry.question]

    def forget(self, name: str) -> None:
        for key in list(self.questions[name].entries) if name in self.questions else []:
            self.remove(key)

    # ------------------------------------------------------------------ telling

    def metrics(self) -> Metrics:
        sizes = Counter(question.bucket for question in self.questions.values())
        metrics = {
            "replay/questions": float(len(self.questions)),
            "replay/trajectories": float(len(self.entries)),
            "replay/retired": float(len(self.retired)),
            "replay/started": float(self.started),
            "replay/megabytes": self.num_tokens * BYTES_PER_TOKEN / 2**20,
        }
        for k in range(1, self.group_size):
            metrics[f"replay/bucket_{k}"] = float(sizes[k])
        return metrics

    def state_dict(self) -> dict[str, Any]:
        entries = list(self.entries.values())
        try:
            tasks = json.dumps([[name, plain_replay_task(q.task)] for name, q in self.questions.items()])
        except TypeError as error:
            raise UserError(f"replay: a task has a column that JSON cannot hold ({error}); leave it out") from error
        return {
            "tasks": tasks,
            "questions": {name: [q.bucket, list(q.entries)] for name, q in self.questions.items()},
            "keys": list(self.entries),
            "facts": json.dumps(
                [[e.question, e.origins, e.messages, e.num_prompt_messages, e.rewards, e.step] for e in entries]
            ),
            "lengths": [len(entry.tokens) for entry in entries],
            "tokens": torch.tensor([token for e in entries for token in e.tokens], dtype=torch.int32),
            "logprobs": torch.tensor([value for e in entries for value in e.logprobs], dtype=torch.float32),
            "retired": sorted(self.retired),
            "started": self.started,
            "next_key": self.next_key,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.__init__(self.options, self.group_size)  # type: ignore[misc]
        tokens, logprobs = (state[name].split(state["lengths"]) for name in ("tokens", "logprobs"))
        facts = zip(state["keys"], json.loads(state["facts"]), tokens, logprobs, strict=True)
        for key, (question, origins, *rest), ids, values in facts:
            segments = [(origin, length) for origin, length in origins]
            self.entries[key] = Entry(question, array("i", ids.tolist()), array("f", values.tolist()), segments, *rest)
        for name, task in json.loads(state["tasks"]):
            bucket, keys = state["questions"][name]
            self.questions[name] = Question(Task(**task), bucket, list(keys))
        self.retired, self.started = set(state["retired"]), state["started"]
        self.next_key, self.num_tokens = state["next_key"], sum(state["lengths"])


def replay_bucket_weights(group_size: int, sigma: float) -> dict[int, float]:
    """Normal density of k successes of `group_size` around the half, for every k that a kept question can have."""
    scale = sigma * math.sqrt(2 * math.pi)
    return {k: math.exp(-(((k - group_size / 2) / sigma) ** 2) / 2) / scale for k in range(group_size + 1)}


def num_replayed(share: float, num_prompts: int) -> int:
    """Of the prompts of a step, so far as the buffer has questions; 0.29 of 100 are 29 in floating point too."""
    return int(share * num_prompts + 1e-9)


def mean_replayed_value(values: Iterator[float], datum: Datum) -> float:
    """Over the trained tokens of a sequence, whose values come next."""
    rows = zip(islice(values, len(datum.tokens)), datum.weights, strict=True)
    return fmean([value for value, weight in rows if weight])


def plain_replay_task(task: Task) -> dict[str, Any]:
    return {
        "id": task.id,
        "prompt": task.prompt,
        "answer": task.answer,
        "info": dict(task.info),
        "part": task.part,
        "plain": task.plain,
    }
