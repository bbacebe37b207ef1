"""Who gives what reward for 697 answers to mathematical questions: ours, math-verify, and the rules that lm-eval and
verl publish, written here as small functions.

    python benchmarks/answers.py --out docs/data/answers.json

The strings are those of our tests (tests/answer_cases.py), so ours is right on all of them by construction. What the
table shows is where the others differ, and in which direction: a right answer that earns nothing, or a wrong one that
earns a reward."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import re
import runpy
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aurify.rewards.math import math
from aurify.types import Task, Trajectory

CASES = Path(__file__).parents[1] / "tests" / "answer_cases.py"
Judge = Callable[[str, str], bool]  # (gold, reply) -> right


def ours() -> Judge:
    reward = math()

    def judge(gold: str, reply: str) -> bool:
        messages: Any = [{"role": "user", "content": "?"}, {"role": "assistant", "content": reply}]

        async def earn() -> Any:
            return await reward(Task("t", [], gold), Trajectory([], messages, 1))

        return bool(asyncio.run(earn()) == 1.0)

    return judge


def math_verify(gold: str, reply: str) -> bool:
    """As its README calls it."""
    from math_verify import parse, verify

    return bool(verify(parse(f"${gold}$"), parse(reply)))


# ------------------------------------------------------------------ lm-eval (EleutherAI, lm-evaluation-harness)


def lm_eval_gsm8k(gold: str, reply: str) -> bool:
    """tasks/gsm8k/gsm8k.yaml: the filter flexible-extract, and what exact_match ignores there."""
    found = re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", reply)
    said = next(filter(None, found[-1])) if found else "[invalid]"
    for ignored in (",", r"\$", r"(?s).*#### ", r"\.$"):
        said, gold = re.sub(ignored, "", said), re.sub(ignored, "", gold)
    return said.strip().lower() == gold.strip().lower()


def lm_eval_math(gold: str, reply: str) -> bool:
    """tasks/hendrycks_math/utils.py: what stands between the first and the last dollar sign."""
    signs = [index for index, character in enumerate(reply) if character == "$"]
    return same_string(reply if len(signs) <= 1 else reply[signs[0] + 1 : signs[-1]], gold)


# ------------------------------------------------------------------ verl (volcengine), utils/reward_score


def verl_gsm8k(gold: str, reply: str) -> bool:
    """gsm8k.py, method strict."""
    found = re.findall(r"#### (\-?[0-9\.\,]+)", reply[-300:])
    return bool(found) and found[-1].replace(",", "").replace("$", "") == gold


def verl_math(gold: str, reply: str) -> bool:
    """math.py: the last box, compared as in Hendrycks's MATH."""
    boxed = last_box(reply)
    return boxed is not None and same_string(boxed, gold)


def last_box(text: str) -> str | None:
    if "\\boxed " in text:
        return text.split("\\boxed ")[-1].split("$")[0]
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    depth = 0
    for index in range(max(start, 0), len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if start >= 0 and depth == 0 and text[index] == "}":
            return text[text.index("{", start) + 1 : index]
    return None


def same_string(one: str, other: str) -> bool:
    try:
        return strip_string(one) == strip_string(other)
    except (AssertionError, ValueError, IndexError):
        return one == other


def strip_string(text: str) -> str:
    """Of Hendrycks's MATH (math_equivalence.py), which lm-eval and verl both carry."""
    text = text.replace("\n", "").replace("\\!", "").replace("\\\\", "\\")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac").replace("\\left", "").replace("\\right", "")
    text = text.replace("^{\\circ}", "").replace("^\\circ", "").replace("\\$", "")
    if "\\text{ " in text:
        parts = text.split("\\text{ ")
        assert len(parts) == 2
        text = parts[0]
    text = text.replace("\\%", "").replace("%", "").replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    text = "0" + text if text[0] == "." else text
    if len(text.split("=")) == 2 and len(text.split("=")[0]) <= 2:
        text = text.split("=")[1]
    text = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text).replace(" ", "")
    text = re.sub(r"\\frac([^{])(\{[^}]*\}|.)", lambda m: rf"\frac{{{m[1]}}}{{{m[2].strip('{}')}}}", text)
    text = "\\frac{1}{2}" if text == "0.5" else text
    return re.sub(r"^(-?\d+)/(-?\d+)$", r"\\frac{\1}{\2}", text)


def verl_dapo(gold: str, reply: str) -> bool:
    """math_dapo.py: what follows the last "Answer:", normalised as for Minerva."""
    found = re.findall(r"(?i)Answer\s*:\s*([^\n]+)", reply[-300:])
    return normalise_minerva(found[-1] if found else "[INVALID]") == normalise_minerva(gold)


