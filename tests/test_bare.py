"""The bare package does what the README's first lines promise: an interpreter that finds the core dependencies, what
they need, and nothing else imports every module, reads a GGUF file and trains. An extra that is missing is named."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MOST_CORE_DEPENDENCIES = 10
STANDARD_LIBRARY = [sysconfig.get_path(name, sysconfig.get_default_scheme()) for name in ("stdlib", "platstdlib")]

# Each call needs an extra, and says which. The packages of an extra that core dependencies bring are none of its own.
NEEDS_AN_EXTRA = """
def hub_data_set():
    from aurify.rows.sources import load_hub_rows
    load_hub_rows("someone/rows", None, "train")

def parquet_file():
    from aurify.rows.files import read_parquet
    list(read_parquet(Path("rows.parquet"), None))

def gym_task():
    from aurify.tasks.gym import gym
    gym("leg_counting")

def math_reward():
    from aurify.rewards.math import math
    math()

def judge():
    from aurify.rewards.judge import JudgeReward
    JudgeReward("http://localhost", "m", "Be right.")

def call_schema():
    from aurify.tools.schema import find_schema_violation
    find_schema_violation({}, {"type": "object"})

def knowledge_base():
    from aurify.knowledge.store import connect_lancedb
    connect_lancedb(Path("kb"))

def embedder():
    from aurify.knowledge.embedding import load_embedder
    Path("config.json").write_text("{}")
    load_embedder(str(Path.cwd()))

def web_page():
    from aurify.knowledge.reading.webpage import read_web_html
    read_web_html("<p>text</p>")

def pdf():
    from aurify.knowledge.reading.pdf import read_pdf
    read_pdf(b"", 1)

def code():
    from aurify.knowledge.chunking.outline import load_code_grammar
    load_code_grammar("python")

def server():
    from aurify.serving.knowledge import build_service
    build_service(lambda queries, topk: [])

def chroma():
    from aurify.knowledge.adapters import open_chroma
    open_chroma("folder", "collection", None)

def faiss():
    from aurify.knowledge.adapters import open_faiss
    open_faiss("index", "passages", None)

def quantised_base():
    from aurify.models.model import ModelConfig, load_model
    load_model(ModelConfig("random:tiny", quantize="nf4"))

def optimiser_in_8_bits():
    from aurify.engine.optim import MasterAdamW, OptimConfig
    MasterAdamW([], OptimConfig(kind="adamw_8bit"))

def tensorboard():
    from aurify.tracking.trackers.tensorboard import open_summary_writer
    open_summary_writer(Path.cwd(), 1)  # a stage goes on without; its events.log says so

def gguf_export():
    from aurify.export.gguf import check_gguf_types
    check_gguf_types(["q8_0"])

WANTED = {
    hub_data_set: "hub", parquet_file: "hub", gym_task: "gym", math_reward: "math", judge: "judge",
    call_schema: "tools",
    knowledge_base: "memory", embedder: "memory", web_page: "memory", pdf: "memory", code: "memory",
    server: "serve", chroma: "chroma", faiss: "faiss", tensorboard: "tensorboard",
    quantised_base: "quantize", optimiser_in_8_bits: "quantize", gguf_export: "gguf",
}
"""

MODULES = f"""
import importlib, json, pkgutil
from pathlib import Path
import aurify
from aurify.errors import UserError

def fail(error):
    raise error

failed = {{}}
for module in pkgutil.walk_packages(aurify.__path__, "aurify.", onerror=lambda name: fail(ImportError(name))):
    try:
        importlib.import_module(module.name)
    except Exception as error:
        failed[module.name] = repr(error)
{NEEDS_AN_EXTRA}
said = {{}}
for call, extra in WANTED.items():
    try:
        call()
    except UserError as error:
        said[call.__name__] = "named" if f"aurify[{{extra}}]" in str(error) else str(error)
    else:
        said[call.__name__] = "no error"
print("\\n" + json.dumps([failed, said]))
"""

COMMANDS = """
import io, os, sys
from pathlib import Path
from aurify.cli.main import app
from aurify.models.model import tiny_model
from gguf_file import write_gguf

def aurify(*arguments, said=""):
    print("$ aurify", *arguments, flush=True)
    sys.stdin = io.StringIO(said)
    sys.argv = ["aurify", *arguments]
    assert not app(arguments, standalone_mode=False), "its exit code"

