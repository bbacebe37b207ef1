"""The web, played by servers on this machine: what is polite, what is bounded, and what no page can lead us into."""

from __future__ import annotations

import gzip
import socket
import threading
import time
import tracemalloc
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

pytest.importorskip("lxml")
pytest.importorskip("httpx")
from aurify.knowledge.ingest import list_ingest_urls
from aurify.knowledge.reading import fetch
from aurify.knowledge.reading.encoding import UNKNOWN
from aurify.knowledge.reading.fetch import AGENT, Fetcher, WebOptions, is_public_address, normalize_url
from aurify.knowledge.reading.refusals import Refusals, Refused
from aurify.knowledge.reading.rows import ReadOptions
from aurify.knowledge.reading.web import read_urls
from aurify.knowledge.reading.webpage import NO_TEXT


class Site:
    """Paths and what they answer: a body, (status, headers, body), or a function of the number of the request."""

    def __init__(self, host="127.0.0.1", pages=()):
        self.pages = dict(pages)
        self.requests = []  # (path, headers, time)
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                earlier = sum(path == self.path for path, _, _ in site.requests)
                site.requests.append((self.path, dict(self.headers), time.monotonic()))
                answer = site.pages.get(self.path, (404, {}, b"no"))
                answer = answer(earlier) if callable(answer) else answer
                status, headers, body = answer if isinstance(answer, tuple) else (200, {}, answer)
                body = body.encode() if isinstance(body, str) else body
                headers = {"Content-Type": "text/html", "Content-Length": str(len(body)), **headers}
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                """Nothing."""

        self.server = ThreadingHTTPServer((host, 0), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://{host}:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def paths(self):
        return [path for path, _, _ in self.requests if path != "/robots.txt"]

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def site():
    server = Site()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AURIFY_CACHE", str(tmp_path))


@pytest.fixture
def options():
    return WebOptions(delay=0, allow_private=True)


@pytest.fixture
def sleeps(monkeypatch):
    """Seconds that were waited between attempts."""
    waited = []
    monkeypatch.setattr(fetch.time, "sleep", lambda seconds: waited.append(seconds) if seconds else None)
    return waited


def read(urls, options, **web):
    refusals = Refusals()
    urls = [urls] if isinstance(urls, str) else urls
    documents = list(read_urls(urls, replace(options, **web), ReadOptions(), refusals))
    return documents, refusals


def refusal(url, options):
    with Fetcher(options) as fetcher, pytest.raises(Refused) as caught:
        fetcher.get(url)
    return caught.value


def page(*links, text="text"):
    return f"<title>T</title><p>{text}</p>" + "".join(f'<a href="{link}">x</a>' for link in links)


def only_this_address_is_private(monkeypatch, private):
    monkeypatch.setattr(fetch, "is_public_address", lambda address: address.startswith("127.") and address != private)


def test_a_page_and_what_it_is_named(site, options):
    site.pages = {"/a/x": (302, {"Location": "/a/y#part"}, ""), "/a/y": page(text="The heart beats.")}
    (document,), refusals = read(f"{site.url}/a/x", options)
    assert (document.id, document.title, document.format) == (f"{site.url}/a/y", "T", "markdown")
    assert "The heart beats." in document.text and not refusals.counts


def test_a_list_of_urls_each_page_once(site, options):
    plain = {"Content-Type": "text/plain; charset=latin-1"}
    site.pages = {"/a": page(), "/b": (301, {"Location": "/a"}, ""), "/c.txt": (200, plain, "Größe".encode("latin-1"))}
    site.pages["/rows.jsonl"] = (200, {"Content-Type": "application/json"}, '{"id": 1, "text": "row"}\n')
    documents, refusals = read([f"{site.url}/{name}" for name in ("a", "b", "c.txt", "rows.jsonl", "gone")], options)
    assert [(document.id.removeprefix(site.url), document.text) for document in documents[1:]] == [
        ("/c.txt", "Größe"),
        ("/rows.jsonl:1", "row"),
    ]
    assert documents[0].id == f"{site.url}/a"
    assert refusals.lines() == [f"1 x HTTP 404 (the first: {site.url}/gone)"] and not refusals.incomplete


def test_a_site_within_its_bounds(site, options):
    site.pages = {
        "/docs/": page("one.html", "/docs/two", "/blog/", "https://other.test/docs/", "javascript:alert(1)", "../up"),
        "/docs/one.html": page("deep/three", "one.html#again", "out"),
        "/docs/two": page("/docs/one.html?b=1&a=2"),
        "/docs/deep/three": page("four"),
        "/docs/one.html?b=1&a=2": page(),
        "/docs/out": (302, {"Location": "/blog/"}, ""),
        "/blog/": page(),
    }
    documents, refusals = read(f"{site.url}/docs/", options, depth=2)
    found = [document.id.removeprefix(site.url) for document in documents]
    assert found == ["/docs/", "/docs/one.html", "/docs/two", "/docs/deep/three", "/docs/one.html?b=1&a=2"]
    assert refusals.lines() == [f"1 x redirect out of the site (the first: {site.url}/docs/out)"]
    documents, refusals = read(f"{site.url}/docs/", options, depth=2, max_pages=2)
    assert len(documents) == 2 and "page above the limit of 2 (--max-pages)" in refusals.incomplete
    assert len(read(f"{site.url}/docs/", options)[0]) == 1


def test_a_sitemap_is_a_list_of_urls_of_its_host(site, options, tmp_path):
    def sitemap(kind, *urls):
        return (200, {"Content-Type": "text/xml"}, f'<?xml version="1.0"?><{kind}>' + "".join(urls) + f"</{kind}>")

    def place(url):
        return f"<url><loc>\n {url} </loc><lastmod>2026</lastmod></url>"

    site.pages = {
        "/robots.txt": "User-agent: *\nDisallow: /no",
        "/sitemap.xml": sitemap("sitemapindex", place(site.url + "/one.xml"), place(site.url + "/sitemap.xml")),
        "/one.xml": sitemap(
            "urlset",
            place(f"{site.url}/a?x=1&amp;y=2"),
            f"<url><loc><![CDATA[{site.url}/b]]></loc></url>",
            place(site.url + "/no"),
            place("http://169.254.169.254/secret"),
        ),
        "/a?x=1&y=2": page("/linked"),
        "/b": page(),
        "/no": page(),
    }
    documents, refusals = read(site.url + "/sitemap.xml", options)
    assert [document.id for document in documents] == [site.url + "/a?x=1&y=2", site.url + "/b"]
    assert refusals.counts == {"URL of a sitemap on another host": 1, "robots.txt forbids it": 1}
    documents, refusals = read(site.url + "/sitemap.xml", options, max_pages=3)
    assert len(documents) == 1 and sum(refusals.counts.values()) == 3
    saved = tmp_path / "sitemap.xml"
    saved.write_bytes(site.pages["/one.xml"][2].encode())
    assert list_ingest_urls(saved)[1] == site.url + "/b" and len(list_ingest_urls(saved)) == 4


def test_a_proxy_of_the_environment_is_not_used(site, options, monkeypatch, sleeps):
    """It would look names up by itself, and so reach what is refused here."""
    proxy = Site(pages={"/": page()})
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url)
    site.pages = {"/a": page()}
    try:
        assert len(read(site.url + "/a", options)[0]) == 1
        private = WebOptions(delay=0, fresh=True)
        assert str(refusal(site.url + "/a", private)) == fetch.PRIVATE
        assert refusal("http://nowhere.invalid/", private).reason == (
            "robots.txt cannot be read: host that cannot be found (the proxy of the environment is not used)"
        )
        assert not proxy.requests
    finally:
        proxy.close()


