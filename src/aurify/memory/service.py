"""A knowledge base over HTTP, in the retriever protocol of Search-R1 (Jin et al. 2025), so that other trainers can ask
it:

    POST /retrieve {"queries": [text, ...], "topk": number or null, "return_scores": true or false}
    -> {"result": [[{"document": {"id", "contents", "title", "text"}, "score"}, ...], ...]}

One list a query, in their order; without scores the documents stand there alone. `contents` is the title in quotes, a
line break and the text. A request that cannot be answered gets a status and `{"error": what, and how to mend it}`.
Needs starlette and uvicorn (extra `serve`).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aurify.errors import UserError
from aurify.memory.types import Hit

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request

Search = Callable[[list[str], int], Sequence[Sequence[Hit]]]  # (queries, topk) -> hits of each query
LOOPBACK = ("127.0.0.1", "localhost", "::1")
FORM = 'expected {"queries": [text, ...], "topk": number or null, "return_scores": true or false}'
log = logging.getLogger("aurify")


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """Where the service listens, and what it takes on. Beyond a limit it refuses; it never shortens in silence."""

    host: str = "127.0.0.1"  # only this machine can reach it; 0.0.0.0 is everybody
    port: int = 8765  # 0: any free one
    topk: int = 3  # for requests that leave it open
    max_topk: int = 100
    max_queries: int = 512  # of one request
    max_characters: int = 8_000  # of one query
    max_bytes: int = 4_000_000  # of one request
    max_waiting: int = 64  # requests; more are sent away to try again
    seconds: float = 30.0  # for a request to arrive

    def __post_init__(self) -> None:
        for name in ("topk", "max_topk", "max_queries", "max_characters", "max_bytes", "max_waiting"):
            if getattr(self, name) < 1:
                raise UserError(f"service: {name} is {getattr(self, name)}; it must be at least 1")
        if self.topk > self.max_topk:
            raise UserError(f"service: topk is {self.topk}, above max_topk ({self.max_topk})")
        if not 0 <= self.port < 65_536:
            raise UserError(f"service: port is {self.port}; it must be from 0 to 65535")

    @property
    def local(self) -> bool:
        return self.host in LOOPBACK


class Refusal(Exception):
    """A request that gets no answer but a status and a reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass(frozen=True, slots=True)
class Question:
    queries: list[str]
    topk: int
    return_scores: bool


def application(
    search: Search,
    options: ServiceOptions = ServiceOptions(),
    facts: Mapping[str, Any] | None = None,
    lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]] | None = None,
) -> Starlette:
    """The service as an ASGI application. facts: what `GET /health` tells beside its being well. lifespan: what runs
    around it."""
    import_extra()
    from anyio import CapacityLimiter, to_thread
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    one_at_a_time = CapacityLimiter(1)  # tokenizers are not made for threads, and a search uses all cores anyway

    async def retrieve(request: Request) -> Response:
        try:
            check_host(request, options)
            question = read_question(await body_of(request, options), options)
            if one_at_a_time.statistics().tasks_waiting >= options.max_waiting:
                raise Refusal(503, f"{options.max_waiting} requests wait already; try again")
            answer = await to_thread.run_sync(partial(answered, search, question), limiter=one_at_a_time)
        except Refusal as refusal:
            headers = {"Retry-After": "1"} if refusal.status == 503 else None
            return JSONResponse({"error": refusal.reason}, refusal.status, headers)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except UserError as error:
            return JSONResponse({"error": str(error)}, 400)
        except Exception as error:  # the next request may fare better
            log.exception("retriever: a search failed")
            return JSONResponse({"error": f"the search failed: {type(error).__name__}"}, 500)
        return Response(answer, media_type="application/json")

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", **(facts or {})})

    routes = [Route("/retrieve", retrieve, methods=["POST"]), Route("/health", health)]
    return Starlette(routes=routes, lifespan=lifespan)


def check_host(request: Request, options: ServiceOptions) -> None:
    """A web page may point a name of its own at this machine; a service for this machine does not answer to it."""
    if not options.local:
        return
    asked = request.headers.get("host", "")
    try:
        known = urlsplit(f"//{asked}").hostname in LOOPBACK
    except ValueError:
        known = False
    if not known:
        raise Refusal(421, f"host {asked!r} is not this machine; ask for http://{options.host}, or serve with --host")


