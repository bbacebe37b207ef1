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
from typing import NamedTuple
from urllib.parse import urljoin

from aurify.files import require

HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}
LISTS = ("ul", "ol")
LEFT_OUT = (
    "title script style noscript template svg math canvas iframe object embed audio video picture nav footer aside "
    "button select option textarea input dialog"
)
BLOCKS = (
    "html body p div section article main header blockquote dl dt dd table thead tbody tr ul ol li pre figure "
    "figcaption address details summary hr caption form"
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


def read_web_html(html: str, url: str = "") -> Page:
    etree = require("lxml.etree", "memory", "to read HTML")
    reader = PageReader(url)
    parser = etree.HTMLParser(target=reader, encoding="utf-8")
    parser.feed(html.encode("utf-8", "replace"))
    with suppress(etree.XMLSyntaxError):  # there is no element at all
        parser.close()
    blocks = choose_page_blocks(reader.blocks)
    title = " ".join(reader.title.split())
    title = title or next((text.lstrip("# ") for text in blocks if text.startswith("#")), "")
    return Page(title, join_page_blocks(blocks), list(reader.links), frozenset(reader.robots))


class PageReader:
    """The parser calls it at each start, text and end in the order of the page, so that depth and size cost neither
    stack nor memory for a tree."""

    def __init__(self, url: str) -> None:
        self.base = url
        self.title = ""
        self.links: dict[str, None] = {}
        self.robots: set[str] = set()
        self.blocks: list[Block] = []
        self.words: list[str] = []
        self.prefix = ""
        self.open: list[bool] = []  # for each open element, whether it is left out
        self.inside: Counter[str] = Counter()  # open elements by tag
        self.num_left_out = 0
        self.lists: list[str] = []

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if tag == "base" and attributes.get("href"):
            self.base = join_page_url(self.base, attributes["href"])
        elif tag == "meta" and attributes.get("name", "").lower() == "robots":
            self.robots |= {word.strip() for word in attributes.get("content", "").lower().split(",")}
        elif tag == "a" and attributes.get("href") and "nofollow" not in attributes.get("rel", "").lower():
            self.links.setdefault(join_page_url(self.base, attributes["href"]))
        if tag in BLOCK_TAGS:
            self.end_block()
        left_out = is_skipped_page_tag(tag, attributes)
        self.open.append(left_out)
        self.num_left_out += left_out
        self.inside[tag] += 1
        if tag in LISTS:
            self.lists.append(tag)
        elif tag in HEADINGS:
            self.prefix = HEADINGS[tag]
        elif tag == "li":
            self.prefix = "  " * max(0, len(self.lists) - 1) + ("1. " if self.lists[-1:] == ["ol"] else "- ")
        elif tag in ("td", "th"):
            self.words.append(" | ")
        elif tag == "br":
            self.words.append("\n")

    def data(self, text: str) -> None:
        if self.inside["title"] and not self.inside["svg"]:
            self.title += text
        elif not self.num_left_out:
            self.words.append(text if self.inside["pre"] else re.sub(r"\s+", " ", text))

    def end(self, tag: str) -> None:
        if tag in BLOCK_TAGS:
            self.end_block()
            self.prefix = ""
        self.num_left_out -= self.open.pop()
        self.inside[tag] -= 1
        if tag in LISTS:
            self.lists.pop()

    def close(self) -> None:
        self.end_block()

    def end_block(self) -> None:
        text, self.words = "".join(self.words), []
        if not text.strip("| \r\n\t"):  # bars: of a row of empty cells
            return
        if self.inside["pre"]:
            text = "```\n" + text.strip("\n") + "\n```"
        else:
            text = re.sub(r" *\n *", "\n", re.sub(r" +", " ", text)).strip()
            text = self.prefix + text.removeprefix("| ")  # of the first cell of a row
        self.prefix = ""
        in_main = self.inside["main"] + self.inside["article"] > 0
        self.blocks.append(Block(text, in_main, in_form=self.inside["form"] > 0))


def is_skipped_page_tag(tag: str, attributes: dict[str, str]) -> bool:
    if tag in ("html", "body"):  # a hidden page waits for a script to show it
        return False
    return tag in LEFT_OUT_TAGS or "hidden" in attributes or bool(HIDDEN.search(attributes.get("style", "")))


def choose_page_blocks(blocks: list[Block]) -> list[str]:
    """The main part, where the page marks one. A form is left out unless it holds most of the text: some sites wrap
    whole pages into a form."""
    main = [block for block in blocks if block.in_main]
    if num_page_chars(main) >= max(LEAST_MAIN, LEAST_SHARE * num_page_chars(blocks)):
        blocks = main
    outside = [block for block in blocks if not block.in_form]
    return [block.text for block in (blocks if num_page_chars(blocks) > 2 * num_page_chars(outside) else outside)]


def num_page_chars(blocks: list[Block]) -> int:
    return sum(len(block.text) for block in blocks)


def join_page_blocks(blocks: list[str]) -> str:
    """A blank line between blocks, none between the items of a list."""
    parts = blocks[:1]
    for previous, block in pairwise(blocks):
        tight = is_page_item(previous.rpartition("\n")[2]) and is_page_item(block)
        parts += ["\n" if tight else "\n\n", block]
    return "".join(parts)


def is_page_item(line: str) -> bool:
    return line.lstrip().startswith(("- ", "1. "))


def parse_sitemap(body: bytes) -> list[str] | None:
    """The URLs of a sitemap, or of the sitemaps that an index of them names; None for what is neither."""
    if not SITEMAP.match(body.removeprefix(b"\xef\xbb\xbf")[:4096]):
        return None
    return list(dict.fromkeys(unescape(url.decode("utf-8", "replace")) for url in LOC.findall(body)))


def join_page_url(base: str, link: str) -> str:
    try:
        return urljoin(base, link.strip())
    except ValueError:  # such as http://[
        return ""
