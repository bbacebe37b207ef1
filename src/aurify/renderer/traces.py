"""What a guide said, with the words of an environment or tool inside, as tokens. Those words are context, never a
target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from aurify.renderer.renderer import Renderer
from aurify.types import Message, Origin, Segment


def render_trace(
    prompt: Sequence[Message], trace: Sequence[Message], tools: Sequence[dict[str, Any]], renderer: Renderer
) -> list[Segment]:
    """The prompt and the tokens of a trace by who wrote them, as a rollout would have had them."""
    context = [cast(Message, {**m, "weight": 0.0}) if m["role"] == "assistant" else m for m in prompt]
    asked = renderer.prompt(prompt, tools)
    tokens, weights = renderer.conversation([*context, *trace], tools)
    assert tokens[: len(asked)] == asked, "a conversation begins with its prompt"
    segments = [Segment(asked, "prompt")]
    for token, weight in zip(tokens[len(asked) :], weights[len(asked) :], strict=True):
        origin: Origin = "guidance" if weight else "environment"
        if segments[-1].origin != origin:
            segments.append(Segment([], origin))
        segments[-1].tokens.append(token)
    return segments
