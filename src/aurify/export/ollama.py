"""A Modelfile for Ollama. Its template is written in another language than a chat template; one that puts something
before and after each message can be said in both, and is checked to write the same. For others the line is left out:
then Ollama looks for the nearest template that it knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aurify.errors import UserError
from aurify.renderer import Renderer
from aurify.renderer.template import FIRST, SECOND, Template
from aurify.types import Message

THIRD = FIRST.replace("0", "2")
NO_TEMPLATE = (
    "# This model's chat template cannot be said in Ollama's language; Ollama takes the nearest that it knows."
)


@dataclass(frozen=True)
class Frames:
    """What stands around messages."""

    around: Mapping[str, tuple[str, str]]  # role -> before and after its content
    opening: str  # of a reply
    beginning: str  # before all
    system: str  # that the template adds where there is none

    def write(self, messages: Sequence[Message]) -> str:
        if self.system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        framed = (message["content"].join(self.around[message["role"]]) for message in messages)
        return self.beginning + "".join(framed) + self.opening

    def template(self, beginning: str) -> str:
        """In Ollama's language. beginning: what the server does not add itself."""
        role = '{{{{ {}if eq .Role "{}" }}}}{}{{{{ .Content }}}}{}'
        parts = [
            role.format("else " if number else "", name, *texts)
            for number, (name, texts) in enumerate(self.around.items())
        ]
        return beginning + "{{ range .Messages }}" + "".join(parts) + "{{ end }}{{ end }}" + self.opening


def write_modelfile(tokenizer: Any, file: str, system: str = "", parameters: Mapping[str, str] | None = None) -> str:
    """file: the GGUF beside it. system: instead of the one that the chat template adds."""
    template = Renderer(tokenizer).template
    frames = find_ollama_frames(template)
    lines = [f"FROM ./{file}"]
    if frames is None:
        lines.append(NO_TEMPLATE)
    else:
        bos = str(tokenizer.bos_token or "")
        adds_bos = bool(bos) and tokenizer.encode("a")[0] == tokenizer.bos_token_id  # llama.cpp then does as well
        beginning = frames.beginning.removeprefix(bos) if adds_bos else frames.beginning
        lines.append(f"TEMPLATE {quote_for_modelfile(frames.template(beginning))}")
        system = system or frames.system
    if system:
        lines.append(f"SYSTEM {quote_for_modelfile(system)}")
    lines += [f"PARAMETER stop {quote_for_modelfile(text)}" for text in template.ends]
    lines += [f"PARAMETER {name} {value}" for name, value in (parameters or {}).items()]
    return "\n".join(lines) + "\n"


def quote_for_modelfile(text: str) -> str:
    if '"""' in text:
        raise UserError(f'a Modelfile cannot say """, which stands in {text!r}')
    return f'"""{text}"""'


def find_ollama_frames(template: Template) -> Frames | None:
    """None where the template does more than to frame messages (and to cut spaces around them)."""
    try:
        frames = read_ollama_frames(template)
    except (UserError, ValueError):  # it does not take these messages, or the marks do not stand where they should
        return None
    said = (*frames.around["user"], *frames.around["assistant"], *frames.around["system"], frames.opening)
    if any("{{" in text or "}}" in text for text in (*said, frames.beginning, frames.system)):
        return None
    turns: list[Message] = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "Thanks."},
    ]
    system: Message = {"role": "system", "content": "Be brief."}
    conversations = [[*before, *turns[:num]] for before in ([], [system]) for num in (1, 3, 5)]
    same = all(frames.write(messages) == template.text(messages, generate=True) for messages in conversations)
    return frames if same else None


def read_ollama_frames(template: Template) -> Frames:
    if not template.keeps_system:
        raise ValueError("a system prompt would be lost")
    first: Message = {"role": "user", "content": FIRST}
    reply: Message = {"role": "assistant", "content": SECOND}
    head, after_user = halve(template.text([first]), FIRST)
    opening = template.text([first], generate=True).removeprefix(head + FIRST + after_user)
    after_reply = halve(template.text([first, reply]), SECOND)[1]
    between, rest = halve(halve(template.text([first, reply, {"role": "user", "content": THIRD}]), FIRST)[1], SECOND)
    before_user = remove(halve(rest, THIRD)[0], after_reply, "")
    start, middle = halve(halve(template.text([{"role": "system", "content": SECOND}, first]), FIRST)[0], SECOND)
    bos = str(template.tokenizer.bos_token or "")
    if before_user.startswith(bos) or not start.startswith(bos):  # in ChatML it may be what begins each message
        bos = ""
    before_system, after_system = start.removeprefix(bos), remove(middle, "", before_user)
    added = remove(head, bos, before_user)  # a system prompt of the template's own
    return Frames(
        {
            "system": (before_system, after_system),
            "user": (before_user, after_user),
            "assistant": (remove(between, after_user, ""), after_reply),
        },
        opening,
        beginning=bos,
        system=remove(added, before_system, after_system) if added else "",
    )


def halve(text: str, mark: str) -> tuple[str, str]:
    before, found, after = text.partition(mark)
    if not found:
        raise ValueError(f"{mark} is not in the text")
    return before, after


def remove(text: str, before: str, after: str) -> str:
    if len(text) < len(before) + len(after) or not text.startswith(before) or not text.endswith(after):
        raise ValueError(f"{text!r} does not stand between {before!r} and {after!r}")
    return text[len(before) : len(text) - len(after)]
