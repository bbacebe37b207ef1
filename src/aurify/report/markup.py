"""HTML and SVG as strings. Content is markup already; `text` makes markup of anything else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def text(value: object) -> str:
    return escape(str(value))


def tag(name: str, *content: str, **attributes: object) -> str:
    """`tag("td", text("a < b"), class_="n")`. In the name of an attribute an underscore at the end is dropped, others
    become hyphens; an attribute that is None is left out."""
    known = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    inside = "".join(f' {key}="{text(value)}"' for key, value in known)
    return f"<{name}{inside}>{''.join(content)}</{name}>"


def table(head: Sequence[tuple[str, str | None]], rows: Sequence[Sequence[str]], class_: str | None = None) -> str:
    """Columns as (heading, class), and cells of markup. A narrow screen shows each cell's heading beside it."""
    top = tag("thead", tag("tr", *(tag("th", text(title), class_=kind) for title, kind in head)))
    body = ""
    for row in rows:
        cells = zip(row, head, strict=True)
        body += tag("tr", *(tag("td", cell, class_=kind, data_title=title or None) for cell, (title, kind) in cells))
    return tag("table", top if any(title for title, _ in head) else "", tag("tbody", body), class_=class_)
