"""HTML to Markdown: what a person reads on a page, and where its links lead.

Nothing on a page is run or fetched. Scripts, forms, navigation and what is hidden from readers are left out; where a
page marks its main part, only that is kept. The parser calls back tag by tag, so depth and size cost no stack.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from html import unescape
from urllib.parse import urljoin

from aurify.errors import UserError


def tags(names: str) -> frozenset[str]:
    return frozenset(names.split())


LEFT_OUT = tags(
    "script style noscript template svg math canvas iframe object embed audio video picture nav footer aside form "
    "button select option textarea input dialog"
)
EMPTY = tags("area base br col embed hr img input link meta source track wbr")  # they have no end
HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}
BLOCKS = tags(
    "p div section article main header body blockquote dl dt dd table thead tbody tr ul ol li pre figure figcaption "
    "address details summary hr caption"
) | frozenset(HEADINGS)
SITEMAP = re.compile(rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:\w+:)?(?:urlset|sitemapindex)\b", re.DOTALL)
PLACE = re.compile(rb"<loc>\s*(?:<!\[CDATA\[)?\s*([^<\]\s]{1,2048})", re.IGNORECASE)
HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
LEAST_MAIN = 200  # characters: a main part with less is a mistake of the page


@dataclass
class Page:
    title: str = ""
    text: str = ""  # Markdown
    links: list[str] = field(default_factory=list)  # absolute, in their order, each once
    robots: frozenset[str] = frozenset()  # "noindex", "nofollow"


def read_page(html: str, url: str = "") -> Page:
    try:
        from lxml import etree
    except ImportError:
        raise UserError("to read HTML, install lxml with: pip install 'aurify[memory]'") from None

    target = Walker(url)
    parser = etree.HTMLParser(target=target, encoding="utf-8")
    parser.feed(html.encode("utf-8", "replace"))
    with suppress(etree.XMLSyntaxError):  # there was no element at all
        parser.close()
    return target.page()


class Walker:
    """What the parser calls: start, data and end of each element, in the order of the page."""

    def __init__(self, url: str) -> None:
        self.base = url
        self.title: list[str] = []
        self.links: dict[str, None] = {}
        self.robots: set[str] = set()
        self.blocks: list[tuple[str, bool]] = []  # (text, whether it lies in the main part)
        self.words: list[str] = []
        self.prefix = ""
        self.open: list[tuple[str, bool]] = []  # (tag, whether it is left out with all that it holds)
        self.num_left_out = 0
        self.num_main = 0
        self.num_pre = 0
        self.lists: list[str] = []

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        tag = str(tag).lower()
        if tag == "base" and attributes.get("href"):
            self.base = joined(self.base, attributes["href"])
        elif tag == "meta" and attributes.get("name", "").lower() == "robots":
            self.robots |= {word.strip() for word in attributes.get("content", "").lower().split(",")}
        elif tag == "a" and attributes.get("href") and "nofollow" not in attributes.get("rel", "").lower():
            self.links.setdefault(joined(self.base, attributes["href"]))
        elif tag == "br":
            self.words.append("\n")
        if tag in BLOCKS:
            self.flush()
        if tag in EMPTY:
            return
        out = tag in LEFT_OUT or "hidden" in attributes or bool(HIDDEN.search(attributes.get("style", "")))
        self.open.append((tag, out))
        self.num_left_out += out
        self.num_main += tag in ("main", "article")
        self.num_pre += tag == "pre"
        if tag in ("ul", "ol"):
            self.lists.append(tag)
        if tag in HEADINGS:
            self.prefix = HEADINGS[tag]
        elif tag == "li":
            self.prefix = "  " * max(0, len(self.lists) - 1) + ("1. " if self.lists[-1:] == ["ol"] else "- ")
        elif tag in ("td", "th") and self.words:
            self.words.append(" | ")

    def end(self, tag: str) -> None:
        tag = str(tag).lower()
        if tag in EMPTY:
            return
        if tag in BLOCKS:
            self.flush()
            self.prefix = ""
        closed, out = self.open.pop()
        assert closed == tag  # the parser adds the ends that a page forgot
        self.num_left_out -= out
        self.num_main -= tag in ("main", "article")
        self.num_pre -= tag == "pre"
        if tag in ("ul", "ol"):
            self.lists.pop()

    def data(self, text: str) -> None:
        if any(tag == "title" for tag, _ in self.open[-1:]):
            self.title.append(text)
        elif not self.num_left_out:
            self.words.append(text if self.num_pre else re.sub(r"\s+", " ", text))

    def comment(self, text: str) -> None:
        """Not for readers."""

    def close(self) -> None:
        self.flush()

    def flush(self) -> None:
        text = "".join(self.words)
        self.words = []
        if not text.strip():
            return
        if self.num_pre:
            text = "```\n" + text.strip("\n") + "\n```"
        else:
            text = self.prefix + re.sub(r" *\n *", "\n", re.sub(r"[ \t]+", " ", text)).strip()
        self.prefix = ""
        self.blocks.append((text, self.num_main > 0))

    def page(self) -> Page:
        main = [text for text, is_main in self.blocks if is_main]
        chosen = main if sum(map(len, main)) >= LEAST_MAIN else [text for text, _ in self.blocks]
        title = " ".join("".join(self.title).split())
        if not title:
            title = next((text.lstrip("# ") for text in chosen if text.startswith("#")), "")
        return Page(title, laid_out(chosen), list(self.links), frozenset(self.robots))


def laid_out(blocks: list[str]) -> str:
    """A blank line between blocks, none between the items of a list."""
    text = ""
    for block in blocks:
        item = block.lstrip().startswith(("- ", "1. "))
        tight = item and text.rpartition("\n")[2].lstrip().startswith(("- ", "1. "))
        text += ("\n" if tight else "\n\n" if text else "") + block
    return text


def sitemap_urls(body: bytes) -> list[str] | None:
    """The URLs of a sitemap, or of the sitemaps that an index of them names; None for what is neither."""
    if not SITEMAP.match(body.removeprefix(b"\xef\xbb\xbf")[:4096]):
        return None
    return list(dict.fromkeys(unescape(place.decode("utf-8", "replace")) for place in PLACE.findall(body)))


def joined(base: str, link: str) -> str:
    try:
        return urljoin(base, link.strip())
    except ValueError:  # such as http://[
        return ""
