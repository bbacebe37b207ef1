"""HTML to Markdown: what a person reads on a page, and where its links lead.

Nothing on a page is run or fetched. Scripts, forms, navigation and what is hidden from readers are left out; where a
page marks its main part, only that is kept. Trafilatura is better at leaving out what surrounds a news article, but
loses headings and code of documentation (docs/log.md), so this reader is our own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from html import unescape
from itertools import pairwise
from typing import Any, NamedTuple
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


def read_page(html: str, url: str = "") -> Page:
    etree = require("lxml.etree", "memory", "to read HTML")
    parser = etree.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True)
    root = None
    with suppress(etree.XMLSyntaxError):  # there is no element at all
        root = etree.fromstring(html.encode("utf-8", "replace"), parser)
    if root is None:
        return Page()
    blocks = choose_blocks(list(read_blocks(etree.iterwalk(root, events=("start", "end")))))
    title = " ".join(root.findtext(".//title", "").split())
    title = title or next((text.lstrip("# ") for text in blocks if text.startswith("#")), "")
    metas = [meta for meta in root.iter("meta") if meta.get("name", "").lower() == "robots"]
    robots = frozenset(word.strip() for meta in metas for word in meta.get("content", "").lower().split(","))
    return Page(title, join_blocks(blocks), find_links(root, url), robots)


def find_links(root: Any, url: str) -> list[str]:
    base = root.find(".//base[@href]")
    base_url = url if base is None else join_url(url, base.get("href"))
    links = [link for link in root.iter("a") if link.get("href") and "nofollow" not in link.get("rel", "").lower()]
    return list(dict.fromkeys(join_url(base_url, link.get("href")) for link in links))


def read_blocks(walk: Any) -> Iterator[Block]:
    """`walk` gives the start and end of each element in the order of the page, so depth and size cost no stack."""
    words: list[str] = []
    prefix = ""
    inside: Counter[str] = Counter()  # elements that are open
    lists: list[str] = []
    for event, element in walk:
        tag = element.tag
        if tag in BLOCK_TAGS:
            if text := format_block("".join(words), prefix, in_pre=inside["pre"] > 0):
                yield Block(text, inside["main"] + inside["article"] > 0, inside["form"] > 0)
            words, prefix = [], "" if text or event == "end" else prefix
        inside[tag] += 1 if event == "start" else -1
        if event == "end":
            if tag in LISTS:
                lists.pop()
            words.append(squeeze(element.tail, in_pre=inside["pre"] > 0))
            continue
        if tag in LISTS:
            lists.append(tag)
        if is_left_out(element):
            walk.skip_subtree()
            continue
        if tag in HEADINGS:
            prefix = HEADINGS[tag]
        elif tag == "li":
            prefix = "  " * max(0, len(lists) - 1) + ("1. " if lists[-1:] == ["ol"] else "- ")
        elif tag in ("td", "th"):
            words.append(" | ")
        elif tag == "br":
            words.append("\n")
        words.append(squeeze(element.text, in_pre=inside["pre"] > 0))


def squeeze(text: str | None, in_pre: bool) -> str:
    return text or "" if in_pre else re.sub(r"\s+", " ", text or "")


def format_block(text: str, prefix: str, in_pre: bool) -> str:
    if not text.strip():
        return ""
    if in_pre:
        return "```\n" + text.strip("\n") + "\n```"
    text = re.sub(r" *\n *", "\n", re.sub(r" +", " ", text)).strip()
    return prefix + text.removeprefix("| ")  # of the first cell in a row of a table


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
