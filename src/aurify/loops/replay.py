"""Replay: the policy's own past successes stand in a group again (ExGRPO, arXiv 2510.02245). A source of trajectories
and no loop, as guidance is.

Kept are, by question, the successes of groups that were neither all wrong nor all right: their token ids (never text
that would have to be encoded again) with the trainer's log-probs of that time. A step takes a share of its prompts
from the buffer: first a bucket (questions with k successes of n) by a normal density around n / 2, then a question of
it, then the trajectory that the policy of now is surest of. Questions that are always answered right retire.

Where we leave the reference: the entropy is that of the answer's own tokens (its mask is negated there, and rows are
not aligned); a question that the policy fails completely goes down to the lowest bucket and keeps its successes of the
past, for which replay is there, whether it was replayed or drawn fresh; one whose stored answer is judged wrong is
dropped (both keep their old place there); copies are told by ids; and the buffer is bounded for
each question and as a whole, the oldest entry going first. Sigma is 1 in counts: taken as shares, as the paper writes
it, all buckets would be about equal.

For rewards that are no yes or no, `buckets: spread` takes in the place of k the standard deviation of a question's
rewards, between the smallest and the largest of the step, times n, rounded; `success` then says from which value of the
first reward on an answer is kept."""

from __future__ import annotations

import json
import math
import random
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch

from aurify.bounds import Checked, Interval, PositiveFloat, PositiveInt
from aurify.environments.rollout import build_datum
from aurify.errors import UserError
from aurify.types import Datum, Group, Message, Metrics, Origin, Policy, Segment, Task, Trajectory

if TYPE_CHECKING:
    from aurify.rewards.rubric import Rubric

TRUNCATED = "truncated"  # the name of the penalty among the rewards
BYTES_PER_TOKEN = 8  # an id and a log-prob


