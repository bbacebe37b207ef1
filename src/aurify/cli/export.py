"""`aurify export`: a trained model in the form that others read. `aurify push`: an exported folder, to a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from aurify.cli.names import RUNS, ModelName, NamedModel, RunsFolder, resolve_model_argument
from aurify.errors import UserError

READS = {  # format -> its own options
    "folder": {"max_shard_size"},
    "adapter": set(),
    "gguf": {"types"},
    "ollama": {"types", "system", "parameter"},
}
Yes = Annotated[bool, typer.Option("--yes", help="Really push, instead of showing what a push would send.")]
Public = Annotated[bool, typer.Option("--public", help="A new repository is public.", show_default="private")]


def export(
    context: typer.Context,
    format: Annotated[str, typer.Argument(metavar="FORMAT", help="folder, adapter, gguf or ollama.")],
    model: ModelName,
    out: Annotated[Path | None, typer.Argument(help="New folder.", show_default="exports/NAME-FORMAT")] = None,
    types: Annotated[
        str, typer.Option("--type", help="Of GGUF: f32, f16, bf16, q8_0 or q4_k_m; several with commas.")
    ] = "q8_0",
    max_shard_size: Annotated[str, typer.Option(help="Of a folder: its largest file, such as 500MB.")] = "5GB",
    system: Annotated[
        str | None, typer.Option(help="For Ollama.", show_default="that of the run's task, or of the chat template")
    ] = None,
    parameter: Annotated[list[str] | None, typer.Option(help="For Ollama, such as temperature=0.7.")] = None,
    push: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="A repository of the hub to push to.")] = None,
    yes: Yes = False,
    public: Public = False,
    runs: RunsFolder = RUNS,
) -> None:
    """Export a model: a folder of safetensors (adapters are merged), the adapter alone, GGUF files, or one for Ollama.

    Each export is loaded again, and must say what the trained model says; one that does not is refused."""
    from aurify.export.card import Origin
    from aurify.export.export import export_model
    from aurify.export.push import check_hub_name

    check_export_options(context, format)
    if push is not None:
        check_hub_name(push)
    named = resolve_model_argument(model, runs)
    origin = Origin(named.name, named.run, named.stage)
    target = out.expanduser() if out is not None else Path("exports") / f"{origin.stem}-{format}"
    found = export_model(
        format,  # type: ignore[arg-type]
        origin,
        target,
        types=read_gguf_types(types, format),
        max_shard_size=max_shard_size,
        system=find_system_prompt(named) if system is None else system,
        parameters=read_ollama_parameters(parameter or []),
    )
    for kind, agreement in found.items():
        typer.echo(f"{kind}: {agreement}")
    typer.echo(f"exported to {target}")
    if format == "ollama":
        typer.echo(f"Take it into Ollama: ollama create {origin.stem} -f {target / 'Modelfile'}")
    if push is not None:
        push_folder(target, push, yes, public)


def push_folder(
    folder: Annotated[Path, typer.Argument(help="An exported folder.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="A repository of the hub; made if it is new.")],
    yes: Yes = False,
    public: Public = False,
) -> None:
    """Show what a push of an exported folder to the hub would send, or with --yes push it."""
    from aurify.export.push import describe_push, push_export

    folder = folder.expanduser()
    for line in describe_push(folder, repo, public):
        typer.echo(line)
    if yes:
        typer.echo(f"pushed: {push_export(folder, repo, public)}")
    else:
        more = " --public" if public else ""
        typer.echo(f"nothing was sent; this sends it: aurify push {folder} {repo} --yes{more}")


def check_export_options(context: typer.Context, format: str) -> None:
    from aurify.config import did_you_mean

    if format not in READS:
        raise UserError(f"there is no format {format!r}{did_you_mean(format, READS)}")
    for option in sorted(set().union(*READS.values()) - READS[format]):
        source = context.get_parameter_source(option)
        if source is not None and source.name == "COMMANDLINE":
            name = "type" if option == "types" else option.replace("_", "-")
            raise UserError(f"--{name}: the format {format} does not read it; leave it out")


def read_gguf_types(text: str, format: str) -> list[str]:
    types = list(dict.fromkeys(kind.strip().lower() for kind in text.split(",") if kind.strip()))
    if not types or (format == "ollama" and len(types) > 1):
        raise UserError(f"--type {text!r}: give {'one type' if format == 'ollama' else 'at least one'}, such as q8_0")
    return types


def find_system_prompt(named: NamedModel) -> str:
    """The system prompt of a run's task."""
    task = named.stage_options().get("task")
    return str((task if isinstance(task, dict) else {}).get("system") or "")


def read_ollama_parameters(given: list[str]) -> dict[str, Any]:
    pairs = [text.partition("=") for text in given]
    for name, equals, value in pairs:
        if not (name.strip() and equals and value.strip()):
            raise UserError(f"--parameter {name}{equals}{value}: write NAME=VALUE, such as temperature=0.7")
    return {name.strip(): value.strip() for name, _, value in pairs}
