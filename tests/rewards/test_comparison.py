"""The rules of other frameworks that benchmarks/answers.py compares with, and the table in docs/rewards.md."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from answer_cases import ANSWERS

ROOT = Path(__file__).parents[2]
BENCHMARK = runpy.run_path(str(ROOT / "benchmarks" / "answers.py"))


@pytest.mark.parametrize(
    ("rule", "gold", "reply", "right"),
    [
        ("lm_eval_gsm8k", "18", "She has 9 and makes $18.", True),
        ("lm_eval_gsm8k", "1800", "#### 1,800", True),
        ("lm_eval_gsm8k", "18", "18 of 20", False),
        ("lm_eval_math", "\\frac{1}{2}", "So $\\frac12$.", True),
        ("lm_eval_math", "5", "$x$ is $5$", False),
        ("verl_gsm8k", "1800", "so\n#### 1,800", True),
        ("verl_gsm8k", "18", "The answer is 18.", False),
        ("verl_math", "\\frac{1}{2}", "\\boxed{\\dfrac{1}{2}}", True),
        ("verl_math", "\\frac{1}{2}", "\\boxed{1/2}", True),
        ("verl_math", "5", "\\boxed{x=5}", True),
        ("verl_math", "5", "\\boxed{5", False),
        ("verl_math", "5", "5", False),
        ("verl_dapo", "5", "Answer: $5$", True),
        ("verl_dapo", "1200", "Answer: 1,200 dollars", True),
        ("verl_dapo", "5", "The answer is 5", False),
    ],
)
def test_the_rules_do_what_they_are_known_for(rule, gold, reply, right):
    assert BENCHMARK[rule](gold, reply) == right


def test_the_table_in_the_docs_is_what_was_measured_on_these_answers():
    found = json.loads((ROOT / "docs" / "data" / "answers.json").read_text())
    known = [(a["kind"], a["gold"], a["reply"], int(a["right"])) for a in found["answers"]]
    assert known == [(kind, *entry) for kind, entries in ANSWERS.items() for entry in entries]
    assert BENCHMARK["write_table"](found) in (ROOT / "docs" / "rewards.md").read_text()
    ours = found["totals"]["ours"]
    assert len(known) >= 200 and ours["found"] == ours["right"] and not ours["credited"]