MINERVA = (
    ("an ", ""), ("a ", ""), (".$", "$"), ("\\$", ""), (r"\ ", ""), (" ", ""), ("mbox", "text"),
    (",\\text{and}", ","), ("\\text{and}", ","), ("\\text{m}", "\\text{}"),
)  # fmt: skip
REMOVED = (
    "square", "ways", "integers", "dollars", "mph", "inches", "hours", "km", "units", "\\ldots", "sue", "points",
    "feet", "minutes", "digits", "cents", "degrees", "cm", "gm", "pounds", "meters", "meals", "edges", "students",
    "childrentickets", "multiples", "\\text{s}", "\\text{.}", "\\text{\ns}", "\\text{}^2", "\\text{}^3", "\\text{\n}",
    "\\text{}", r"\mathrm{th}", r"^\circ", r"^{\circ}", r"\;", r",\!", "{,}", '"', "\\dots",
)  # fmt: skip


def normalise_minerva(text: str) -> str:
    text = text.split("=")[-1]
    for before, after in MINERVA:
        text = text.replace(before, after)
    for removed in REMOVED:
        text = text.replace(removed, "")
    text = re.sub(r"(.*?)(\$)(.*?)(\$)(.*)", r"$\3$", text)
    for style in ("text", "textbf", "overline", "boxed"):
        text = re.sub(rf"(\\{style}\{{)(.*{'?' if style != 'boxed' else ''})(\}})", r"\2", text)
    text = re.sub(r"(frac)([^{])(.)", r"frac{\2}{\3}", text)
    text = re.sub(r"(sqrt)([^{])", r"sqrt{\2}", text).replace("$", "")
    return text.replace(",", "") if text.replace(",", "").isdigit() else text


# ------------------------------------------------------------------ the table

RULES: dict[str, Callable[[], Judge]] = {
    "ours": ours,
    "math-verify": lambda: math_verify,
    "lm-eval gsm8k": lambda: lm_eval_gsm8k,
    "lm-eval hendrycks_math": lambda: lm_eval_math,
    "verl gsm8k": lambda: verl_gsm8k,
    "verl math": lambda: verl_math,
    "verl math_dapo": lambda: verl_dapo,
}


def measure(cases: dict[str, list[tuple[str, str, int]]]) -> dict[str, Any]:
    judges = {name: build() for name, build in RULES.items()}
    answers = [
        {
            "kind": kind,
            "gold": gold,
            "reply": reply,
            "right": bool(expected),
            "rewarded_by": [name for name, judge in judges.items() if judge(gold, reply)],
        }
        for kind, entries in cases.items()
        for gold, reply, expected in entries
    ]
    kinds = {kind: [answer for answer in answers if answer["kind"] == kind] for kind in cases}
    return {
        "math_verify": version("math-verify"),
        "totals": {name: count(answers, name) for name in judges},
        "kinds": {kind: {name: count(those, name) for name in judges} for kind, those in kinds.items()},
        "answers": answers,
    }


def count(answers: list[dict[str, Any]], name: str) -> dict[str, int]:
    right = [name in answer["rewarded_by"] for answer in answers if answer["right"]]
    wrong = [name in answer["rewarded_by"] for answer in answers if not answer["right"]]
    return {"right": len(right), "found": sum(right), "wrong": len(wrong), "credited": sum(wrong)}


def write_table(found: dict[str, Any]) -> str:
    lines = ["| kind | " + " | ".join(RULES) + " |", "|---|" + "---|" * len(RULES)]
    for kind, judged in [*found["kinds"].items(), ("**all**", found["totals"])]:
        cells = [f"{c['found']}/{c['right']}, {c['credited']}/{c['wrong']}" for c in judged.values()]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write every answer and reward to this JSON file")
    args = parser.parse_args()
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    found = measure(runpy.run_path(str(CASES))["ANSWERS"])
    print("right answers that earn the reward / all of them, wrong answers that earn it / all of them\n")
    print(write_table(found))
    if args.out:
        args.out.write_text(write_json(found))


def write_json(found: dict[str, Any]) -> str:
    """One line for each answer."""
    head = {"command": "python benchmarks/answers.py --out docs/data/answers.json", **found, "answers": []}
    rows = ",\n".join(json.dumps(answer, ensure_ascii=False) for answer in found["answers"])
    return json.dumps(head)[: -len("]}")] + f"\n{rows}\n]}}\n"


if __name__ == "__main__":
    main()
