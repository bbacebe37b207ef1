"""Foreign pages, fetched politely and without being led astray.

Every request, those after a redirect included, goes to an address that was looked up once and found public: nothing
on a page can make this machine ask its own network. Answers are bounded in size and time, also once unpacked. One
request at a time with a pause for each host, robots.txt is kept, and what was fetched stays in a cache.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import re
import socket
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies

from aurify.bounds import Checked, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from aurify.files import cache_folder
from aurify.http import WORTH_ANOTHER_TRY, import_httpx
from aurify.knowledge.reading.refusals import Refused
from aurify.knowledge.reading.robots import ALL_FORBIDDEN, MAX_CHARS, Robots, parse_robots
from aurify.knowledge.reading.webpage import joined

if TYPE_CHECKING:
    import httpx

REDIRECTS = (301, 302, 303, 307, 308)
GONE = (404, 410)
NO_TEXT = ("image/", "audio/", "video/", "font/")
PORTS = {"http": 80, "https": 443}
HOST = re.compile(r"[\w.:-]+", re.ASCII)
NAT64 = ipaddress.ip_network("64:ff9b::/96")
KEPT_HEADERS = ("content-type", "location", "etag", "last-modified")
PRIVATE = "address that is not public (--allow-private reads it)"


@dataclass(frozen=True)
class FetchOptions(Checked):
    delay: NonNegativeFloat = 0.5  # seconds between two requests to a host; robots.txt may ask for more
    seconds: PositiveFloat = 20.0  # for an answer to begin and to go on
    max_seconds: PositiveFloat = 120.0  # for all of it
    retries: NonNegativeInt = 3
    max_redirects: NonNegativeInt = 5
    max_bytes: PositiveInt = 20_000_000  # unpacked
    max_requests_per_host: PositiveInt = 2000
    allow_private: bool = False  # also hosts of this machine and its network
    robots: bool = True  # keep to robots.txt
    agent: str = "aurify"
    cache: str | None = None  # folder; None: aurify/web in the user's cache
    cache_seconds: NonNegativeFloat = 3600.0  # younger answers are used without asking, older ones if the server agrees


@dataclass(frozen=True)
class Answer:
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
    def __init__(self, options: FetchOptions) -> None:
        httpx = import_httpx("to read from the web, install httpx with", "memory")
        self.options = options
        self.folder = Path(options.cache).expanduser() if options.cache else cache_folder() / "web"
        self.client = httpx.Client(
            timeout=options.seconds,
            trust_env=False,  # a proxy would look names up itself, and lead to addresses that were not checked
            limits=httpx.Limits(max_keepalive_connections=0),  # a connection belongs to one host name
            headers={"User-Agent": options.agent, "Accept-Encoding": "gzip"},
        )
        self.no_proxy = " (the proxy of the environment is not used)" if getproxies() else ""
        self.robots: dict[str, Robots] = {}
        self.next_request: dict[str, float] = {}
        self.num_requests: Counter[str] = Counter()

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def get(self, url: str) -> Answer:
        """The page that a URL leads to. Raises `Refused`."""
        answer = self.follow(url, self.options.robots)
        if answer.status != 200:
            raise Refused(f"HTTP {answer.status}", transient=answer.status not in GONE)
        return answer

    def follow(self, url: str, keep_to_robots: bool) -> Answer:
        for _ in range(self.options.max_redirects + 1):
            url = normal(url)
            if keep_to_robots and not self.robots_of(url).allows(path_of(url)):
                raise Refused("robots.txt forbids it")
            answer = self.exchange(url)
            if answer.status not in REDIRECTS:
                return answer
            url = joined(url, answer.headers.get("location", ""))
        raise Refused("too many redirects")

    def robots_of(self, url: str) -> Robots:
        """Without a robots.txt all is allowed; while a server fails to say what it forbids, nothing is (RFC 9309)."""
        origin = urlunsplit((*urlsplit(url)[:2], "/robots.txt", "", ""))
        if origin not in self.robots:
            try:
                answer = self.follow(origin, keep_to_robots=False)
            except Refused as refused:
                if not refused.transient:  # what forbids robots.txt forbids the page as well
                    raise
                raise Refused(f"robots.txt cannot be read: {refused.reason}", transient=True) from None
            text = answer.body[:MAX_CHARS].decode("utf-8", "replace") if answer.status == 200 else ""
            forbidden = answer.status >= 500
            self.robots[origin] = ALL_FORBIDDEN if forbidden else parse_robots(text, self.options.agent)
        return self.robots[origin]

    def exchange(self, url: str) -> Answer:
        """One request and its answer, from the cache where it is fresh."""
        address = self.address_of(url)
        held = self.read_cache(url)
        if held is not None and time.time() - held.fetched < self.options.cache_seconds:
            return held
        answer = self.ask(url, address, held)
        if answer.status == 304 and held is not None:
            answer = Answer(url, held.status, held.headers, held.body, time.time())
        if answer.status == 200 or answer.status in REDIRECTS:
            self.write_cache(answer)
        return answer

    def address_of(self, url: str) -> str:
        """Where the request will go: a host is looked up here and nowhere else."""
        parts = urlsplit(url)
        try:
            found = socket.getaddrinfo(parts.hostname, parts.port or 0, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise Refused(f"host that cannot be found{self.no_proxy}", transient=True) from None
        addresses = [str(entry[4][0]) for entry in found]
        if not self.options.allow_private and not all(map(is_public, addresses)):
            raise Refused(PRIVATE)
        return addresses[0]

    def ask(self, url: str, address: str, held: Answer | None) -> Answer:
        import httpx

        for attempt in range(self.options.retries + 1):
            try:
                answer = self.ask_once(url, address, held)
                failure = f"HTTP {answer.status}"
                wait = to_wait(answer.headers.get("retry-after", ""), attempt)
                if answer.status not in WORTH_ANOTHER_TRY:
                    return answer
            except httpx.TimeoutException:
                failure, wait = "no answer in time", to_wait("", attempt)
            except httpx.HTTPError:
                failure, wait = f"connection failed{self.no_proxy}", to_wait("", attempt)
            if attempt < self.options.retries:
                time.sleep(wait)
        raise Refused(failure, transient=True)

    def ask_once(self, url: str, address: str, held: Answer | None) -> Answer:
        import httpx

        parts = urlsplit(url)
        self.wait_for(parts.netloc)
        headers = {"Host": parts.netloc}
        for name, header in (("etag", "If-None-Match"), ("last-modified", "If-Modified-Since")):
            if held is not None and name in held.headers:
                headers[header] = held.headers[name]
        target = httpx.URL(url).copy_with(host=address)
        extensions = {"sni_hostname": parts.hostname}  # the certificate is that of the name
        with self.client.stream("GET", target, headers=headers, extensions=extensions) as response:
            kept = {name: response.headers[name] for name in (*KEPT_HEADERS, "retry-after") if name in response.headers}
            answer = Answer(url, response.status_code, kept, b"", time.time())
            if response.status_code != 200:
                return answer
            if answer.type.startswith(NO_TEXT):
                raise Refused(f"{answer.type}: no text")
            return Answer(url, 200, kept, self.body_of(response), time.time())

    def body_of(self, response: httpx.Response) -> bytes:
        limit, deadline = self.options.max_bytes, time.monotonic() + self.options.max_seconds
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip", "x-gzip", "deflate", ""):
            raise Refused(f"content encoding {encoding[:20]!r}")
        inflate = None if encoding in ("identity", "") else zlib.decompressobj(zlib.MAX_WBITS | 32)
        body = bytearray()
        for part in response.iter_raw():
            try:
                body += part if inflate is None else inflate.decompress(part, limit + 1 - len(body))
            except zlib.error:
                raise Refused("damaged content") from None
            if len(body) > limit:
                raise Refused(f"larger than {limit / 1e6:g} MB")
            if time.monotonic() > deadline:
                raise Refused("page that takes too long", transient=True)
        return bytes(body)

    def wait_for(self, host: str) -> None:
        self.num_requests[host] += 1
        if self.num_requests[host] > self.options.max_requests_per_host:
            raise Refused(f"more than {self.options.max_requests_per_host} requests to one host", transient=True)
        time.sleep(max(0.0, self.next_request.get(host, 0.0) - time.monotonic()))
        asked = [robots.delay for origin, robots in self.robots.items() if urlsplit(origin).netloc == host]
        self.next_request[host] = time.monotonic() + max([self.options.delay, *asked])

    # The cache: a file for each URL, a line of JSON and then the body

    def cache_file(self, url: str) -> Path:
        return self.folder / hashlib.sha256(url.encode()).hexdigest()

    def read_cache(self, url: str) -> Answer | None:
        try:
            head, _, body = self.cache_file(url).read_bytes().partition(b"\n")
            held = Answer(**json.loads(head), body=body)
        except (OSError, ValueError, TypeError):
            return None
        return held if held.url == url and len(body) <= self.options.max_bytes else None

    def write_cache(self, answer: Answer) -> None:
        facts = {"url": answer.url, "status": answer.status, "headers": answer.headers, "fetched": answer.fetched}
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = self.cache_file(answer.url)
        scratch = file.with_suffix(f".{os.getpid()}")
        scratch.write_bytes(json.dumps(facts).encode() + b"\n" + answer.body)
        os.replace(scratch, file)


def is_public(address: str) -> bool:
    """Of an IPv6 address that stands for an IPv4 one, that one counts."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else None)
        if any(other is not None and not is_public(str(other)) for other in inner):
            return False
        if ip.ipv4_mapped is not None:
            return True
    return ip.is_global and not ip.is_multicast


def normal(url: str) -> str:
    """One spelling for what is the same: small letters in scheme and host, no fragment, no default port."""
    import httpx

    try:
        parsed = httpx.URL(url.partition("#")[0])
    except (httpx.InvalidURL, ValueError):
        raise Refused("no valid URL") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise Refused("URL that is not http(s)://host/...")
    if parsed.userinfo:
        raise Refused("URL with a user name or password in it")
    host, port = parsed.raw_host.decode("ascii"), parsed.port or PORTS[parsed.scheme]
    if not HOST.fullmatch(host) or port > 65535:
        raise Refused("no valid URL")
    host = f"[{host}]" if ":" in host else host
    netloc = host if port == PORTS[parsed.scheme] else f"{host}:{port}"
    path, _, query = parsed.raw_path.decode("ascii").partition("?")
    return urlunsplit((parsed.scheme, netloc, path or "/", query, ""))


def path_of(url: str) -> str:
    parts = urlsplit(url)
    return parts.path + (f"?{parts.query}" if parts.query else "")


def to_wait(retry_after: str, attempt: int) -> float:
    """Seconds: what the server asks for, up to a minute, else 1, 2, 4 ..."""
    return min(float(retry_after), 60.0) if retry_after.isdigit() else 2.0**attempt
