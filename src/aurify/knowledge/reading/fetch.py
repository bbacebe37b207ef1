"""Foreign pages, fetched politely and without being led astray.

Every request, those after a redirect included, goes to an address that was looked up once and found public: nothing
on a page can make this machine ask its own network. No library does that, so this fetcher is our own. Answers are
bounded in size and time, also once unpacked. One request at a time with a pause for each host, robots.txt is kept, and
what was fetched stays in a cache.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
import socket
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies

from aurify.bounds import Checked, NonNegativeFloat, NonNegativeInt, PositiveInt
from aurify.files import cache_folder, replaced_file, require
from aurify.http import WORTH_ANOTHER_TRY
from aurify.knowledge.reading.refusals import Refused
from aurify.knowledge.reading.webpage import join_page_url

if TYPE_CHECKING:
    import httpx
    from protego import Protego

AGENT = "aurify"
SECONDS = 20.0  # for an answer to begin and to go on
MAX_SECONDS = 120.0  # for all of it
MAX_BYTES = 20_000_000  # of an answer, unpacked
MAX_ROBOTS = 500_000  # bytes of robots.txt; a crawler need not read more (RFC 9309)
MAX_DELAY = 60.0  # seconds that a server may ask us to wait
MAX_REDIRECTS = 5
MAX_REQUESTS = 2000  # to one host
RETRIES = 3
FRESH_SECONDS = 3600.0  # younger answers are used without asking, older ones if the server agrees
REDIRECTS = (301, 302, 303, 307, 308)
GONE = (404, 410)
MEDIA = ("image/", "audio/", "video/", "font/")
PORTS = {"http": 80, "https": 443}
HOST = re.compile(r"[\w.:-]+", re.ASCII)
NAT64 = ipaddress.ip_network("64:ff9b::/96")
KEPT_HEADERS = ("content-type", "location", "etag", "last-modified", "retry-after")
PRIVATE = "address that is not public (--allow-private reads it)"


@dataclass(frozen=True)
class WebOptions(Checked):
    depth: NonNegativeInt = 0  # links followed from each URL; 0: the page alone
    max_pages: PositiveInt = 1000
    delay: NonNegativeFloat = 0.5  # seconds between two requests to a host; robots.txt may ask for more
    fresh: bool = False  # ask the servers again, not the cache
    allow_private: bool = False  # also hosts of this machine and its network
    robots: bool = True  # keep to robots.txt


@dataclass(frozen=True)
class WebAnswer:
    url: str
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    fetched: float = 0.0  # time

    @property
    def type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def charset(self) -> str | None:
        _, found, rest = self.headers.get("content-type", "").lower().partition("charset=")
        return rest.partition(";")[0].strip(" \"'") or None if found else None


class Fetcher:
    def __init__(self, options: WebOptions) -> None:
        self.options = options
        self.httpx = require("httpx", "memory", "to read from the web")
        self.protego = require("protego", "memory", "to read from the web")
        self.folder = cache_folder() / "web"
        self.client = self.httpx.Client(
            timeout=SECONDS,
            trust_env=False,  # a proxy would look names up itself, and lead to addresses that were not checked
            limits=self.httpx.Limits(max_keepalive_connections=0),  # a connection belongs to one host name
            headers={"User-Agent": AGENT, "Accept-Encoding": "gzip"},
        )
        self.no_proxy = " (the proxy of the environment is not used)" if getproxies() else ""
        self.robots: dict[tuple[str, str], Protego] = {}  # by scheme and host
        self.next_request: dict[str, float] = {}
        self.num_requests: Counter[str] = Counter()

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def get(self, url: str) -> WebAnswer:
        """The page that a URL leads to. Raises `Refused`."""
        answer = self.follow(url, self.options.robots)
        if answer.status != 200:
            raise Refused(f"HTTP {answer.status}", transient=answer.status not in GONE)
        return answer

    def follow(self, url: str, keep_to_robots: bool) -> WebAnswer:
        for _ in range(MAX_REDIRECTS + 1):
            url = normalize_url(url)
            if keep_to_robots and not self.read_robots(url).can_fetch(url, AGENT):
                raise Refused("robots.txt forbids it")
            answer = self.exchange(url)
            if answer.status not in REDIRECTS:
                return answer
            url = join_page_url(url, answer.headers.get("location", ""))
        raise Refused("too many redirects")

    def read_robots(self, url: str) -> Protego:
        """Without a robots.txt all is allowed. While a server fails to give its robots.txt, nothing is (RFC 9309)."""
        parts = urlsplit(url)
        if parts[:2] not in self.robots:
            try:
                answer = self.follow(urlunsplit((*parts[:2], "/robots.txt", "", "")), keep_to_robots=False)
            except Refused as refused:
                if not refused.transient:  # what forbids robots.txt forbids the page as well
                    raise
                raise Refused(f"robots.txt cannot be read: {refused.reason}", transient=True) from None
            text = answer.body[:MAX_ROBOTS].decode("utf-8-sig", "replace") if answer.status == 200 else ""
            text = "User-agent: *\nDisallow: /" if answer.status >= 500 else text
            self.robots[parts[:2]] = self.protego.Protego.parse(text)
        return self.robots[parts[:2]]

    def exchange(self, url: str) -> WebAnswer:
        """Asks once, or takes a fresh answer from the cache."""
        address = self.resolve_address(url)
        held = self.read_cache(url)
        if held is not None and not self.options.fresh and time.time() - held.fetched < FRESH_SECONDS:
            return held
        answer = self.request(url, address, held)
        if answer.status == 304 and held is not None:
            answer = WebAnswer(url, held.status, held.headers, held.body, time.time())
        if answer.status == 200 or answer.status in REDIRECTS:
            self.write_cache(answer)
        return answer

    def resolve_address(self, url: str) -> str:
        """Where the request will go: a host is looked up here and nowhere else."""
        parts = urlsplit(url)
        try:
            found = socket.getaddrinfo(parts.hostname, parts.port or 0, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise Refused(f"host that cannot be found{self.no_proxy}", transient=True) from None
        addresses = [str(entry[4][0]) for entry in found]
        if not self.options.allow_private and not all(map(is_public_address, addresses)):
            raise Refused(PRIVATE)
        return addresses[0]

    def request(self, url: str, address: str, held: WebAnswer | None) -> WebAnswer:
        for attempt in range(RETRIES + 1):
            retry_after = ""
            try:
                answer = self.request_once(url, address, held)
                if answer.status not in WORTH_ANOTHER_TRY:
                    return answer
                failure, retry_after = f"HTTP {answer.status}", answer.headers.get("retry-after", "")
            except self.httpx.TimeoutException:
                failure = "no answer in time"
            except self.httpx.HTTPError:
                failure = f"connection failed{self.no_proxy}"
            if attempt < RETRIES:
                time.sleep(min(float(retry_after), MAX_DELAY) if retry_after.isdigit() else 2.0**attempt)
        raise Refused(failure, transient=True)

    def request_once(self, url: str, address: str, held: WebAnswer | None) -> WebAnswer:
        parts = urlsplit(url)
        self.wait_for_turn(parts.netloc)
        headers = {"Host": parts.netloc}
        for name, header in (("etag", "If-None-Match"), ("last-modified", "If-Modified-Since")):
            if held is not None and name in held.headers:
                headers[header] = held.headers[name]
        target = self.httpx.URL(url).copy_with(host=address)
        extensions = {"sni_hostname": parts.hostname}  # the certificate is that of the name
        with self.client.stream("GET", target, headers=headers, extensions=extensions) as response:
            kept = {name: response.headers[name] for name in KEPT_HEADERS if name in response.headers}
            answer = WebAnswer(url, response.status_code, kept, fetched=time.time())
            if answer.status != 200:
                return answer
            if answer.type.startswith(MEDIA):
                raise Refused(f"{answer.type}: no text")
            return replace(answer, body=read_web_body(response))

    def wait_for_turn(self, host: str) -> None:
        self.num_requests[host] += 1
        if self.num_requests[host] > MAX_REQUESTS:
            raise Refused(f"more than {MAX_REQUESTS} requests to one host", transient=True)
        time.sleep(max(0.0, self.next_request.get(host, 0.0) - time.monotonic()))
        asked = [robots.crawl_delay(AGENT) or 0.0 for (_, netloc), robots in self.robots.items() if netloc == host]
        delay = max([self.options.delay, *(min(seconds, MAX_DELAY) for seconds in asked)])
        self.next_request[host] = time.monotonic() + delay

    # The cache: a file for each URL, a line of JSON and then the body

    def cache_file(self, url: str) -> Path:
        return self.folder / hashlib.sha256(url.encode()).hexdigest()

    def read_cache(self, url: str) -> WebAnswer | None:
        try:
            head, _, body = self.cache_file(url).read_bytes().partition(b"\n")
            held = WebAnswer(**json.loads(head), body=body)
        except (OSError, ValueError, TypeError):
            return None
        return held if held.url == url and len(body) <= MAX_BYTES else None

    def write_cache(self, answer: WebAnswer) -> None:
        facts = {"url": answer.url, "status": answer.status, "headers": answer.headers, "fetched": answer.fetched}
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with replaced_file(self.cache_file(answer.url)) as scratch:
            scratch.write_bytes(json.dumps(facts).encode() + b"\n" + answer.body)


def read_web_body(response: httpx.Response) -> bytes:
    """Unpacked bit by bit: httpx would unpack each part whole, to a thousand times its size and more."""
    deadline = time.monotonic() + MAX_SECONDS
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip", "deflate", ""):
        raise Refused(f"content encoding {encoding[:20]!r}")
    inflate = None if encoding in ("identity", "") else zlib.decompressobj(zlib.MAX_WBITS | 32)
    body = bytearray()
    for part in response.iter_raw():
        try:
            body += part if inflate is None else inflate.decompress(part, MAX_BYTES + 1 - len(body))
        except zlib.error:
            raise Refused("damaged content") from None
        if len(body) > MAX_BYTES:
            raise Refused(f"larger than {MAX_BYTES / 1e6:g} MB")
        if time.monotonic() > deadline:
            raise Refused("page that takes too long", transient=True)
    return bytes(body)


def is_public_address(address: str) -> bool:
    """An IPv6 address that stands for an IPv4 one is as public as that one."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public_address(str(ip.ipv4_mapped))
        inner = [ip.sixtofour, *(ip.teredo or ()), ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else None]
        if any(other is not None and not is_public_address(str(other)) for other in inner):
            return False
    return ip.is_global and not ip.is_multicast


def normalize_url(url: str) -> str:
    """One spelling for what is the same: small letters in scheme and host, no fragment, no default port."""
    import httpx

    try:
        parsed = httpx.URL(url.partition("#")[0])
    except (httpx.InvalidURL, ValueError):
        raise Refused("no valid URL") from None
    if parsed.scheme not in PORTS or not parsed.host:
        raise Refused("URL that is not http(s)://host/...")
    if parsed.userinfo:
        raise Refused("URL with a user name or password in it")
    if not HOST.fullmatch(parsed.raw_host.decode("ascii")) or (parsed.port or 0) > 65535:
        raise Refused("no valid URL")
    parsed = parsed.copy_with(port=None) if parsed.port == PORTS[parsed.scheme] else parsed
    return f"{parsed.scheme}://{parsed.netloc.decode('ascii')}{parsed.raw_path.decode('ascii')}"
