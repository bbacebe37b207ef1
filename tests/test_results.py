"""Issue 13, results that can be made again: each table of results names the command and seeds that make it, and the
text agrees with the commands' defaults."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SECTIONS = [
    pytest.param(section, id=f"{name}: {section.splitlines()[0]}")
    for name in ("results", "performance")
    for section in (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8").split("\n## ")[1:]
]
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


def commands(section: str) -> list[str]:
    blocks = re.findall(r"^```\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def sources(section: str) -> str:
    """The text of all scripts that a section runs, with the files beside them that define their options."""
    paths = [ROOT / path for path in re.findall(r"python ((?:examples|benchmarks|scripts)/\w+\.py)", section)]
    shared = [path.parent / name for path in paths for name in ("comparison.py", "drive.py")]
    return "\n".join(path.read_text() for path in dict.fromkeys([*paths, *shared]) if path.exists())


def options(text: str) -> list[tuple[str, str]]:
    return re.findall(r"(--[a-z][a-z-]*)(?: ([^\s`;-][^\s`;]*))?", text)


@pytest.mark.parametrize("section", SECTIONS)
def test_each_table_names_a_command_that_exists_and_its_seeds(section):
    lines = commands(section)
    if "|---|" in section:
        assert lines, "a table without the command that makes it"
        assert re.search(r"[Ss]eeds? (0|k|and)|no seed", section), "a table without its seeds"
    for line in lines:
        scripts = re.findall(r"(?<!/)\b(?:python|make) ([\w/.-]+)", line)
        scripts += [f"recipes/{name}.yaml" for name in re.findall(r"\baurify train ([\w-]+)", line)]
        assert scripts, line
        for script in scripts:
            assert script in TARGETS or (ROOT / script).is_file(), f"{line}: there is no {script}"
        for name, _ in options(line):
            assert f'"{name}"' in sources(line), f"{line}: no option {name}"


@pytest.mark.parametrize("section", SECTIONS)
def test_files_of_raw_numbers_are_there_or_made_by_a_command_of_the_section(section):
    text = "\n".join(commands(section))
    for path in re.findall(r"docs/data/[\w.]+", section):
        assert (ROOT / path).is_file() or f"--out {path}" in text or f"--log {path}" in text, path


@pytest.mark.parametrize("section", SECTIONS)
def test_the_text_says_the_defaults_that_the_commands_have(section):
    code = sources("\n".join(commands(section))).replace("_000", "000")
    for told in re.findall(r"Defaults: `([^`]*)`", section):
        for name, value in options(told):
            key = name[2:].replace("-", "_")
            number = r"(\d[\d.e-]*)"
            places = (rf'"{name}",[^\n]*\bdefault={number}', rf"\b{key}={number}", rf'pop\("{key}", {number}\)')
            found = [float(one) for place in places for one in re.findall(place, code)]
            assert float(value) in found, f"{name} is {found} and not {value}"


def test_orpo_is_told_with_the_beta_and_rank_that_it_had():
    [section] = [param.values[0] for param in SECTIONS if "preferences_hh.py" in str(param.values[0])]
    source = (ROOT / "examples" / "preferences_hh.py").read_text()
    assert "ORPO(beta=1.0)" in source and "ORPO (beta 1.0)" in section and "adapters of rank 16" in section
