"""`aurify sample`: completions of a prompt, or of the prompts of a task with their rewards."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from aurify.cli.names import RUNS, Device, ModelName, RunsFolder, resolve_model_argument
from aurify.errors import UserError


def sample(
    model: ModelName,
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads it from the standard input.")],
    num: Annotated[int, typer.Option("--num", "-n", min=1, help="How many answers.")] = 1,
    system: Annotated[str, typer.Option(help="A system prompt.")] = "",
    max_tokens: Annotated[int, typer.Option(help="Tokens of one answer.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 1.0,
    top_p: Annotated[
        float, typer.Option(help="Sample from the smallest set of tokens with this much probability.")
    ] = 1.0,
    top_k: Annotated[int, typer.Option(help="Sample from this many tokens; 0 is all.")] = 0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answers.")] = None,
    device: Device = "auto",
    runs: RunsFolder = RUNS,
) -> None:
    """Ask once and print the answers."""
    from aurify import config
    from aurify.cli.writer import open_writer
    from aurify.types import Message, SamplingParams

    values = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed}
    params = config.build_options(SamplingParams, values, "options")
    text = sys.stdin.read().strip() if prompt == "-" else prompt
    if not text:
        raise UserError("the prompt is empty; write what to ask after the model's name")
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": text})
    with open_writer(resolve_model_argument(model, runs), device=device) as writer:
        for index, answer in enumerate(writer.write(messages, params, num)):
            if num > 1:
                typer.secho(f"--- {index + 1}", dim=True)
            typer.echo(answer)
