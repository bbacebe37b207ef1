"""A model that only writes: what `chat`, `sample` and `eval` open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from aurify.samplers.sampler import Session

if TYPE_CHECKING:
    from aurify.cli.names import NamedModel
    from aurify.engine.engine import Engine
    from aurify.renderer import Renderer
    from aurify.samplers.sampler import StreamingSampler
    from aurify.types import Completion, Message, SamplingParams

T = TypeVar("T")
UNFINISHED = "\ufffd"  # stands for bytes that are not a whole character yet


@dataclass(frozen=True)
class Writer:
    sampler: StreamingSampler
    renderer: Renderer
    runner: asyncio.Runner  # one event loop for the sampler's whole life
    session: Session = field(default_factory=Session)  # of what is streamed: a chat that goes on
    engine: Engine | None = None  # for what computes more than answers

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def write(self, messages: list[Message], params: SamplingParams, n: int = 1) -> list[str]:
        """Answers to a conversation, as text."""
        completions = self.run(self.sampler.sample(self.renderer.prompt(messages), params, n))
        return [self.renderer.parse(completion.tokens)["content"] for completion in completions]

    def stream(self, messages: list[Message], params: SamplingParams, show: Callable[[str], None]) -> str:
        """Returns one answer and shows each piece of its text at once. A character may span several tokens."""
        tokens: list[int] = []
        shown = ""

        def hear(token: int) -> None:
            nonlocal shown
            tokens.append(token)
            text = self.renderer.parse(tokens)["content"]
            if len(text) > len(shown) and text.startswith(shown) and not text.endswith(UNFINISHED):
                show(text[len(shown) :])
                shown = text

        async def ask() -> Completion:
            with self.session:
                [completion] = await self.sampler.sample(self.renderer.prompt(messages), params, on_token=hear)
            return completion

        completion = self.run(ask())
        text = self.renderer.parse(completion.tokens)["content"]
        if len(text) > len(shown) and text.startswith(shown):
            show(text[len(shown) :])
        return text


@contextmanager
def open_writer(model: NamedModel, *, device: str = "auto", seed: int = 0) -> Iterator[Writer]:
    """The model reads its prompts as it did in training: tools and the variables of the chat template are those of its
    stage."""
    from rich.console import Console as RichConsole

    from aurify.tracking.trackers.console import Console

    with Console(RichConsole(stderr=True, highlight=False)).show_waiting(f"loading {model.name} ..."):
        from aurify import config
        from aurify.engine.engine import Engine
        from aurify.models.model import ModelConfig, load_model
        from aurify.renderer import Renderer
        from aurify.samplers.open import SamplerOptions, open_sampler

        loaded = load_model(config.build_options(ModelConfig, {"name": model.name, "device": device}, "model"))
        options = model.stage_options()
        renderer = Renderer(
            loaded.tokenizer,
            tools_as_text=bool(options.get("tools_as_text")),
            template_options=options.get("template_options") or {},
        )
        engine = Engine(loaded, trainable=False)
        sampler = open_sampler(SamplerOptions(), engine, seed=seed)
    with asyncio.Runner() as runner:
        try:
            yield Writer(sampler, renderer, runner, engine=engine)
        finally:
            runner.run(sampler.close())
