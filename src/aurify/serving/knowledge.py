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
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from aurify.bounds import Checked, Interval, PositiveInt
from aurify.errors import UserError
from aurify.files import require
from aurify.knowledge.types import Hit

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

Search = Callable[[list[str], int], Sequence[Sequence[Hit]]]  # any Retriever: (queries, topk) -> hits of each query
LOOPBACK = ("127.0.0.1", "localhost", "::1")
FORM = 'expected {"queries": [text, ...], "topk": number or null, "return_scores": true or false}'


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
        self.status = status


def replace_request_surrogates(value: Any) -> Any:
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


class RetrieveRequest(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(strict=True, extra="forbid")

    queries: list[Annotated[str, BeforeValidator(replace_request_surrogates)]]
    topk: int | None = None
    return_scores: bool = False


def build_service(
    search: Search,
    options: ServiceOptions = ServiceOptions(),
    facts: Mapping[str, Any] | None = None,
) -> Starlette:
    """The service as an ASGI application. `GET /health` answers with `facts`."""
    require("starlette", "serve", "to serve a knowledge base")
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    line = Line(search, options)

    async def retrieve(request: Request) -> Response:
        check_request_host(request, options)
        question = parse_request(await receive_request_body(request, options), options)
        return Response(await line.answer(question), media_type="application/json")

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", **(facts or {})})

    async def refuse(request: Request, error: Exception) -> Response:
        status = error.status if isinstance(error, Refusal) else 400
        return JSONResponse({"error": str(error)}, status, {"Retry-After": "1"} if status == 503 else None)

    async def fail(request: Request, error: Exception) -> Response:
        """Starlette raises the error again for the server's log; the next request may fare better."""
        return JSONResponse({"error": f"the search failed: {type(error).__name__}"}, 500)

    return Starlette(
        routes=[Route("/retrieve", retrieve, methods=["POST"]), Route("/health", health)],
        exception_handlers={Refusal: refuse, UserError: refuse, ClientDisconnect: refuse, Exception: fail},
    )


Waiting = list[tuple[RetrieveRequest, "asyncio.Future[bytes]"]]


class Line:
    """Where requests wait during a search. One search runs at a time, since it uses all cores. The requests that came
    meanwhile go into the next one together, so that a batch of questions costs little more than one."""

    def __init__(self, search: Search, options: ServiceOptions) -> None:
        self.search, self.options = search, options
        self.waiting: Waiting = []
        self.serving: asyncio.Task[None] | None = None

    async def answer(self, question: RetrieveRequest) -> bytes:
        if len(self.waiting) >= self.options.max_waiting:
            raise Refusal(503, f"{self.options.max_waiting} requests wait already; try again")
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.waiting.append((question, answer))
        if self.serving is None or self.serving.done():
            self.serving = asyncio.create_task(self.work())
        return await answer

    async def work(self) -> None:
        while batch := self.take_batch():
            found = await asyncio.to_thread(answer_requests_together, self.search, [question for question, _ in batch])
            for (_, answer), body in zip(batch, found, strict=True):
                if answer.done():  # the client is gone
                    continue
                if isinstance(body, Exception):
                    answer.set_exception(body)
                else:
                    answer.set_result(body)

    def take_batch(self) -> Waiting:
        """The first request of the line, and others with the same topk, as long as a request may have their queries."""
        waiting = [(question, answer) for question, answer in self.waiting if not answer.done()]
        batch: Waiting = []
        self.waiting = []
        room = self.options.max_queries
        for question, answer in waiting:
            if not batch or (question.topk == batch[0][0].topk and len(question.queries) <= room):
                batch.append((question, answer))
                room -= len(question.queries)
            else:
                self.waiting.append((question, answer))
        return batch


def check_request_host(request: Request, options: ServiceOptions) -> None:
    """A web page may point a name of its own at this machine; a service for this machine does not answer to it."""
    if options.local and request.url.hostname not in LOOPBACK:
        asked = request.headers.get("host", "")
        raise Refusal(421, f"host {asked!r} is not this machine; ask for http://{options.host}, or serve with --host")


async def receive_request_body(request: Request, options: ServiceOptions) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(options.seconds):
            async for piece in request.stream():
                body += piece
                if len(body) > options.max_bytes:
                    raise Refusal(413, f"the request has more than {options.max_bytes:,} bytes; send fewer queries")
    except TimeoutError:
        raise Refusal(408, f"the request did not arrive within {options.seconds:g} seconds") from None
    return bytes(body)


def parse_request(body: bytes, options: ServiceOptions) -> RetrieveRequest:
    """The question, with its topk."""
    try:
        question = RetrieveRequest.model_validate(json.loads(body))
    except ValidationError as error:
        raise Refusal(400, describe_request_mistake(error, options)) from None
    except (ValueError, RecursionError):
        raise Refusal(400, f"the body is no JSON: {body[:60]!r}; {FORM}") from None
    if len(question.queries) > options.max_queries:
        raise Refusal(413, f"{len(question.queries)} queries; send at most {options.max_queries} in a request")
    longest = max(map(len, question.queries), default=0)
    if longest > options.max_characters:
        raise Refusal(413, f"a query has {longest:,} characters; at most {options.max_characters:,} are taken")
    topk = options.topk if question.topk is None else question.topk
    if not 1 <= topk <= options.max_topk:
        raise Refusal(400, f"topk is {topk}; expected null or a number from 1 to {options.max_topk}")
    return question.model_copy(update={"topk": topk})


def describe_request_mistake(error: ValidationError, options: ServiceOptions) -> str:
    expected = {"topk": f"null or a number from 1 to {options.max_topk}", "return_scores": "true or false"}
    first = min(error.errors(), key=lambda mistake: mistake["type"] != "extra_forbidden")  # a misspelt key, above all
    name, value = str(first["loc"][0])[:60] if first["loc"] else "", first["input"]
    if not name:
        return f"the body is a {type(value).__name__}; {FORM}"
    if first["type"] == "extra_forbidden":
        return f"unknown key {name!r}; {FORM}"
    if name in expected:
        return f"{name} is {str(value)[:60]}; expected {expected[name]}"
    return f"queries is no list of texts; {FORM}"


def answer_requests_together(search: Search, questions: Sequence[RetrieveRequest]) -> list[bytes | Exception]:
    """The body of each answer. When a search fails, each question is asked alone: only those that cannot be answered
    get the failure."""
    try:
        asked = [query for question in questions for query in question.queries if query.strip()]
        found = iter(search(asked, questions[0].topk or 0) if asked else [])
        return [build_response_body(question, found) for question in questions]
    except Exception as error:
        if len(questions) == 1:
            return [error]
        return [body for question in questions for body in answer_requests_together(search, [question])]


def build_response_body(question: RetrieveRequest, found: Iterator[Sequence[Hit]]) -> bytes:
    """A blank query finds nothing."""
    result = [
        [build_response_entry(hit, question.return_scores) for hit in next(found)] if query.strip() else []
        for query in question.queries
    ]
    return json.dumps({"result": result}, ensure_ascii=False).encode(errors="replace")


def build_response_entry(hit: Hit, with_score: bool) -> dict[str, Any]:
    title = " ".join((hit.chunk.title or hit.chunk.document).split())
    text = hit.chunk.text
    document = {"id": hit.chunk.id, "contents": f'"{title}"\n{text}', "title": title, "text": text}
    return {"document": document, "score": hit.score} if with_score else document


def run_service(
    search: Search, options: ServiceOptions, facts: Mapping[str, Any], ready: Callable[[str], None]
) -> None:
    """Answers until it is interrupted. ready: called with the URL once it listens."""
    uvicorn = require("uvicorn", "serve", "to serve a knowledge base")
    app = build_service(search, options, facts)
    settings = uvicorn.Config(app, log_level="warning", access_log=False, timeout_keep_alive=30)
    listener = listen_for_requests(options)
    host = f"[{options.host}]" if ":" in options.host else options.host
    ready(f"http://{host}:{listener.getsockname()[1]}/retrieve")
    uvicorn.Server(settings).run(sockets=[listener])


def listen_for_requests(options: ServiceOptions) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in options.host else socket.AF_INET)
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
