"""Who may import whom, read from the syntax tree: a file imports lower layers, or its own folder, and nothing else of
Aurify."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "aurify"
FILES = sorted(SOURCE.rglob("*.py"))
LAYERS = (
    {
        "types",
        "errors",
        "bounds",
        "config",
        "foreign_keys",
        "signatures",
        "registry",
        "http",
        "cores",
        "threads",
        "files",
        "thoughts",
    },
    {"hardware", "rows"},
    {"models", "renderer", "algorithms", "tracking", "samplers.sampler", "sandbox", "tools", "conversion"},
    {"knowledge", "rewards", "report", "tools.python"},
    {"tools.search"},
    {"data", "engine", "environments"},
    {"tasks.taskset"},
    {"procedures"},
    {"tasks", "samplers", "data.preferences"},
    {"evaluation"},
    {"pipeline.recipe"},
    {"loops"},
    {"pipeline", "serving", "export"},
    {"cli"},
)
HEAVY = {
    "torch",
    "transformers",
    "numpy",
    "omegaconf",
    "pydantic",
    "huggingface_hub",
    "gguf",
    "safetensors",
    "tokenizers",
}


def module_of(path: Path) -> str:
    """The dotted name below aurify: "engine.lora"; packages without their __init__."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def layer_of(module: str) -> int:
    for depth in (2, 1):  # a file may have another layer than its folder
        key = ".".join(module.split(".")[:depth])
        for number, names in enumerate(LAYERS):
            if key in names:
                return number
    raise AssertionError(f"{module} has no layer; give it one in LAYERS and in docs/architecture.md")


def imports_of(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(absolute module, line) of each import, wherever it stands. `from aurify import config` counts as
    aurify.config."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write imports in full"
            if node.module == "aurify":
                yield from (
                    (f"aurify.{alias.name}", node.lineno) for alias in node.names if alias.name != "__version__"
                )
            elif submodules := [alias.name for alias in node.names if is_module(f"{node.module}.{alias.name}")]:
                yield from ((f"{node.module}.{name}", node.lineno) for name in submodules)
            else:
                yield str(node.module), node.lineno


def is_module(name: str) -> bool:
    path = SOURCE.parent / Path(*name.split("."))
    return path.with_suffix(".py").exists() or path.is_dir()


def violations(path: Path, text: str) -> list[str]:
    module = module_of(path)
    found = []
    for name, line in imports_of(ast.parse(text)):
        if not name.startswith("aurify."):
            continue
        target = name.removeprefix("aurify.")
        same_folder = target.split(".")[0] == module.split(".")[0] or ("." not in target and "." not in module)
        own, other = layer_of(module), layer_of(target)
        if other > own or (other == own and not same_folder):
            found.append(f"{path.relative_to(SOURCE)}:{line} (layer {own}) imports {name} (layer {other})")
    return found


@pytest.mark.parametrize("path", [path for path in FILES if module_of(path)], ids=module_of)
def test_imports_only_lower_layers(path):
    assert not violations(path, path.read_text())


@pytest.mark.parametrize(
    ("file", "line"),
    [
        (
            "engine/engine.py",
            "from aurify.algorithms.grpo import GRPO\nfrom aurify.samplers.inprocess import InProcessSampler",
        ),
        ("algorithms/grpo.py", "def f():\n    from aurify.engine import engine"),
        ("config.py", "import aurify.renderer"),
        ("evaluation/evaluate.py", "from aurify import loops"),
        ("data/sources.py", "from aurify.engine.engine import Engine"),
        ("rows/files.py", "from aurify.data.sources import Part"),
    ],
)
def test_a_wrong_import_is_found(file, line):
    assert len(violations(SOURCE / file, line)) == 1


def import_graph() -> dict[str, set[str]]:
    """Module -> the modules that it imports, wherever the import stands: in a function, or for a type checker."""
    graph = {}
    for path in FILES:
        names = {name for name, _ in imports_of(ast.parse(path.read_text())) if name.startswith("aurify.")}
        graph[module_of(path)] = {name.removeprefix("aurify.") for name in names} - {module_of(path)}
    return graph


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Modules that reach each other: the strongly connected components of more than one."""

    def reach(start: str) -> set[str]:
        found, coming = set(), [start]
        while coming:
            for name in graph.get(coming.pop(), set()) - found:
                found.add(name)
                coming.append(name)
        return found

    reached = {module: reach(module) for module in graph}
    found = [{other for other in reached[module] if module in reached.get(other, ())} for module in graph]
    return [circle for number, circle in enumerate(found) if circle and circle not in found[:number]]


def test_no_circle_of_imports():
    assert not circles(import_graph())


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("models.loading", "def f():\n    from aurify.models import catalog"),
        ("engine.check", "if TYPE_CHECKING:\n    from aurify.engine.forward import Body"),
    ],
)
def test_a_circle_is_found(module, line):
    graph = import_graph()
    graph[module] |= {name.removeprefix("aurify.") for name, _ in imports_of(ast.parse(line))}
    assert [module in circle for circle in circles(graph)] == [True]


def lines_with(pattern: str) -> set[str]:
    return {str(path.relative_to(SOURCE)) for path in FILES if pattern in path.read_text()}


def test_each_part_keeps_to_its_place():
    assert lines_with(".apply_chat_template(") == {"renderer/template.py"}
    assert {name.split("/")[0] for name in lines_with(".backward(")} == {"engine"}
    trackers = lines_with("import tensorboard") | lines_with("torch.utils.tensorboard")
    assert trackers == {"tracking/trackers/tensorboard.py"}
    assert not lines_with("import vllm")
    assert not lines_with("import peft")


def top_level_imports(path: Path) -> set[str]:
    """Modules that importing this file imports at once: not those in functions or under TYPE_CHECKING."""
    nodes = [node for node in ast.parse(path.read_text()).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return {name.split(".")[0] for node in nodes for name, _ in imports_of(node)}


@pytest.mark.parametrize(
    "path", [*(SOURCE / "cli").glob("*.py"), *(SOURCE / f"{name}.py" for name in LAYERS[0])], ids=module_of
)
def test_commands_and_the_lowest_layer_import_nothing_heavy(path):
    assert not top_level_imports(path) & HEAVY
