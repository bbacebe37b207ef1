"""The text that a model sees, trained parts in double brackets, and the tokens and weights that it stands for."""

from __future__ import annotations

import re

from aurify.renderer import Renderer


def turn(role: str, text: str) -> str:
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


def said(text: str, *, last: bool = True) -> str:
    return f"<|im_start|>assistant\n[[{text}<|im_end|>]]" + ("" if last else "\n")


def stream(renderer: Renderer, text: str) -> tuple[list[int], list[float]]:
    tokens: list[int] = []
    weights: list[float] = []
    for number, piece in enumerate(re.split(r"\[\[|\]\]", text)):
        ids = renderer.tokenizer(piece, add_special_tokens=False).input_ids
        tokens += ids
        weights += [float(number % 2)] * len(ids)
    return tokens, weights
