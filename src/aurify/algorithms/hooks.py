"""What the online loop and the check of a recipe ask of a method, beside its advantages and its loss. A method answers
by a field or a function of the same name; `algorithm_hook` gives the default where it has none, so a method of your own
needs only what differs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from aurify.types import Datum, Group, Metrics, OnlineAlgorithm


class Controller(Protocol):
    """Moves an option of a method from step to step. Its state goes into checkpoints."""

    def apply(self, algorithm: Any) -> Any:
        """The method with the option of the next step."""
        ...

    def observe(self, metrics: Metrics) -> Metrics:
        """Looks at a step's metrics, and returns its own."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Hooks:
    """The defaults."""

    min_group: ClassVar[int] = 1  # answers to one prompt below which nothing can be learnt
    needs_reward: ClassVar[bool] = True  # answers without a reward are left out
    sums_rewards: ClassVar[bool] = True  # asks for an answer's reward; else for its rewards one by one
    flattens: ClassVar[bool] = True  # gives a group without spread no advantage
    asks_guide_ratio: ClassVar[bool] = True  # how likely a guide's tokens were to the policy before the update
    stage_needs: ClassVar[tuple[str, ...]] = ()  # what the stage must have beside the policy's own answers

    @property
    def cautions(self) -> Sequence[str]:
        """What may not be meant, and is worth a word before a run."""
        return ()

    def check_stage(self, stage: Any) -> None:
        """Raises where the options of the method do not go with those of the stage."""

    def turn_advantages(self, groups: Sequence[Group]) -> Sequence[Sequence[Sequence[float]]] | None:
        """[groups][trajectories][turns] advantages that are used instead of one for each trajectory; None: there are
        none."""
        return None

    def keeps_flat(self, advantages: Sequence[Sequence[float]]) -> bool:
        """Whether groups without spread are trained in a step with these advantages."""
        return False

    def revise_advantages(
        self, rewards: Sequence[Sequence[float | None]], groups: Sequence[Sequence[Datum]]
    ) -> tuple[Sequence[Sequence[Datum]], Metrics]:
        """The last word on the advantages of a round, when the log-probs of its data are known; and what to report.
        rewards: one for each datum. Answers that are not trained are no part of either."""
        return groups, {}

    def make_controller(self) -> Controller | None:
        return None


DEFAULTS = Hooks()


def algorithm_hook(algorithm: Any, name: str) -> Any:
    """The algorithm's own, or the default."""
    return getattr(algorithm, name) if hasattr(algorithm, name) else getattr(DEFAULTS, name)


def find_advantages(
    algorithm: OnlineAlgorithm, groups: Sequence[Group]
) -> tuple[Sequence[Sequence[float]], Sequence[Sequence[float | Sequence[float]]]]:
    """For each trajectory one number that is 0 where nothing of it teaches, and what its tokens get: that number, or
    one for each turn."""
    turns = algorithm_hook(algorithm, "turn_advantages")(groups)
    if turns is None:
        whole = algorithm.advantages(groups)
        return whole, whole
    return [[max(values, key=abs, default=0.0) for values in row] for row in turns], turns