def test_a_maze_of_links_ends(site, options):
    class Endless(dict):
        def get(self, path, other):
            return other if "robots" in path else page(path + "/a", path + "/b")

    site.pages = Endless()
    documents, refusals = read(f"{site.url}/m", options, depth=100, max_pages=30)
    assert len(documents) == 30 and refusals.counts["page above the limit of 30 (--max-pages)"] == 31


def test_pages_that_wish_to_be_left_out(site, options):
    site.pages = {
        "/": page("/no", "/ends", "/private/a", "/private/open"),
        "/no": '<meta name="robots" content="noindex">' + page("/hidden"),
        "/ends": '<meta name="robots" content="nofollow">' + page("/hidden"),
        "/private/open": page(),
        "/robots.txt": "User-agent: *\nDisallow: /private\nAllow: /private/open\n",
    }
    documents, refusals = read(site.url, options, depth=3)
    assert [document.id.removeprefix(site.url) for document in documents] == ["/", "/ends", "/private/open"]
    assert dict(refusals.counts) == {"page that asks not to be indexed": 1, "robots.txt forbids it": 1}
    assert "/private/a" not in site.paths() and "/hidden" not in site.paths()


def test_robots_by_the_longest_rule_for_us(site, options):
    def robots(text):
        site.pages["/robots.txt"] = text
        with Fetcher(replace(options, fresh=True)) as fetcher:
            return fetcher.read_robots(site.url)

    def allows(text, path):
        return robots(text).can_fetch(site.url + path, AGENT)

    rules = (
        "\ufeffuser-agent: other\nuser-agent: Aurify # us\ndisallow: /*.pdf$\nDisallow: /a\nallow: /a/b\n"
        "Crawl-delay: 2\n\nUser-agent: *\nDisallow: /\n"
    )
    assert robots(rules).crawl_delay(AGENT) == 2
    for path, allowed in {"/": 1, "/x.pdf": 0, "/x.pdf?y": 1, "/a": 0, "/ab": 0, "/a/b/c": 1, "/a/b.pdf": 0}.items():
        assert allows(rules, path) == bool(allowed), path
    assert not allows("User-agent: *\nDisallow: /", "/x")
    assert allows("User-agent: *\nDisallow:", "/x")
    start = time.monotonic()
    assert allows("User-agent: *\nDisallow: " + "*a" * 5000 + "b$", "/" + "a" * 10_000)
    assert time.monotonic() - start < 2


