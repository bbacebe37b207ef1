"""HTML and SVG as strings. What goes between tags is markup already; `text` makes it of anything else."""

from __future__ import annotations

from html import escape


def text(value: object) -> str:
    return escape(str(value))


def tag(name: str, *content: str, **attributes: object) -> str:
    """`tag("td", text("a < b"), class_="n")`. In attributes an underscore at the end is dropped, others become hyphens,
    and None leaves the attribute out."""
    known = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    inside = "".join(f' {key}="{text(value)}"' for key, value in known)
    return f"<{name}{inside}>{''.join(content)}</{name}>"


def table(head: dict[str, str | None], rows: list[list[str]], class_: str | None = None) -> str:
    """Headings with the class of their column, and cells of markup."""
    kinds = list(head.values())
    body = (tag("tr", *(tag("td", cell, class_=kind) for cell, kind in zip(row, kinds, strict=True))) for row in rows)
    titles = tag("thead", tag("tr", *(tag("th", text(title.strip()), class_=kind) for title, kind in head.items())))
    return tag("table", titles if any(map(str.strip, head)) else "", tag("tbody", *body), class_=class_)
