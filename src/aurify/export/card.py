"""The model card: README.md of an exported folder, made of what the run has written down."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from aurify.export.agreement import Agreement, Trained
from aurify.files import replace_text
from aurify.models.catalog import find_known_model
from aurify.tracking import jsonl
from aurify.tracking.figures import format_heldout_error, format_heldout_number
from aurify.tracking.run_folder import RunFolder

USES = {
    "safetensors": "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
    'model = AutoModelForCausalLM.from_pretrained("{folder}")\ntokenizer = AutoTokenizer.from_pretrained("{folder}")',
    "adapter": "from peft import AutoPeftModelForCausalLM\n\n"
    'model = AutoPeftModelForCausalLM.from_pretrained("{folder}")  # fetches {base} as well',
}


@dataclass(frozen=True)
class Origin:
    """Where an exported model comes from; run and stage are None where Aurify did not train it."""

    name: str
    run: Path | None = None
    stage: str | None = None

    @property
    def stem(self) -> str:
        """`20261130_101500_ab12-sft`, or the last part of a model's name: for names of files."""
        if self.run is not None:
            return f"{self.run.name}-{self.stage}"
        return Path(self.name).name.removesuffix(".gguf").replace(":", "-")


def write_model_card(
    folder: Path, title: str, origin: Origin, found: Mapping[str, Agreement], trained: Trained
) -> None:
    """found: of each file or form that was exported, how well it agrees with the trained model."""
    base = trained.base
    parts = [
        f"# {title}",
        describe_card_origin(origin, base),
        "## Use",
        *describe_card_use(folder, title, base, found),
        "## Checks of the export",
        "Each file was loaded again and compared with the trained model, in fp32 on a CPU (GGUF: by llama.cpp).",
        "\n".join(f"- {kind}: {agreement}" for kind, agreement in found.items()),
    ]
    if origin.run is not None:
        parts += describe_training_run(RunFolder(origin.run))
    head = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["aurify"]}
    if not Path(base).exists() and base.count("/") == 1:  # a name of the hub
        head["base_model"] = base
    if known := find_known_model(base):
        head["license"] = known.licence.lower()
    front = yaml.safe_dump(head, sort_keys=False)
    replace_text(folder / "README.md", f"---\n{front}---\n\n" + "\n\n".join(parts) + "\n")


def describe_card_origin(origin: Origin, base: str) -> str:
    if origin.run is None:
        return f"Exported by Aurify from `{Path(origin.name).name}`; Aurify has no record of how it was trained."
    return f"Trained by Aurify: stage `{origin.stage}` of run `{origin.run.name}`. Its base model: `{base}`."


def describe_card_use(folder: Path, title: str, base: str, found: Iterable[str]) -> Iterable[str]:
    for kind in found:
        if kind in USES:
            yield f"```python\n{USES[kind].format(folder=title, base=base)}\n```"
    files = sorted(file.name for file in folder.glob("*.gguf"))
    if (folder / "Modelfile").exists():
        yield f"```\nollama create {title} -f Modelfile\nollama run {title}\n```"
    elif files:
        yield f"```\nllama-cli -m {files[0]}\n```"


def describe_training_run(run: RunFolder) -> list[str]:
    recipe = run.recipe.read_text(encoding="utf-8")
    planned = yaml.safe_load(recipe).get("stages") or {}
    info, results = jsonl.read_run_file(run.info), run.results()
    rows = [describe_heldout_result(name, results.get(name, {})) for name in planned]
    data = [describe_training_data(name, results.get(name, {}), options or {}) for name, options in planned.items()]
    versions = info.get("versions", {})
    hardware = info.get("hardware", {})
    machine = hardware.get("gpu") or f"{hardware.get('cpu', 'unknown')}, {hardware.get('cores', '?')} cores"
    legs = run.describe_legs()
    return [
        "## Results",
        "On tasks or rows that training never saw. ± is the standard error.",
        "\n".join(("| stage | method | measure | before | after | number |", "|---|---|---|---|---|---|", *rows)),
        "## Data",
        "\n".join(data),
        "## How to reproduce",
        f"Save the recipe below as `recipe.yaml`, then (seed {info.get('seed', 0)} is part of it):",
        f"```\npip install 'aurify=={versions.get('aurify', '')}'\naurify train recipe.yaml\n```",
        f"It ran on {machine}, Python {info.get('python', '?')}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + (f", commit {info['git']}" if info.get("git") else "")
        + ". Other hardware and versions give other random numbers, so results near these and not the same.",
        *(["It did not run in one go: " + "; ".join(legs) + "."] if legs else []),
        f"## Recipe\n\n```yaml\n{recipe.rstrip()}\n```",
    ]


def describe_heldout_result(stage: str, result: Mapping[str, Any]) -> str:
    cells = [stage, str(result.get("method", "")), str(result.get("measure", ""))]
    for when in ("before", "after"):
        error = format_heldout_error(result.get(f"details_{when}") or {})
        cells.append(f"{format_heldout_number(result.get(when))} {error}".strip())
    cells.append(str((result.get("details_after") or {}).get("num", "")))
    return f"| {' | '.join(cells)} |"


def describe_training_data(stage: str, result: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    sources = [f"{key} {compact(value)}" for key, value in (("data", options.get("data")), ("task", result.get("task")))
               if value]  # fmt: skip
    return f"- {stage}: {'; '.join(sources) or 'none of its own'}"


def compact(value: Any) -> str:
    return f"`{yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix('...' + chr(10)).strip()}`"