def test_while_robots_cannot_be_read_nothing_is(site, options, sleeps):
    site.pages = {"/": page(), "/robots.txt": (503, {}, "")}
    documents, refusals = read(site.url, options)
    assert not documents and site.paths() == []
    assert "robots.txt cannot be read: HTTP 503" in refusals.incomplete


def test_servers_that_fail_are_asked_again_as_they_wish(site, options, sleeps):
    site.pages = {"/": lambda earlier: page() if earlier == 2 else (503, {"Retry-After": "7"} if earlier else {}, "")}
    documents, refusals = read(site.url, options)
    assert len(documents) == 1 and not refusals.counts
    assert sleeps == [1, 7]
    site.pages = {"/": (500, {}, ""), "/limit": (429, {"Retry-After": "100000"}, "")}
    documents, refusals = read([f"{site.url}/?new", f"{site.url}/limit"], options)
    assert not documents and refusals.incomplete
    site.pages["/?new"] = (500, {}, "")
    assert refusal(f"{site.url}/?new", options).transient
    assert max(sleeps) == 60


def test_a_server_that_is_not_there(options, sleeps):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{other.getsockname()[1]}/"
        failure = refusal(url, options)
    assert failure.transient and "connection failed" in failure.reason and sleeps == [1, 2, 4]


def test_a_pause_between_requests_to_a_host(site, options, monkeypatch):
    """On a clock of its own, which stands still while nobody sleeps."""
    now, slept = [100.0], list[float]()

    def sleep(seconds):
        slept.append(round(seconds, 6))
        now[0] += seconds

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=sleep, time=time.time)
    monkeypatch.setattr(fetch, "time", clock)
    site.pages = {f"/{number}": page() for number in range(3)}
    read([f"{site.url}/{number}" for number in range(3)], replace(options, delay=0.1))
    assert len(site.requests) == 4 and slept == [0.0, 0.1, 0.1, 0.1]
    site.pages["/robots.txt"] = "User-agent: *\nCrawl-delay: 0.3"
    with Fetcher(replace(options, fresh=True)) as fetcher:
        fetcher.get(f"{site.url}/1")
        slept.clear()
        fetcher.get(f"{site.url}/2")
    assert slept == [0.3]


