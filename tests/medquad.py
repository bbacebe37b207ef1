"""Stands in for what `aurify data medquad` makes: a few rows and an empty knowledge base."""

from __future__ import annotations

from pathlib import Path

from aurify.knowledge.knowledge_base import KnowledgeBase
from aurify.tracking.jsonl import write_log


def stand_in_for_medquad(folder: Path) -> None:
    KnowledgeBase.create(folder / "kb")
    for name, texts in (("train", ("a", "b")), ("heldout", ("c",))):
        write_log(folder / f"{name}.jsonl", ({"prompt": t, "answer": t, "documents": [t]} for t in texts))
    rows = [
        {"messages": [{"role": "user", "content": t}, {"role": "assistant", "content": f"<answer> {t} </answer>"}]}
        for t in ("d", "e", "f")
    ]
    write_log(folder / "demonstrations.jsonl", rows)
