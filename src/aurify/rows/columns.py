"""The usual names of columns in one table, for training data, tasks, traces and the knowledge base. The first name that
a row has wins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from aurify.rows.row import is_missing_value

CHAT = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat")
PROMPT = ("prompt", "question", "query", "problem", "instruction", "input")
COMPLETION = ("completion", "response", "answer", "output", "solution", "target")
SYSTEM = ("system", "system_prompt")
HISTORY = ("history",)  # earlier questions and answers
CONTEXT = ("context",)  # goes below the prompt
LABEL = ("label", "kto_tag", "desirable", "is_desirable", "is_correct")  # whether an answer is desirable
THOUGHT = ("reasoning_content", "reasoning", "thinking", "thought", "complex_cot", "cot")
TOOLS = ("tools", "functions")
RATING = ("overall_score", "score", "rating")  # of one of several completions
TRACE = ("traces", "trace", "generations", "target_lst", "target", "response", "completion", "output")
GOLD = ("answer", "ground_truth", "final_answer", "expected_answer", "gold")  # what an answer is compared with
MEDIA = (  # nothing here looks or listens
    *("images", "image", "image_path", "image_url", "videos", "video", "video_path", "audios", "audio", "audio_path"),
)
CHOICES = ("choices", "options")  # of a question, where its text may not name them
TEXT = ("text", "content", "contents", "body", "passage")
TITLE = ("title", "name", "heading", "focus")
ID = ("id", "_id", "doc_id", "docid", "uid")


def find_column(row: Mapping[str, Any], names: Iterable[str], *kinds: type) -> str | None:
    """The first of the names whose column holds something of these kinds. A column may be written with capitals."""
    capitals = {str(name).lower(): name for name in row if not str(name).islower()}
    found = (name if name in row else capitals.get(name) for name in names)
    return next(
        (name for name in found if name and isinstance(row[name], kinds) and not is_missing_value(row[name])), None
    )