@dataclass(frozen=True, kw_only=True)
class ReplayOptions(Checked):
    share: Annotated[float, Interval(gt=0, le=1)] = 0.5  # of a step's prompts, as far as the buffer has questions
    start: float = 0.35  # nothing is collected or replayed before a step's success rate is above this
    sigma: PositiveFloat = 1.0  # of the normal density over buckets, in successes
    buckets: Literal["successes", "spread"] = "successes"  # what a question's bucket says of its latest group
    select: Literal["entropy", "nll", "random"] = "entropy"  # which of a question's trajectories: the surest, or any
    per_question: PositiveInt = 16  # trajectories
    max_tokens: PositiveInt = 8_000_000  # of the whole buffer, prompts included; 8 bytes each
    success: float = 1.0  # what the task's first reward gives a right answer


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
    def of(group: Group, trajectory: Trajectory, logprobs: Sequence[float], step: int) -> Entry:
        return Entry(
            group.task.id,
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
        self.evicted = 0

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
        weights = bucket_weights(self.group_size, self.options.sigma)
        chosen = []
        for _ in range(num):
            [k] = generator.choices(list(buckets), [max(weights[k], 1e-300) for k in buckets])
            bucket = buckets[k]
            place = generator.randrange(len(bucket))
            bucket[place], bucket[-1] = bucket[-1], bucket[place]
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
        data = [build_datum(self.entries[key].trajectory()) for key in keys]
        if self.options.select == "entropy":
            values = policy.entropies(data, temperature=temperature)
        else:
            values = [[-value for value in row] for row in policy.logprobs(data, temperature=temperature)]
        rows = zip(keys, values, data, strict=True)
        means = {key: weighted_mean(row, datum) for key, row, datum in rows}
        return {name: min(entries, key=lambda key: (means.get(key, 0.0), key)) for name, entries in known.items()}

    # ------------------------------------------------------------------ putting in

    def learn(
        self,
        groups: Sequence[Group],
        logprobs: Mapping[int, Sequence[float]],
        rubric: Rubric,
        step: int,
    ) -> Metrics:
        """Takes in a step's groups. logprobs: the trainer's, by the id() of the trajectory; successes without are not
        kept. Returns what to report."""
        num_right = num_own = 0
        fresh: list[bool] = []  # of questions from the task: old ones were chosen, so they say less of the policy
        used = [t for group in groups for t in group.trajectories if t.source == "replay"]
        self.evicted = 0
        buckets = self.buckets(groups, rubric)
        for group, bucket in zip(groups, buckets, strict=True):
            own = [t for t in group.trajectories if t.source == "policy"]
            right = [t for t in own if rubric.succeeded(t, self.options.success)]
            stored = [t for t in group.trajectories if t.source == "replay"]
            still_right = [t for t in stored if rubric.succeeded(t, self.options.success)]
            num_right, num_own = num_right + len(right), num_own + len(own)
            fresh += [any(t is other for other in right) for t in own] if not stored else []
            if self.started:
                num = len(right) + len(still_right)
                wrong = len(still_right) < len(stored)  # the answer that was stored is no success any more
                self.update(group, bucket, all_right=num == len(own) + len(stored), lost=num == 0 and wrong)
                kept = [t for t in right if not t.truncated and id(t) in logprobs]
                for trajectory in kept if group.task.id not in self.retired else []:
                    self.add(group, bucket, Entry.of(group, trajectory, logprobs[id(trajectory)], step))
        rate = num_right / max(1, num_own)
        self.started = self.started or rate > self.options.start
        metrics = {"replay/success_rate": rate, "replay/used": float(len(used)), **self.metrics()}
        return metrics | ({"replay/success_rate_fresh": fmean(fresh)} if fresh else {})

    def buckets(self, groups: Sequence[Group], rubric: Rubric) -> list[int]:
        """That of each group: its successes, at least 1, or its place between the spreads of the step."""
        if self.options.buckets == "successes":
            counts = [
                sum(rubric.succeeded(t, self.options.success) for t in group.trajectories if t.source != "guidance")
                for group in groups
            ]
            return [max(1, count) for count in counts]
        own = [[t for t in group.trajectories if t.source != "guidance"] for group in groups]
        rewards = [[t.reward for t in row if t.reward is not None] for row in own]
        spreads = [pstdev(row) if row else 0.0 for row in rewards]
        low, high = min(spreads, default=0.0), max(spreads, default=0.0)
        return [round(self.group_size * (value - low) / (high - low)) if high > low else 0 for value in spreads]

    def update(self, group: Group, bucket: int, *, all_right: bool, lost: bool) -> None:
        """What a group says about its question, whether or not anything of it is kept."""
        name = group.task.id
        if all_right:
            self.retired.add(name)
        if all_right or lost:
            self.forget(name)
        elif name in self.questions:
            self.questions[name].bucket = bucket

    def add(self, group: Group, bucket: int, entry: Entry) -> None:
        question = self.questions.setdefault(group.task.id, Question(group.task, bucket))
        for key in question.entries:
            if self.entries[key].tokens == entry.tokens:  # the newer log-probs are nearer to the policy of now
                self.remove(key, drop=False)
                break
        self.entries[self.next_key] = entry
        question.entries.append(self.next_key)
        self.next_key += 1
        self.num_tokens += len(entry.tokens)
        if len(question.entries) > self.options.per_question:
            self.evict(question.entries[0])
        while self.num_tokens > self.options.max_tokens:
            self.evict(next(iter(self.entries)))

    def evict(self, key: int) -> None:
        self.remove(key)
        self.evicted += 1

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
            "replay/evicted": float(self.evicted),
            "replay/started": float(self.started),
            "replay/megabytes": self.num_tokens * BYTES_PER_TOKEN / 2**20,
        }
        for k in range(1, self.group_size):
            metrics[f"replay/bucket_{k}"] = float(sizes[k])
        return metrics

    def state_dict(self) -> dict[str, Any]:
        entries = list(self.entries.values())
        try:
            tasks = json.dumps([[name, plain_task(q.task)] for name, q in self.questions.items()])
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


def bucket_weights(group_size: int, sigma: float) -> dict[int, float]:
    """Normal density of k successes of `group_size` around the half, for every k that a kept question can have."""
    scale = sigma * math.sqrt(2 * math.pi)
    return {k: math.exp(-(((k - group_size / 2) / sigma) ** 2) / 2) / scale for k in range(group_size + 1)}


def num_replayed(share: float, num_prompts: int) -> int:
    """Of the prompts of a step, so far as the buffer has questions; 0.29 of 100 are 29 in floating point too."""
    return int(share * num_prompts + 1e-9)


def weighted_mean(values: Sequence[float], datum: Datum) -> float:
    """Over the trained tokens of a sequence."""
    return fmean(value for value, weight in zip(values, datum.weights, strict=True) if weight)


def plain_task(task: Task) -> dict[str, Any]:
    return {"id": task.id, "prompt": task.prompt, "answer": task.answer, "info": dict(task.info)}
