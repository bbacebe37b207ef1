"""GSM8K (Cobbe et al. 2021) has one form here, whoever reads it: a stage's data, a task, a file of traces.

Its files write two things into an answer that nobody should learn to say or compare with: calculator annotations,
`48/2 = <<48/2=24>>24`, and a last line `#### 24`. The annotations are taken out, and the last line is written in one
way. Rows of other files may hold `<<` too (C++, shell): only a row with a question, and an answer that ends in
'#### number', is one of GSM8K's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

ANNOTATION = re.compile(r"<<[-+*/().,%$=\d\s]*>>")
FINAL = re.compile(r"####\s*[-+]?\$?\d[\d,.]*\s*$")
TIDIED = "GSM8K's calculator annotations, such as <<48/2=24>>, were taken out of the answer"


def split_answer(answer: str) -> tuple[str, str] | None:
    """The worked solution without annotations, and the final answer. None where no '####' is in it."""
    worked, found, final = answer.rpartition("####")
    return (ANNOTATION.sub("", worked).strip(), final.strip()) if found else None


def solution_text(worked: str, final: str) -> str:
    """The answer as a model is to write it."""
    return f"{worked}\n#### {final}".lstrip("\n")


def is_gsm8k(row: Mapping[str, Any]) -> bool:
    answer = row.get("answer")
    return isinstance(answer, str) and isinstance(row.get("question"), str) and FINAL.search(answer) is not None


def one_form(row: Mapping[str, Any]) -> tuple[dict[str, Any], bool] | None:
    """The row in the one form, and whether annotations were taken out of it. None: it is no row of GSM8K."""
    if not is_gsm8k(row):
        return None
    parts = split_answer(row["answer"])
    assert parts is not None
    return {**row, "answer": solution_text(*parts)}, ANNOTATION.search(row["answer"]) is not None
