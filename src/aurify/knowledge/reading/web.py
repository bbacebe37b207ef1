"""Documents from the web: single URLs, a list of them, a sitemap, or a site within bounds.

A site is what can be reached from a page over at most `depth` links without leaving its host and the folder of its
path. What pages say is data: nothing on them is run, and nothing they ask for is done, except staying out.
"""

from __future__ import annotations

import io
import re
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urljoin, urlsplit

from aurify.knowledge.reading.encoding import decode_html
from aurify.knowledge.reading.fetch import Fetcher, WebAnswer, WebOptions, normalize_url
from aurify.knowledge.reading.files import find_document_kind, parse_documents
from aurify.knowledge.reading.refusals import Refusals, Refused, clean_document_text
from aurify.knowledge.reading.rows import ReadOptions
from aurify.knowledge.reading.webpage import NO_TEXT, parse_sitemap, read_web_html
from aurify.knowledge.types import Document

URL = re.compile(r"https?://", re.IGNORECASE)
HTML = ("text/html", "application/xhtml+xml")


@dataclass(frozen=True, slots=True)
class Link:
    url: str
    depth: int = 0
    site: str = ""  # what its URL must begin with; "" for what a person asked for


def is_url(text: str) -> bool:
    return URL.match(text) is not None


def read_urls(
    urls: Sequence[str],
    web: WebOptions,
    options: ReadOptions,
    refusals: Refusals,
    progress: Callable[[str, int, int], None] = lambda url, num_read, num_known: None,
) -> Iterator[Document]:
    """Breadth first, each page once. A document is named by the URL that it was found at after all redirects."""
    queue = deque(Link(url) for url in urls)
    known = set(urls)  # URLs that are or were in the queue
    arrived: set[str] = set()
    num_pages = 0
    with Fetcher(web) as fetcher:
        while queue:
            link = queue.popleft()
            if num_pages >= web.max_pages:
                refusals.add(link.url, f"page above the limit of {web.max_pages} (--max-pages)", transient=True)
                continue
            progress(link.url, num_pages, num_pages + 1 + len(queue))
            num_pages += 1
            try:
                answer = fetcher.get(link.url)
                if not answer.url.startswith(link.site):
                    raise Refused("redirect out of the site")
                if answer.url in arrived:
                    continue
                arrived.add(answer.url)
                links = yield from read_web_page(answer, link, web.depth, options, refusals)
            except Refused as refused:
                refusals.add(link.url, refused.reason, refused.transient)
                continue
            for found in links:
                if found.url not in known:
                    known.add(found.url)
                    queue.append(found)


def read_web_page(
    answer: WebAnswer, link: Link, max_depth: int, options: ReadOptions, refusals: Refusals
) -> Generator[Document, None, list[Link]]:
    """The documents of a page, and the links to follow."""
    if (listed := parse_sitemap(answer.body)) is not None:
        urls = list_site_urls(listed, urljoin(answer.url, "/"))  # a sitemap speaks for its own host alone
        for _ in range(len(listed) - len(urls)):
            refusals.add(answer.url, "URL of a sitemap on another host")
        return [Link(url, link.depth, link.site) for url in urls]
    name = PurePosixPath(unquote(urlsplit(answer.url).path)).name or urlsplit(answer.url).netloc
    kind = find_document_kind(answer.body, PurePosixPath(name))
    if kind in ("pdf", "gzip") or (kind != "html" and answer.type not in HTML):
        file = io.BufferedReader(io.BytesIO(answer.body))
        yield from parse_documents(file, answer.url, options, refusals, charset=answer.charset)
        return []
    page = read_web_html(decode_html(answer.body, answer.charset), answer.url)
    if page.robots & {"noindex", "none"}:
        raise Refused("page that asks not to be indexed")
    if page.text:
        yield Document(answer.url, clean_document_text(page.text), clean_document_text(page.title) or name, "markdown")
    else:
        refusals.add(answer.url, NO_TEXT)
    if link.depth >= max_depth or page.robots & {"nofollow", "none"}:
        return []
    site = link.site or answer.url.partition("?")[0].rpartition("/")[0] + "/"  # the folder that the page lies in
    return [Link(url, link.depth + 1, site) for url in list_site_urls(page.links, site)]


def list_site_urls(links: Sequence[str], site: str) -> list[str]:
    urls = []
    for link in links:
        with suppress(Refused):  # mailto:, javascript: and the like: nowhere to go
            urls.append(normalize_url(link))
    return [url for url in urls if url.startswith(site)]
