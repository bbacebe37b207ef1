"""Which option of an algorithm has an effect where. An option that would be ignored is an error, not a surprise.

Each algorithm says so in a class-level mapping `effects`, of the name of an option to an `Effect`; those of its parents
hold too. An option that is not named there always has an effect. `check_algorithm_options` reads the mapping twice:
`__post_init__` calls it with the algorithm alone, and the check of a recipe with the stage as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal

from aurify.errors import UserError


@dataclass(frozen=True)
class Effect:
    """when: whether these options let it act. needs: what the stage must have for that, beside its own answers."""

    when: Callable[[Any], bool]
    condition: str  # ends the sentence "it has an effect only ..."
    needs: Literal["guidance", "replay", "updates"] | None = None


NEVER = Effect(lambda algorithm: False, "with other methods: it has no effect here")
Effects = Mapping[str, Effect]
NEEDED = {
    "guidance": "in a stage with guidance",
    "replay": "in a stage with replay",
    "updates": "with several updates a rollout (num_minibatches or num_epochs above 1)",
}


def collect_option_effects(kind: type) -> dict[str, Effect]:
    """Of a class and its parents; the nearest class decides."""
    found: dict[str, Effect] = {}
    for parent in reversed(kind.__mro__):
        found |= vars(parent).get("effects", {})
    return found


def default_option(kind: type, name: str) -> Any:
    [spec] = [spec for spec in fields(kind) if spec.name == name]
    return spec.default_factory() if spec.default_factory is not MISSING else spec.default


def check_algorithm_options(algorithm: Any, stage: Any = None) -> None:
    """Raises for the first option that is not left as it is and has no effect: with the other options of the algorithm,
    or in this stage."""
    kind = type(algorithm)
    method = kind.__name__.lower() if stage is None else stage.method
    for name, effect in collect_option_effects(kind).items():
        value = getattr(algorithm, name)
        if value == default_option(kind, name):
            continue
        if not effect.when(algorithm):
            raise UserError(f"{method}.{name}: {value} has an effect only {effect.condition}; leave it out")
        if stage is not None and effect.needs and not stage_has(stage, effect.needs):
            raise UserError(f"{method}.{name}: {value} has an effect only {NEEDED[effect.needs]}; leave it out")


def stage_has(stage: Any, need: str) -> bool:
    if need == "updates":
        return bool(stage.num_minibatches > 1 or stage.num_epochs > 1)
    return getattr(stage, need) is not None
