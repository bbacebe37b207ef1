"""`aurify serve-rollouts`: a vLLM server that trainers on other machines sample from."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from typing import Annotated

import typer

from aurify.errors import UserError


def serve_rollouts(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="What the recipe trains: a hub id, a folder, or a name we know.")],
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 is every address.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    lora_rank: Annotated[
        int, typer.Option(min=0, help="The largest rank of an adapter; 0: whole weights alone are pushed.")
    ] = 32,
    max_context: Annotated[int | None, typer.Option(min=2, help="Tokens of prompt and completion.")] = None,
    python: Annotated[
        str | None, typer.Option(help="A Python that has vLLM; else $AURIFY_VLLM_PYTHON, else this one.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the command and its variables; start nothing.")] = False,
) -> None:
    """Serve a model to recipes with `sampler: {kind: vllm_server}`. Options after -- go to vLLM itself."""
    from aurify.models.names import resolve_model
    from aurify.samplers.vllm_servers import (
        API_SERVER,
        ENVIRONMENT,
        LOGPROBS,
        choose_adapter_flags,
        choose_server_python,
        write_server_flags,
    )

    files = resolve_model(model)
    if files.adapter is not None or files.gguf is not None:
        kind = "an adapter: serve its base model, and adapters are pushed to it" if files.adapter else "a GGUF file"
        raise UserError(f"{model} is {kind}; vLLM needs a folder with safetensors")
    python = choose_server_python(python)
    flags = {"model": files.source, "host": host, "port": port, **LOGPROBS}
    flags |= {"max_model_len": max_context} if max_context else {}
    flags |= choose_adapter_flags(lora_rank) if lora_rank else {}
    command = [python, *API_SERVER, *write_server_flags(flags), *context.args]
    if show:
        typer.echo(shlex.join(["env", *(f"{name}={value}" for name, value in ENVIRONMENT.items()), *command]))
        return
    check = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    try:
        has_vllm = subprocess.run([python, "-c", check]).returncode == 0
    except OSError as error:
        raise UserError(f"--python: {python} cannot be run: {error.strerror}") from error
    if not has_vllm:
        raise UserError(f"{python} has no vllm; give --python one that has (docs/vllm.md says how to make it)")
    if host not in ("127.0.0.1", "localhost"):
        typer.secho("Whoever reaches this address can change the weights: keep it on a private network.", fg="yellow")
    folder = "FOLDER"
    typer.echo(
        f"sampler: {{kind: vllm_server, options: {{urls: 'http://{host}:{port}', folder: {folder}}}}}\n"
        f"{folder} is where the trainer writes weights; this machine must see it under the same path."
    )
    sys.stdout.flush()
    os.execvpe(python, command, os.environ | ENVIRONMENT)
