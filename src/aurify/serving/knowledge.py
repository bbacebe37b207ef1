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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from aurify.bounds import Checked, Interval, PositiveInt
from aurify.errors import UserError
from aurify.knowledge.types import Hit

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request

Search = Callable[[list[str], int], Sequence[Sequence[Hit]]]  # (queries, topk) -> hits of each query
LOOPBACK = ("127.0.0.1", "localhost", "::1")
FORM = 'expected {"queries": [text, ...], "topk": number or null, "return_scores": true or false}'
log = logging.getLogger("aurify")


@dataclass(frozen=True)
class ServiceOptions(Checked):
    """Where the service listens, and what it takes on. Beyond a limit it refuses; it never shortens in silence."""

    host: str = "127.0.0.1"  # only this machine can reach it; 0.0.0.0 is everybody
    port: Annotated[int, Interval(ge=0, le=65_535)] = 8765  # 0: any free one
    topk: PositiveInt = 3  # for requests that leave it open
    max_topk: PositiveInt = 100
    max_queries: PositiveInt = 512  # of one request
    max_characters: PositiveInt = 8_000  # of one query
    max_bytes: PositiveInt = 4_000_000  # of one request
    max_waiting: PositiveInt = 64  # requests; more are sent away to try again
    seconds: float = 30.0  # for a request to arrive

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.topk > self.max_topk:
            raise UserError(f"service: topk is {self.topk}, above max_topk ({self.max_topk})")

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
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    line = Line(search, options)

    async def retrieve(request: Request) -> Response:
        try:
            check_host(request, options)
            question = read_question(await body_of(request, options), options)
            answer = await line.answer(question)
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


Waiting = list[tuple[Question, "asyncio.Future[bytes]"]]


class Line:
    """Where requests wait while others are searched for. One search runs at a time, since it uses all cores; what came
    meanwhile goes into the next one together, so that a batch of questions costs little more than one."""

    def __init__(self, search: Search, options: ServiceOptions) -> None:
        self.search, self.options = search, options
        self.waiting: Waiting = []
        self.serving: asyncio.Task[None] | None = None

    async def answer(self, question: Question) -> bytes:
        if len(self.waiting) >= self.options.max_waiting:
            raise Refusal(503, f"{self.options.max_waiting} requests wait already; try again")
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.waiting.append((question, answer))
        if self.serving is None or self.serving.done():
            self.serving = asyncio.create_task(self.serve())
        return await answer

    async def serve(self) -> None:
        while together := self.next():
            found = await asyncio.to_thread(answered_together, self.search, [question for question, _ in together])
            for (_, answer), body in zip(together, found, strict=True):
                if answer.done():  # whoever asked has gone
                    continue
                if isinstance(body, Exception):
                    answer.set_exception(body)
                else:
                    answer.set_result(body)

    def next(self) -> Waiting:
        """The first in the line, and who else wants as many passages, as far as their queries may go together."""
        self.waiting = [(question, answer) for question, answer in self.waiting if not answer.done()]
        together: Waiting = []
        others: Waiting = []
        room = self.options.max_queries
        for question, answer in self.waiting:
            fits = not together or (question.topk == together[0][0].topk and len(question.queries) <= room)
            (together if fits else others).append((question, answer))
            room -= len(question.queries) if fits else 0
        self.waiting = others
        return together


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


def answered_together(search: Search, questions: Sequence[Question]) -> list[bytes | Exception]:
    """The body of each answer. When a search fails, each question is asked alone: only those that cannot be answered
    get the failure."""
    try:
        asked = [query for question in questions for query in question.queries if query.strip()]
        found = iter(search(asked, questions[0].topk) if asked else [])
        return [body_for(question, found) for question in questions]
    except Exception as error:
        if len(questions) == 1:
            return [error]
        return [body for question in questions for body in answered_together(search, [question])]


def body_for(question: Question, found: Iterator[Sequence[Hit]]) -> bytes:
    """A blank query finds nothing."""
    result = [
        [entry(hit, question.return_scores) for hit in next(found)] if query.strip() else []
        for query in question.queries
    ]
    return json.dumps({"result": result}, ensure_ascii=False).encode(errors="replace")


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
        raise UserError("serving needs starlette and uvicorn; install them with: pip install 'aurify[serve]'") from None
    return uvicorn