made = tiny_model(vocab_size=len(tiny_model().tokenizer) + 1)
write_gguf(made.module.float(), made.tokenizer, Path("tiny.gguf"))
aurify("sample", "tiny.gguf", "hi", "--max-tokens", "2")
aurify("doctor")
aurify("train", "recipe.yaml")
aurify("report", "last")
aurify("eval", "last", "--num-tasks", "2")
aurify("chat", "last", "--max-tokens", "2", said="hi\\n/quit\\n")
"""

RECIPE = """
model: random:tiny
task: {name: largest_number, count: 2, maximum: 20, num_heldout: 4}
evaluation: {num_tasks: 4, sampling: {max_tokens: 4}}
stages:
  sft: {method: sft, data: {demonstrations: 8}, steps: 1, batch_size: 4}
  grpo:
    {method: grpo, model: "@sft", lora: {rank: 4}, steps: 1, prompts_per_step: 2, completions_per_prompt: 3,
     sampling: {max_tokens: 4}}
"""


def needed_by(requirements: list[str]) -> dict[str, importlib.metadata.Distribution]:
    """The distributions that these requirements bring on this machine, with all that those need in turn."""
    found: dict[str, importlib.metadata.Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(Requirement(text), "") for text in requirements]
    while waiting:
        requirement, asked_by = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": asked_by}):
            continue
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras} - {extra for other, extra in seen if other == name}:
            seen.add((name, extra))
            found[name] = importlib.metadata.distribution(name)
            waiting += [(Requirement(text), extra) for text in found[name].requires or ()]
    return found


def link_into(folder: Path, distribution: importlib.metadata.Distribution) -> None:
    """Links what a distribution has at the top of site-packages. Of a folder that several share (a namespace, such as
    `nvidia`), its own part alone."""
    for file in distribution.files or ():
        if file.parts[0] in ("..", "__pycache__") or file.is_absolute():
            continue  # scripts
        for depth in range(1, len(file.parts) + 1):
            part = Path(*file.parts[:depth])
            source, target = Path(str(distribution.locate_file(part))), folder / part
            shared = source.is_dir() and depth < 3 and not (source / "__init__.py").exists()
            if shared and not source.name.endswith((".dist-info", ".libs")):
                target.mkdir(exist_ok=True)
                continue
            if not target.is_symlink():
                target.symlink_to(source)
            break


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site-packages folder of the core dependencies alone."""
    folder = tmp_path_factory.mktemp("site-packages")
    for distribution in needed_by(PROJECT["dependencies"]).values():
        link_into(folder, distribution)
    return folder


def run_bare(bare: Path, program: str, folder: Path) -> str:
    """Runs a program in `folder`. It finds the standard library, the core dependencies, aurify and gguf_file.py."""
    places = [*dict.fromkeys(STANDARD_LIBRARY), f"{STANDARD_LIBRARY[0]}/lib-dynload"]
    places += [str(bare), str(SOURCE), str(ROOT / "tests" / "models")]
    setup = f"import os, sys; sys.path[:] = {places!r}; os.environ['HF_HUB_OFFLINE'] = '1'\n"
    command = [sys.executable, "-I", "-S", "-X", "utf8", "-W", "ignore", "-c", setup + program]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    return result.stdout


def test_core_dependencies_are_few():
    assert len(PROJECT["dependencies"]) <= MOST_CORE_DEPENDENCIES


def test_the_folder_holds_no_package_of_an_extra(bare):
    extras = [text for texts in PROJECT["optional-dependencies"].values() for text in texts]
    brought = {canonicalize_name(Requirement(text).name) for text in extras} - {"aurify"}
    assert not brought & needed_by(PROJECT["dependencies"]).keys(), "an extra names what the core brings already"
    program = "import importlib.util as u; print([name for name in ('torch', 'pytest', 'trl') if u.find_spec(name)])"
    assert run_bare(bare, program, bare).strip() == "['torch']"


def test_every_module_is_imported_and_every_extra_that_is_missing_is_named(bare, tmp_path):
    failed, said = json.loads(run_bare(bare, MODULES, tmp_path).splitlines()[-1])
    assert failed == {}
    assert {call: answer for call, answer in said.items() if answer != "named"} == {}
    assert len(said) == NEEDS_AN_EXTRA.count("\ndef ")


def test_a_gguf_file_is_read_and_a_pipeline_runs(bare, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    output = run_bare(bare, COMMANDS, tmp_path)
    [run] = (tmp_path / "runs").iterdir()
    results = json.loads((run / "results.json").read_text())
    assert {stage: result["status"] for stage, result in results.items()} == {"sft": "finished", "grpo": "finished"}
    assert (run / "report.html").is_file()
    assert output.count("$ aurify") == COMMANDS.count("\naurify(")
