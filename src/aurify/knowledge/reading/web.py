"""Documents from the web: single URLs, a list of them, a sitemap, or a site within bounds.

A site is what can be reached from a page over at most `depth` links without leaving its host and the folder of its
path. What pages say is data: nothing on them is run, and nothing they ask for is done, except staying out.
"""

from __future__ import annotations

import io
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import unquote, urljoin, urlsplit

from aurify.bounds import Checked, NonNegativeInt, PositiveInt
from aurify.knowledge.reading.fetch import Answer, Fetcher, FetchOptions, normal
from aurify.knowledge.reading.files import HEAD, ReadOptions, is_html, read_stream, to_page
from aurify.knowledge.reading.refusals import Refusals, Refused, clean
from aurify.knowledge.reading.webpage import sitemap_urls
from aurify.knowledge.types import Document

Progress = Callable[[str, int, int], None]  # URL, pages read, pages known
URL = re.compile(r"https?://", re.IGNORECASE)
HTML = ("text/html", "application/xhtml+xml")
OUTSIDE = "redirect out of the site"
ELSEWHERE = "URL of a sitemap on another host"


@dataclass(frozen=True)
class WebOptions(Checked):
    fetch: FetchOptions = field(default_factory=FetchOptions)
    depth: NonNegativeInt = 0  # links followed from each URL; 0: the page alone
    max_pages: PositiveInt = 1000


@dataclass(frozen=True, slots=True)
class Link:
    url: str
    depth: int = 0
    site: str = ""  # what its URL must begin with; "" for what a person asked for


def is_url(place: str) -> bool:
    return URL.match(place) is not None


def read_urls(
    urls: Sequence[str],
    options: WebOptions,
    read: ReadOptions,
    refusals: Refusals,
    *,
    source: str = "",
    progress: Progress | None = None,
) -> Iterator[Document]:
    """Breadth first, each page once, named by the URL that it was found at in the end."""
    queue = deque(Link(url) for url in urls)
    known = set(urls)  # URLs that are or were in the queue
    arrived: set[str] = set()
    num_pages = 0
    with Fetcher(options.fetch) as fetcher:
        while queue:
            link = queue.popleft()
            if num_pages >= options.max_pages:
                refusals.add(link.url, f"page above the limit of {options.max_pages} (--max-pages)", transient=True)
                continue
            if progress is not None:
                progress(link.url, num_pages, num_pages + 1 + len(queue))
            num_pages += 1
            try:
                answer = fetcher.get(link.url)
                if not answer.url.startswith(link.site):
                    raise Refused(OUTSIDE)
                if answer.url in arrived:
                    continue
                arrived.add(answer.url)
                if (listed := sitemap_urls(answer.body)) is not None:
                    host = urljoin(answer.url, "/")  # a sitemap speaks for its own host alone
                    urls = list(within(listed, host))
                    for _ in range(len(listed) - len(urls)):
                        refusals.add(answer.url, ELSEWHERE)
                    queue += [Link(url, link.depth, link.site) for url in urls if url not in known]
                    known.update(urls)
                    continue
                documents, links = read_answer(answer, read, refusals, source)
            except Refused as refused:
                refusals.add(link.url, refused.reason, refused.transient)
                continue
            yield from documents
            if link.depth < options.depth:
                site = link.site or site_of(answer.url)
                for url in within(links, site):
                    if url not in known:
                        known.add(url)
                        queue.append(Link(url, link.depth + 1, site))


def read_answer(
    answer: Answer, options: ReadOptions, refusals: Refusals, source: str = ""
) -> tuple[Iterator[Document], list[str]]:
    """The documents of a page, and the links that may be followed."""
    name = PurePosixPath(unquote(urlsplit(answer.url).path)).name or urlsplit(answer.url).netloc
    if answer.type not in HTML and not is_html(answer.body[:HEAD], PurePosixPath(name)):
        return read_stream(io.BytesIO(answer.body), len(answer.body), answer.url, options, refusals, source), []
    page = to_page(answer.body, answer.url, answer.charset)
    if page.robots & {"noindex", "none"}:
        raise Refused("page that asks not to be indexed")
    document = Document(answer.url, clean(page.text), clean(page.title) or name, "markdown", source)
    return iter([document]), [] if page.robots & {"nofollow", "none"} else page.links


def site_of(url: str) -> str:
    """A page stands for the folder that it lies in."""
    return url.partition("?")[0].rpartition("/")[0] + "/"


def within(links: Sequence[str], site: str) -> Iterator[str]:
    for link in links:
        try:
            url = normal(link)
        except Refused:  # mailto:, javascript: and the like: nowhere to go
            continue
        if url.startswith(site):
            yield url
