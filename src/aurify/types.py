"""The nouns that every part of Aurify shares. No torch here: rewards, environments and the CLI import this file alone.

A `Task` is one problem. A sampler answers a prompt with `Completion`s. A rollout is a `Trajectory` of token
`Segment`s, and the trajectories of one task form a `Group`. What the engine trains on is a `Datum`. While it
trains, an algorithm sees `Outputs` (what the model said, with gradient) and a `Batch` (what the data say), both
flat and ragged: one entry for each trained token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Protocol, TypedDict

from aurify.bounds import Checked, Interval, NonNegativeFloat, NonNegativeInt, PositiveInt

if TYPE_CHECKING:
    from torch import Tensor

Metrics = dict[str, float]
Sums = dict[str, "float | Tensor"]  # of a row; tensors are read from the device once, with those of all rows
Origin = Literal["prompt", "policy", "environment", "guidance"]
Source = Literal["data", "policy", "guidance", "replay"]
Author = Literal["policy", "environment", "guidance", "template"]
# how a trajectory ended: by itself; after so many turns; a turn had no tokens left, or the whole; the context was full;
# it took too long; too many calls of tools failed
Outcome = Literal["done", "turn_limit", "token_limit", "context", "time_limit", "tool_errors"]
Divergence = Literal["forward", "reverse", "jsd"]  # KL(teacher || student), KL(student || teacher), between the two
SOURCES: tuple[Source, ...] = ("data", "policy", "guidance", "replay")  # Batch.source counts in this order


class Message(TypedDict, total=False):
    """A chat message in the OpenAI form; `role` and `content` are always there."""

    role: str
    content: str
    name: str
    tool_calls: list[dict[str, Any]]
    tool_call_id: str
    weight: float  # of an assistant message in training; 0 = context
    goes_on: bool  # of an assistant message: it stands in the same turn as the one before


@dataclass(frozen=True, slots=True)
class Task:
    """One problem: what the model is asked, and what a reward needs to judge the answer."""

    id: str  # unique over all merged data sets: it is the key of a group
    prompt: list[Message]
    answer: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)  # further columns; reward functions receive them by name
    part: str = ""  # where a stage mixes several tasks: which of them
    plain: bool = False  # the prompt was a text, not a list of messages; rewards in TRL's form then get texts


@dataclass(frozen=True, slots=True)
class SamplingParams(Checked):
    max_tokens: PositiveInt = 256  # of one answer
    temperature: NonNegativeFloat = 1.0  # 0 = greedy
    top_k: NonNegativeInt = 0  # 0 = off
    # sample from the smallest set of tokens with this much probability
    top_p: Annotated[float, Interval(gt=0, le=1)] = 1.0
    # leave out tokens with less than this share of the probability of the likeliest one
    min_p: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    stop: tuple[str, ...] = ()  # stop strings; the tokens that complete one are kept
    stop_tokens: tuple[int, ...] = ()  # beside the end tokens that the model itself names
    seed: int | None = None  # completion i of a request uses (seed, i)


@dataclass(frozen=True, slots=True)
class Completion:
    """What a sampler gives back: token ids, each with its log-prob under the distribution it was drawn from."""

    tokens: list[int]  # with the end token, if one was sampled
    logprobs: list[float]  # log-probs after temperature and top-k/top-p/min-p
    finish: Literal["stop", "length"]  # "stop": end token or stop string
    versions: list[int]  # weight version that produced each token


@dataclass(frozen=True, slots=True)
class Segment:
    tokens: list[int]
    origin: Origin
    logprobs: list[float] | None = None  # of the sampler; only for origin "policy"
    versions: list[int] | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """What the policy wrote at one go, and what the environment made of it."""

    num_tokens: int  # sampled
    seconds: float  # of sampling
    environment_seconds: float = 0.0
    environment_tokens: int = 0  # that came back
    rewards: Mapping[str, float | None] = field(default_factory=dict)  # of this turn alone


class Span(NamedTuple):
    """Text after the prompt that one author wrote and that got one advantage, for people to look at."""

    text: str
    author: Author
    advantage: float | None = None  # None: it was not trained


@dataclass(slots=True)
class Trajectory:
    """One rollout: tokens and who wrote them, the same conversation as messages, and what it earned."""

    segments: list[Segment]
    messages: list[Message]  # the whole conversation, prompt included
    num_prompt_messages: int
    rewards: dict[str, float | None] = field(default_factory=dict)  # by reward name; None = does not apply
    reward: float | None = None  # the weighted sum; None = no reward applied or all failed: masked, not zero
    outcome: Outcome = "done"
    opened_thought: bool = False  # the prompt of the last turn ends in a thought that its template has opened
    turns: list[Turn] = field(default_factory=list)
    metrics: Metrics = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)  # columns that rewards log, for samples.jsonl
    source: Source = "policy"
    tools: Sequence[dict[str, Any]] = ()  # that the environment offered
    problems: list[str] = field(default_factory=list)  # what the environment gave that could not be used
    advantages: list[float] | None = None  # of each of `tokens`; None: it was not trained
    spans: list[Span] = field(default_factory=list)  # where it is shown to people
    environment: Any = field(default=None, repr=False, compare=False)  # for rewards of TRL, until they have judged

    @property
    def truncated(self) -> bool:
        """It ran into a limit before it was done."""
        return self.outcome != "done"

    @property
    def tokens(self) -> list[int]:
        """Of all rows, one after the other."""
        return [token for segment in self.segments for token in segment.tokens]

    @property
    def rows(self) -> list[list[Segment]]:
        """The sequences of tokens that the policy saw, each begun by a prompt. There are several where the chat
        template writes earlier turns anew, without their thoughts, say. What the policy wrote stands as its own in one
        of them, and is part of a prompt in others."""
        rows: list[list[Segment]] = []
        for segment in self.segments:
            if segment.origin == "prompt" or not rows:
                rows.append([])
            rows[-1].append(segment)
        return rows

    @property
    def completion(self) -> list[Message]:
        """The messages that came after the prompt. Rewards judge these alone."""
        return self.messages[self.num_prompt_messages :]

    @property
    def replies(self) -> list[Message]:
        """The assistant messages after the prompt that the policy wrote: those of an environment have weight 0."""
        return [m for m in self.completion if m["role"] == "assistant" and m.get("weight", 1.0)]

    @property
    def text(self) -> str:
        """What the policy wrote, its turns joined by newlines."""
        return "\n".join(message["content"] for message in self.replies)

    @property
    def num_policy_tokens(self) -> int:
        return sum(len(segment.tokens) for segment in self.segments if segment.origin == "policy")


@dataclass(slots=True)
class Group:
    """All trajectories of one task in one step."""

    task: Task
    trajectories: list[Trajectory]
    reward_weights: Mapping[str, float] = field(default_factory=dict)  # of the rubric, by name; 1 if absent

    @property
    def rewards(self) -> list[float | None]:
        return [trajectory.reward for trajectory in self.trajectories]


@dataclass(frozen=True, slots=True)
class Datum:
    """One sequence to train on. Every stream has len(tokens); index t describes tokens[t]. The first token has no
    predictor: its weight must be 0."""

    tokens: list[int]
    weights: list[float]  # 0 = context only
    advantages: list[float] | None = None
    logprobs: list[float] | None = None  # of the sampler
    old_logprobs: list[float] | None = None  # of the trainer before the first update on it; None: the ratio is 1
    ref_logprobs: list[float] | None = None
    # data of one unit (a preference pair: chosen first, then rejected; the rows of a rollout) share a micro-batch;
    # -1 = alone
    unit: int = -1
    source: Source = "data"
    margin: float = 0.0  # preference pairs: how much better the chosen one should score
    label: float = 1.0  # unpaired preferences: 1 desirable, -1 undesirable
    baseline: float = 0.0  # a constant of this sequence that a loss measures it against, such as KTO's divergence
    guided: list[bool] | None = None  # which tokens a guide wrote, if it wrote only some

    def __post_init__(self) -> None:
        for name in ("weights", "advantages", "logprobs", "old_logprobs", "ref_logprobs", "guided"):
            stream = getattr(self, name)
            if stream is not None and len(stream) != len(self.tokens):
                raise ValueError(
                    f"Datum.{name} has {len(stream)} entries for {len(self.tokens)} tokens; they must be equal"
                )
        if self.weights and self.weights[0] != 0:
            raise ValueError("Datum.weights[0] must be 0: nothing predicts the first token of a sequence")


@dataclass(slots=True)
class Outputs:
    """What the model said about one micro-batch, with gradient."""

    logprobs: Tensor  # [tokens] fp32, log-prob of each trained token at the training temperature
    entropy: Tensor | None = None  # [tokens] fp32, of the full distribution that predicted the token
    scores: Tensor | None = None  # [sequences] fp32, scalar head on the last token of each sequence
    # (kind, beta) -> [tokens] fp32, how far the full distribution that predicted the token is from the teacher's
    divergence: Callable[[Divergence, float], Tensor] | None = None


@dataclass(slots=True)
class Batch:
    """What the data say about the same micro-batch. Sequences of a unit stand next to each other, in the order they
    were given."""

    weights: Tensor  # [tokens] fp32, never 0
    sequence: Tensor  # [tokens] int64, index of the sequence each token belongs to
    unit: Tensor  # [sequences] int64, 0 .. num_units - 1
    num_sequences: int
    num_units: int
    margin: Tensor  # [sequences] fp32
    label: Tensor  # [sequences] fp32
    baseline: Tensor  # [sequences] fp32
    source: Tensor  # [tokens] int64, who wrote the token, as an index into SOURCES
    advantages: Tensor | None = None  # [tokens]
    logprobs: Tensor | None = None  # [tokens] of the sampler
    old_logprobs: Tensor | None = None  # [tokens] of the trainer
    ref_logprobs: Tensor | None = None  # [tokens]

    def written_by(self, source: Source) -> Tensor:
        """[tokens] bool"""
        return self.source == SOURCES.index(source)

    def sum_by_sequence(self, values: Tensor) -> Tensor:
        """[tokens] -> [sequences]"""
        return values.new_zeros(self.num_sequences).index_add(0, self.sequence, values)

    @property
    def lengths(self) -> Tensor:
        """[sequences] number of trained tokens of each sequence, counted with their weights."""
        return self.sum_by_sequence(self.weights)

    @property
    def token_unit(self) -> Tensor:
        """[tokens] int64, the unit each token belongs to"""
        return self.unit[self.sequence]

    def sum_by_unit(self, values: Tensor) -> Tensor:
        """[tokens] -> [units]"""
        return values.new_zeros(self.num_units).index_add(0, self.token_unit, values)

    def mean_by_unit(self, values: Tensor) -> Tensor:
        """[tokens] -> [units], by weights. The rows of a rollout count together, as if they were one sequence."""
        return self.sum_by_unit(self.weights * values) / self.sum_by_unit(self.weights)


Need = Literal[
    "advantages",
    "logprobs",
    "old_logprobs",
    "ref_logprobs",
    "teacher_logprobs",  # instead of ref_logprobs
    "teacher_divergence",  # Outputs.divergence
    "entropy",
    "scores",
    "reference",  # `prepare` asks the policy for log-probs of its reference
]
Per = Literal["token", "sequence", "unit"]
Lesson = Literal["answers", "pairs", "labels", "rollouts"]


class Policy(Protocol):
    """What `prepare` may ask of a model: numbers without gradient, len(tokens) for each sequence."""

    def logprobs(
        self, data: Sequence[Datum], *, reference: bool = False, temperature: float = 1.0
    ) -> list[list[float]]: ...

    def entropies(self, data: Sequence[Datum], *, temperature: float = 1.0) -> list[list[float]]: ...

    def over_ranks(self, values: Sequence[float]) -> list[float]:
        """The numbers of all ranks; each must call it."""
        ...


class Algorithm(Protocol):
    """A frozen dataclass whose fields are the method's options.

    It may also have `prepare(data, policy, temperature) -> data`, called once for each optimiser step before the
    gradient, for what depends on the whole batch, such as a quantile or a baseline (see `prepared`)."""

    @property
    def learns_from(self) -> Lesson:
        """Answers to imitate, preference pairs, answers with a label, or the model's own rollouts."""
        ...

    @property
    def needs(self) -> frozenset[Need]: ...

    @property
    def per(self) -> Per:
        """What the sum that `loss` returns is divided by: all tokens (by weight), sequences or units of the
        optimiser step."""
        ...

    def loss(self, out: Outputs, batch: Batch) -> tuple[Tensor, Sums]:
        """The *sum* of the loss over the micro-batch, and sums of metrics in the same unit (divided by the same
        denominator). Metrics may be tensors: `float(...)` would wait for a GPU."""
        ...


class OnlineAlgorithm(Algorithm, Protocol):
    def advantages(self, groups: Sequence[Group]) -> list[list[float]]:
        """One advantage for each trajectory of each group; 0 where the reward is None."""
        ...


def count_units(data: Sequence[Datum]) -> int:
    """Preference pairs, or rollouts."""
    return len({(datum.unit, index if datum.unit < 0 else -1) for index, datum in enumerate(data)})


def prepared(algorithm: Algorithm, data: Sequence[Datum], policy: Policy, temperature: float = 1.0) -> list[Datum]:
    """The data of one optimiser step as the algorithm wants them."""
    prepare = getattr(algorithm, "prepare", None)
    return list(data) if prepare is None else prepare(data, policy, temperature)