async def body_of(request: Request, options: ServiceOptions) -> bytes:
    """The body, read no further than the limit."""
    pieces, size = [], 0
    try:
        async with asyncio.timeout(options.seconds):
            async for piece in request.stream():
                size += len(piece)
                if size > options.max_bytes:
                    raise Refusal(413, f"the request has more than {options.max_bytes:,} bytes; send fewer queries")
                pieces.append(piece)
    except TimeoutError:
        raise Refusal(408, f"the request did not arrive within {options.seconds:g} seconds") from None
    return b"".join(pieces)


def read_question(body: bytes, options: ServiceOptions) -> Question:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal(400, f"the body is no JSON: {body[:60]!r}; {FORM}") from None
    if not isinstance(values, dict):
        raise Refusal(400, f"the body is a {type(values).__name__}; {FORM}")
    if unknown := sorted(values.keys() - {"queries", "topk", "return_scores"}):
        raise Refusal(400, f"unknown key {unknown[0][:60]!r}; {FORM}")
    queries, topk = values.get("queries"), values.get("topk")
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
        raise Refusal(400, f"queries is no list of texts; {FORM}")
    if len(queries) > options.max_queries:
        raise Refusal(413, f"{len(queries)} queries; send at most {options.max_queries} in a request")
    longest = max(map(len, queries), default=0)
    if longest > options.max_characters:
        raise Refusal(413, f"a query has {longest:,} characters; at most {options.max_characters:,} are taken")
    topk = options.topk if topk is None else topk
    if isinstance(topk, bool) or not isinstance(topk, int) or not 1 <= topk <= options.max_topk:
        raise Refusal(400, f"topk is {str(topk)[:60]}; expected null or a number from 1 to {options.max_topk}")
    return_scores = values.get("return_scores", False)
    if not isinstance(return_scores, bool):
        raise Refusal(400, f"return_scores is {str(return_scores)[:60]}; expected true or false")
    return Question([query.encode(errors="replace").decode() for query in queries], topk, return_scores)


def answered(search: Search, question: Question) -> bytes:
    """The body of the answer. A blank query finds nothing."""
    asked = [query for query in question.queries if query.strip()]
    found = iter(search(asked, question.topk) if asked else [])
    result = [list(next(found)) if query.strip() else [] for query in question.queries]
    return json.dumps(
        {"result": [[entry(hit, question.return_scores) for hit in hits] for hits in result]}, ensure_ascii=False
    ).encode(errors="replace")


def entry(hit: Hit, with_score: bool) -> dict[str, Any]:
    title = " ".join((hit.chunk.title or hit.chunk.document).split())
    text = hit.chunk.text
    document = {"id": hit.chunk.id, "contents": f'"{title}"\n{text}', "title": title, "text": text}
    return {"document": document, "score": hit.score} if with_score else document


def serve(search: Search, options: ServiceOptions, facts: Mapping[str, Any], ready: Callable[[str], None]) -> None:
    """Answers until it is interrupted. ready: called with the URL once it listens."""
    uvicorn = import_extra()
    from contextlib import asynccontextmanager

    socket = bound(options)
    host = f"[{options.host}]" if ":" in options.host else options.host

    @asynccontextmanager
    async def announced(app: Starlette):  # type: ignore[no-untyped-def]
        ready(f"http://{host}:{socket.getsockname()[1]}/retrieve")
        yield

    settings = uvicorn.Config(
        application(search, options, facts, announced), log_level="warning", access_log=False, timeout_keep_alive=30
    )
    uvicorn.Server(settings).run(sockets=[socket])


def bound(options: ServiceOptions) -> Any:
    import socket

    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host, options.port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise UserError(
            f"cannot listen on {options.host} port {options.port} ({error.strerror or error}); choose another --port, "
            "or 0 for any that is free, and a --host of this machine"
        ) from error
    return listener


def import_extra() -> Any:
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ModuleNotFoundError:
        raise UserError(
            "serving needs starlette and uvicorn; install them with: pip install 'aurify[serve]'"
        ) from None
    return uvicorn