def test_no_host_is_asked_without_end(site, options, monkeypatch):
    monkeypatch.setattr(fetch, "MAX_REQUESTS", 3)
    site.pages = {f"/{number}": page() for number in range(5)}
    documents, refusals = read([f"{site.url}/{number}" for number in range(5)], options)
    assert len(documents) == 2  # robots.txt was the first
    assert refusals.counts == {"more than 3 requests to one host": 3} and refusals.incomplete


def test_the_cache_spares_the_server(site, options, tmp_path):
    site.pages = {"/": (200, {"ETag": '"1"'}, page(text="first")), "/moved": (301, {"Location": "/"}, "")}
    for _ in range(2):
        assert "first" in read(f"{site.url}/moved", options)[0][0].text
    assert site.paths() == ["/moved", "/"]
    stale = replace(options, fresh=True)
    site.pages["/"] = (304, {}, "")
    assert "first" in read(site.url, stale)[0][0].text
    assert site.requests[-1][1]["If-None-Match"] == '"1"'
    site.pages["/"] = page(text="second")
    assert "second" in read(site.url, stale)[0][0].text
    for file in (tmp_path / "web").iterdir():
        file.write_bytes(b"{damaged")
    assert "second" in read(site.url, options)[0][0].text


def test_answers_are_bounded(site, options, monkeypatch):
    monkeypatch.setattr(fetch, "MAX_BYTES", 100_000)
    bomb = gzip.compress(bytes(100_000_000), 1)
    site.pages = {
        "/large": "x" * 200_000,
        "/bomb": (200, {"Content-Encoding": "gzip"}, bomb),
        "/fine": (200, {"Content-Encoding": "gzip"}, gzip.compress(b"<p>fine")),
        "/damaged": (200, {"Content-Encoding": "gzip"}, b"no gzip at all"),
        "/br": (200, {"Content-Encoding": "br"}, b"?"),
        "/picture": (200, {"Content-Type": "image/png"}, b"\x89PNG"),
        "/binary": (200, {"Content-Type": "text/html"}, bytes(500)),
        "/loop": (302, {"Location": "/loop"}, ""),
        "/file": (302, {"Location": "file:///etc/passwd"}, ""),
        "/odd": (302, {"Location": "http://["}, ""),
    }
    tracemalloc.start()
    documents, refusals = read([site.url + path for path in site.pages], options)
    most_memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most_memory < 10_000_000
    assert [document.text for document in documents] == ["fine"]
    assert dict(refusals.counts) == {
        "larger than 0.1 MB": 2,
        "damaged content": 1,
        "content encoding 'br'": 1,
        "image/png: no text": 1,
        "binary file": 1,
        "too many redirects": 1,
        "URL that is not http(s)://host/...": 2,
    }


def test_what_is_no_page_is_read_or_refused_as_a_file(site, options):
    russian = "Сердце"
    site.pages = {
        "/a.txt": (200, {"Content-Type": "text/plain; charset=koi8-r"}, russian.encode("koi8-r")),
        "/b.txt": (200, {"Content-Type": "text/plain"}, russian.encode("koi8-r")),
        "/c.zip": (200, {"Content-Type": "application/zip"}, b"PK\x03\x04" + bytes(100)),
        "/d.gz": (200, {"Content-Type": "application/gzip"}, gzip.compress(b"text " * 1000)[:40]),
        "/e.md": (200, {"Content-Type": "text/markdown"}, "# Heart\n\nbeats"),
    }
    documents, refusals = read([site.url + path for path in site.pages], options)
    assert [(document.text, document.title) for document in documents] == [
        (russian, "a"),
        ("# Heart\n\nbeats", "Heart"),
    ]
    zipped = "ZIP archive or office document: unpack it, or save it as PDF or text"
    assert dict(refusals.counts) == {UNKNOWN: 1, zipped: 1, "damaged gzip file": 1}


def test_a_page_of_links_alone_is_named_and_its_links_are_followed(site, options):
    site.pages = {"/": '<nav><a href="/a">A</a></nav><script>draw()</script>', "/a": page()}
    documents, refusals = read(site.url, options, depth=1)
    assert [document.id for document in documents] == [site.url + "/a"]
    assert refusals.lines() == [f"1 x {NO_TEXT} (the first: {site.url}/)"]


