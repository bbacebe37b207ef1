"""Thoughts in a reply, and the answer after them.

Reasoning models think between tags before they answer. A thought is no answer: no number, call, choice or program in it
counts."""

from __future__ import annotations

import re

CLOSINGS = {  # the tag that opens a thought -> the one that closes it
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<scratchpad>": "</scratchpad>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",  # Magistral
    "◁think▷": "◁/think▷",  # Kimi
    "<|begin_of_thought|>": "<|end_of_thought|>",  # Sky-T1, OpenThinker
    "<|START_THINKING|>": "<|END_THINKING|>",  # Command A
    "<|inner_prefix|>": "<|inner_suffix|>",  # Apertus
    "<|channel>thought": "<channel|>",  # Gemma 4
}
# gpt-oss: what closes its thoughts ends every turn of other models
ANALYSIS, END, FINAL = "<|channel|>analysis<|message|>", "<|end|>", "<|channel|>final<|message|>"
PAIRS = {opening.lower(): closing.lower() for opening, closing in CLOSINGS.items()} | {ANALYSIS: END}
ALONE = {*PAIRS.values(), FINAL} - {END}  # where the prompt has opened a thought, its closing tag stands alone
END_OF_TURN = re.compile(
    r"(?:\s*(?:<\|(?:im_end|eot_id|eom_id|endoftext|end_of_text)\|>|</s>|<eos>|<end_of_turn>|<turn\|>))+\s*\Z"
)
TAGS = re.compile("|".join(map(re.escape, (*PAIRS, *PAIRS.values(), FINAL))), re.IGNORECASE)


def final_answer(text: str, opened: bool = False) -> str | None:
    """What stands after the last thought, without tokens that end a turn; the whole text where there is none.
    None where a thought never ends.

    opened: the prompt has opened a thought, so the text begins inside one."""
    begin, awaited = 0, ALONE if opened else set()
    for tag in TAGS.finditer(text):
        name = tag[0].lower()
        if name in PAIRS:
            awaited = awaited or {PAIRS[name], FINAL}
        elif name in (awaited or ALONE):
            begin, awaited = tag.end(), set()
    return None if awaited else END_OF_TURN.sub("", text[begin:])
