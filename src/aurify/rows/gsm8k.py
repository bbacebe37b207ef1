"""The one form of GSM8K's rows (Cobbe et al. 2021), whoever reads them: a stage's data, a task, a file of traces.

Its files hold two things that nobody should learn to say or compare with: calculator annotations,
`48/2 = <<48/2=24>>24`, and a last line `#### 24` in several spellings. The annotations go, and the last line is written
in one way. Other files may hold `<<` too (C++, shell), so a row is GSM8K's only if it has a question and an answer that
ends in '#### number'."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

ANNOTATION = re.compile(r"<<[-+*/().,%$=\d\s]*>>")
FINAL = re.compile(r"####\s*[-+]?\$?\d[\d,.]*\s*$")
TIDIED = "GSM8K's calculator annotations, such as <<48/2=24>>, were taken out of the answer"


def split_gsm8k_answer(answer: str) -> tuple[str, str] | None:
    """The worked solution without annotations, and the final answer. None: there is no '####'."""
    worked, found, final = answer.rpartition("####")
    return (ANNOTATION.sub("", worked).strip(), final.strip()) if found else None


def join_gsm8k_answer(worked: str, final: str) -> str:
    """The answer as a model is to write it."""
    return f"{worked}\n#### {final}".lstrip("\n")


def is_gsm8k_row(row: Mapping[str, Any]) -> bool:
    answer = row.get("answer")
    return isinstance(answer, str) and isinstance(row.get("question"), str) and FINAL.search(answer) is not None


def tidy_gsm8k_row(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    """The row in the one form, and what was changed. Rows of other files stay as they are."""
    if not is_gsm8k_row(row):
        return row, []
    parts = split_gsm8k_answer(row["answer"])
    assert parts is not None
    return {**row, "answer": join_gsm8k_answer(*parts)}, [TIDIED] if ANNOTATION.search(row["answer"]) else []
