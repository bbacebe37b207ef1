"""HTML and SVG as strings. Content is markup already; `html_text` makes markup of anything else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def html_text(value: object) -> str:
    return escape(str(value))


def html_tag(name: str, *content: str, **attributes: object) -> str:
    """`html_tag("td", html_text("a < b"), class_="n")`. An underscore at the end of an attribute is dropped, others
    become hyphens; an attribute that is None is left out."""
    known = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    inside = "".join(f' {key}="{html_text(value)}"' for key, value in known)
    return f"<{name}{inside}>{''.join(content)}</{name}>"


def html_table(head: Sequence[tuple[str, str | None]], rows: Sequence[Sequence[str]], class_: str | None = None) -> str:
    """Columns as (heading, class), and cells of markup. A narrow screen shows each cell's heading beside it."""
    top = html_tag("thead", html_tag("tr", *(html_tag("th", html_text(title), class_=kind) for title, kind in head)))
    body = ""
    for row in rows:
        cells = zip(row, head, strict=True)
        body += html_tag(
            "tr", *(html_tag("td", cell, class_=kind, data_title=title or None) for cell, (title, kind) in cells)
        )
    return html_tag("table", top if any(title for title, _ in head) else "", html_tag("tbody", body), class_=class_)
