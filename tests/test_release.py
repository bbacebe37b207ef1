"""A release by tag: the check of the tag, and workflows whose steps name what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from scripts_of_ours import load_script

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def load_check():
    return load_script("check_release").find_release_problems


@pytest.mark.parametrize(
    ("tag", "heading", "problems"),
    [
        ("v0.2.0", "## 0.2.0 (2026-12-01)", []),
        ("v0.2.1", "## 0.2.0 (2026-12-01)", ["the tag is 'v0.2.1', and pyproject.toml has version '0.2.0'"]),
        ("v0.2.0", "## 0.2.0 (unreleased)", ["CHANGELOG.md has no section `## 0.2.0` that is released"]),
        ("0.2.0", "## 0.1.0", ["the tag is '0.2.0'", "CHANGELOG.md has no section"]),
    ],
)
def test_a_tag_is_released_if_version_and_changes_agree(tmp_path, tag, heading, problems):
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "0.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(f"# Changes\n\n{heading}\n\n- something\n")
    found = load_check()(tag, tmp_path)
    assert len(found) == len(problems)
    assert all(line.startswith(words) for line, words in zip(found, problems, strict=True))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_names_targets_and_files_that_there_are(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert workflow["permissions"] == {"contents": "read"} and len(WORKFLOWS) == 2
    for step in steps:
        assert ("uses" in step) != ("run" in step)
        assert "uses" not in step or re.fullmatch(r"[\w-]+/[\w-]+@[\w./-]+", step["uses"])
        for target in re.findall(r"\bmake ([a-z-]+)", step.get("run", "")):
            assert target in targets, target
        for script in re.findall(r"\bscripts/\w+\.py", step.get("run", "")):
            assert (ROOT / script).is_file(), script
