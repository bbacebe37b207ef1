"""What was found out about a chat template, told before a run."""

from __future__ import annotations

from aurify.errors import UserError
from aurify.renderer.renderer import Renderer
from aurify.renderer.template import TOOL, template_user
from aurify.types import Message

THOUGHT: Message = {"role": "assistant", "content": "<think>\nb\n</think>\n\nc"}


def list_features(renderer: Renderer) -> dict[str, str]:
    """Feature -> finding."""
    template = renderer.template
    key = f", taken as {template.thought_key!r}" if template.thought_key else ""
    own = str(renderer.tokenizer.convert_ids_to_tokens(renderer.end_token))
    ends = dict.fromkeys((own, template.call_end_text or template.openers.get("tool", "")))
    return {
        "system prompt": "in place" if template.keeps_system else "at the beginning of the next user message",
        "tools": describe_tools(renderer),
        "thoughts of earlier turns": describe_thoughts(renderer) + key,
        "replies begin": "in a thought" if renderer.opens_thought(renderer.prompt([template_user("a")])) else "plainly",
        "turns end with": " or ".join(filter(None, ends)),
    }


def describe_tools(renderer: Renderer) -> str:
    if renderer.tools_as_text:
        return "written into the text (tools_as_text)"
    if not renderer.template.writes([template_user("a")], str(TOOL["function"]["name"]), tools=[TOOL]):
        return "none; tools_as_text: true would write them into the text"
    try:
        renderer.check_turns([template_user("a")], [TOOL])
    except UserError:
        return "offered, but no results; tools_as_text: true would write both into the text"
    return "a form of its own"


def describe_thoughts(renderer: Renderer) -> str:
    try:
        kept = renderer.survey.extends([template_user("a")], THOUGHT, [template_user("d")], ())
    except UserError:
        return "no further question is taken"
    return "kept" if kept else "dropped when a question follows"
