"""HTML to Markdown: what a person reads on a page, and where its links lead.

Nothing on a page is run or fetched. Scripts, forms, navigation and what is hidden from readers are left out; where a
page marks its main part, only that is kept. Trafilatura is better at leaving out what surrounds a news article, but
loses headings and code of documentation (docs/log.md), so this reader is our own.
"""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from html import unescape
from itertools import pairwise
from typing import Any, NamedTuple
from urllib.parse import urljoin

from aurify.files import require

HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}
LEFT_OUT = (
    "title script style noscript template svg math canvas iframe object embed audio video picture nav footer aside "
    "button select option textarea input dialog"
)
BLOCKS = (
    "p div section article main header body blockquote dl dt dd table thead tbody tr ul ol li pre figure figcaption "
    "address details summary hr caption form"
)
LEFT_OUT_TAGS, BLOCK_TAGS = frozenset(LEFT_OUT.split()), frozenset([*BLOCKS.split(), *HEADINGS])
SITEMAP = re.compile(rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:\w+:)?(?:urlset|sitemapindex)\b", re.DOTALL)
LOC = re.compile(rb"<loc>\s*(?:<!\[CDATA\[)?\s*([^<\]\s]{1,2048})", re.IGNORECASE)
HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
NO_TEXT = "page without text (is it made by scripts, or hidden until they run?)"
LEAST_MAIN = 200  # characters: a main part with less is a mistake of the page
LEAST_SHARE = 0.25  # of all text: articles with less are teasers of other pages


@dataclass
class Page:
    title: str = ""
    text: str = ""  # Markdown
    links: list[str] = field(default_factory=list)  # absolute, in their order, each once
    robots: frozenset[str] = frozenset()  # "noindex", "nofollow"


class Block(NamedTuple):
    text: str
    in_main: bool
    in_form: bool


def read_page(html: str, url: str = "") -> Page:
    etree = require("lxml.etree", "memory", "to read HTML")
    parser = etree.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True)
    root = None
    with suppress(etree.XMLSyntaxError):  # there is no element at all
        root = etree.fromstring(html.encode("utf-8", "replace"), parser)
    if root is None:
        return Page()
    writer = Writer()
    walk = etree.iterwalk(root, events=("start", "end"))
    for event, element in walk:
        if event == "end":
            writer.end(element)
        elif not writer.start(element):
            walk.skip_subtree()
    blocks = choose_blocks(writer.blocks)
    title = " ".join(root.findtext(".//title", "").split())
    title = title or next((text.lstrip("# ") for text in blocks if text.startswith("#")), "")
    return Page(title, join_blocks(blocks), find_links(root, url), find_robots(root))


def find_links(root: Any, url: str) -> list[str]:
    base = root.find(".//base[@href]")
    base_url = url if base is None else join_url(url, base.get("href"))
    links = [link for link in root.iter("a") if link.get("href") and "nofollow" not in link.get("rel", "").lower()]
    return list(dict.fromkeys(join_url(base_url, link.get("href")) for link in links))


def find_robots(root: Any) -> frozenset[str]:
    metas = [meta for meta in root.iter("meta") if meta.get("name", "").lower() == "robots"]
    return frozenset(word.strip() for meta in metas for word in meta.get("content", "").lower().split(","))


class Writer:
    """Called at the start and end of each element, in the order of the page; depth and size cost no stack."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.words: list[str] = []
        self.prefix = ""
        self.inside: Counter[str] = Counter()  # elements that are open
        self.lists: list[str] = []

    def start(self, element: Any) -> bool:
        """False: what the element holds is to be skipped."""
        tag = element.tag
        if tag in BLOCK_TAGS:
            self.flush()
        self.inside[tag] += 1
        if tag in ("ul", "ol"):
            self.lists.append(tag)
        if is_left_out(element):
            return False
        if tag in HEADINGS:
            self.prefix = HEADINGS[tag]
        elif tag == "li":
            self.prefix = "  " * max(0, len(self.lists) - 1) + ("1. " if self.lists[-1:] == ["ol"] else "- ")
        elif tag in ("td", "th") and self.words:
            self.words.append(" | ")
        elif tag == "br":
            self.words.append("\n")
        self.add(element.text)
        return True

    def end(self, element: Any) -> None:
        tag = element.tag
        if tag in BLOCK_TAGS:
            self.flush()
            self.prefix = ""
        self.inside[tag] -= 1
        if tag in ("ul", "ol"):
            self.lists.pop()
        self.add(element.tail)

    def add(self, text: str | None) -> None:
        if text:
            self.words.append(text if self.inside["pre"] else re.sub(r"\s+", " ", text))

    def flush(self) -> None:
        text = "".join(self.words)
        self.words = []
        if not text.strip():
            return
        if self.inside["pre"]:
            text = "```\n" + text.strip("\n") + "\n```"
        else:
            text = self.prefix + re.sub(r" *\n *", "\n", re.sub(r"[ \t]+", " ", text)).strip()
        self.prefix = ""
        in_main = self.inside["main"] + self.inside["article"] > 0
        self.blocks.append(Block(text, in_main, in_form=self.inside["form"] > 0))


def is_left_out(element: Any) -> bool:
    if element.tag in ("html", "body"):  # a hidden page waits for a script to show it
        return False
    return element.tag in LEFT_OUT_TAGS or "hidden" in element.attrib or bool(HIDDEN.search(element.get("style", "")))


def choose_blocks(blocks: list[Block]) -> list[str]:
    """Those of the main part, where there is one. A form is left out unless it holds most of the text: some sites wrap
    whole pages into one."""
    main = [block for block in blocks if block.in_main]
    if num_chars(main) >= max(LEAST_MAIN, LEAST_SHARE * num_chars(blocks)):
        blocks = main
    outside = [block for block in blocks if not block.in_form]
    return [block.text for block in (blocks if num_chars(blocks) > 2 * num_chars(outside) else outside)]


def num_chars(blocks: list[Block]) -> int:
    return sum(len(block.text) for block in blocks)


def join_blocks(blocks: list[str]) -> str:
    """A blank line between blocks, none between the items of a list."""
    parts = blocks[:1]
    for previous, block in pairwise(blocks):
        tight = is_item(previous.rpartition("\n")[2]) and is_item(block)
        parts += ["\n" if tight else "\n\n", block]
    return "".join(parts)


def is_item(line: str) -> bool:
    return line.lstrip().startswith(("- ", "1. "))


def parse_sitemap(body: bytes) -> list[str] | None:
    """The URLs of a sitemap, or of the sitemaps that an index of them names; None for what is neither."""
    if not SITEMAP.match(body.removeprefix(b"\xef\xbb\xbf")[:4096]):
        return None
    return list(dict.fromkeys(unescape(url.decode("utf-8", "replace")) for url in LOC.findall(body)))


def join_url(base: str, link: str) -> str:
    try:
        return urljoin(base, link.strip())
    except ValueError:  # such as http://[
        return ""
