"""Runs and their pages, for the tests of the report."""

from __future__ import annotations

from html.parser import HTMLParser

from aurify.report.report import write_report
from aurify.tracking.run_folder import RunFolder

EVIL = "</pre></script><script>alert('x')</script><img src=x onerror=alert(1)>\"'&amp; \u2028 \ud83d"
VOID = {"meta", "br", "img", "link", "input", "hr"}
RECIPE = {
    "name": "quick & <b>start</b>",
    "model": {"name": "smollm2-135m-instruct"},
    "task": {"name": "largest_number"},
    "stages": {
        "sft": {"method": "sft", "steps": 30},
        "pairs": {"method": "dpo"},
        "grpo": {"method": "grpo", "steps": 30},
    },
}


class Page(HTMLParser):
    """Fails on tags that do not nest; gathers what a browser would show, run or fetch."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def attributes(self, name: str) -> list[str]:
        return [value or "" for _, attributes in self.tags for key, value in attributes.items() if key == name]

    def titles(self) -> list[str]:
        return [attributes.get("aria-label") or "" for tag, attributes in self.tags if tag == "svg"]


def sample(step: int, reward: float | None, text: str = "41") -> dict:
    messages = [{"role": "user", "content": "which?"}, {"role": "assistant", "content": text}]
    return {
        "step": step, "task": "t", "answer": "41", "messages": messages, "reward": reward, "rewards": {"match": reward},
        "tokens": 3, "truncated": False,
    }  # fmt: skip


def page_of(run: RunFolder) -> Page:
    return Page(write_report(run.path).read_text(encoding="utf-8"))