def test_a_server_that_drips_is_left(options, monkeypatch):
    monkeypatch.setattr(fetch, "MAX_SECONDS", 0.3)
    monkeypatch.setattr(fetch, "RETRIES", 0)
    listener = socket.create_server(("127.0.0.1", 0))

    def drip():
        connection, _ = listener.accept()
        with connection:
            connection.recv(10_000)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n")
            try:
                while True:
                    connection.sendall(b"x")
                    time.sleep(0.02)
            except OSError:
                return

    thread = threading.Thread(target=drip)
    thread.start()
    failure = refusal(f"http://127.0.0.1:{listener.getsockname()[1]}/", replace(options, robots=False))
    assert failure.reason == "page that takes too long" and failure.transient
    thread.join(5)
    listener.close()


@pytest.mark.parametrize(
    "address",
    (
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"),
    ),
)
def test_private_addresses(address):
    assert not is_public_address(address)


def test_public_addresses():
    assert all(map(is_public_address, ["1.1.1.1", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_this_machine_is_not_asked_unless_allowed(site, host):
    site.pages = {"/": page()}
    failure = refusal(f"http://{host}:{site.port}/", WebOptions())
    assert failure.reason == fetch.PRIVATE and not failure.transient
    assert not site.requests


@pytest.mark.parametrize(
    "url", ["ftp://a/b", "http://", "http://a:b@c/", "http://a b/", "file:///etc/passwd", "http://a:99999/"]
)
def test_no_other_urls(url):
    with pytest.raises(Refused):
        normalize_url(url)


def test_one_spelling_for_a_url():
    assert normalize_url("HTTP://Example.ORG:80#x") == "http://example.org/"
    assert normalize_url("https://example.org/a b?c=ä") == "https://example.org/a%20b?c=%C3%A4"
    assert normalize_url("http://[::1]:8080/x") == "http://[::1]:8080/x"


def test_redirects_and_links_to_private_addresses_are_refused(site, monkeypatch):
    inner = Site("127.0.0.2", {"/secret": page(text="secret"), "/robots.txt": ""})
    only_this_address_is_private(monkeypatch, "127.0.0.2")
    site.pages = {"/": (302, {"Location": f"{inner.url}/secret"}, ""), "/page": page(f"{inner.url}/secret")}
    documents, refusals = read([site.url, f"{site.url}/page"], WebOptions(delay=0), depth=5)
    assert len(documents) == 1 and not inner.requests
    assert refusals.lines() == [f"1 x {fetch.PRIVATE} (the first: {site.url})"]
    inner.close()


def test_a_name_that_changes_its_address_is_followed_nowhere(site, monkeypatch):
    """DNS rebinding: the address that was found public is the one that is asked, however the name answers later."""
    site.pages = {"/": page(text="public")}
    only_this_address_is_private(monkeypatch, "127.0.0.2")
    answers, ask = [], socket.getaddrinfo

    def getaddrinfo(host, *arguments, **names):
        if host != "rebind.test":
            return ask(host, *arguments, **names)
        answers.append("127.0.0.1" if len(answers) % 2 == 0 else "127.0.0.2")
        return ask(answers[-1], *arguments, **names)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    options = WebOptions(delay=0, robots=False)
    with Fetcher(options) as fetcher:
        assert b"public" in fetcher.get(f"http://rebind.test:{site.port}/").body
    assert site.requests[0][1]["Host"] == f"rebind.test:{site.port}"
    assert refusal(f"http://rebind.test:{site.port}/", options).reason.startswith("address that is not public")
    assert answers == ["127.0.0.1", "127.0.0.2"] and len(site.requests) == 1


def test_what_was_allowed_once_is_not_read_from_the_cache_later(site, options):
    site.pages = {"/": page()}
    assert read(site.url, options)[0]
    documents, refusals = read(site.url, WebOptions())
    assert not documents and sum(refusals.counts.values()) == 1


def test_options_are_checked():
    for wrong in ({"delay": -1}, {"depth": -1}, {"max_pages": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            WebOptions(**wrong)
