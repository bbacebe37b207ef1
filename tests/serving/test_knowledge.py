"""The retriever service on a real port of this machine, asked by our client and by hand."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from aurify.errors import UserError
from aurify.knowledge.client import Passage, RetrieverClient, RetrieverError, RetrieverOptions, read_passages
from aurify.knowledge.types import Chunk, Document, Hit
from aurify.serving.knowledge import (
    LOOPBACK,
    Line,
    RetrieveRequest,
    ServiceOptions,
    build_service,
    listen_for_requests,
    parse_request,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "knowledge"))
from words import WordEmbedder

uvicorn = pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx")

TEXTS = {"sky": "The sky is blue.", "sea": "The sea is green\nand salty.", "ö": "Öl schwimmt oben 🛢."}


def search(queries, topk):
    """Texts by the number of words that they share with a query."""

    def hits(query):
        if "explode" in query:
            raise RuntimeError("a secret of the machine")
        if "nonsense filter" in query:
            raise UserError("search: limit is 0; expected 1 or more")
        words = set(query.lower().split())
        scored = [(len(words & set(text.lower().replace(".", "").split())), name) for name, text in TEXTS.items()]
        found = sorted((-score, name) for score, name in scored if score)[:topk]
        return [
            Hit(Chunk(f"{name}.txt", 0, TEXTS[name], 0, 1, 1, 1, title=f"About\n{name}"), float(-score))
            for score, name in found
        ]

    return [hits(query) for query in queries]


@contextmanager
def served(app):
    listener = listen_for_requests(ServiceOptions(port=0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/retrieve"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="module")
def url():
    options = ServiceOptions(max_topk=10, max_queries=20, max_characters=2_000, max_bytes=100_000, seconds=2)
    with served(build_service(search, options, {"documents": 3})) as place:
        yield place


def post(url, body, **options):
    with httpx.Client(trust_env=False, timeout=10) as client:
        return client.post(url, **({"content": body} if isinstance(body, bytes) else {"json": body}), **options)


def test_the_answer_has_one_list_a_query_with_scores(url):
    body = {"queries": ["blue sky", "nothing", "", "the sea is"], "topk": 2, "return_scores": True}
    result = post(url, body).json()["result"]
    assert [len(entries) for entries in result] == [1, 0, 0, 2]
    document = {"id": "sea.txt#0", "contents": f'"About sea"\n{TEXTS["sea"]}', "title": "About sea"}
    assert result[3][0] == {"document": document | {"text": TEXTS["sea"]}, "score": 3.0}


def test_without_scores_the_documents_stand_alone_and_topk_may_be_null(url):
    result = post(url, {"queries": ["the is öl"], "topk": None, "return_scores": False}).json()["result"]
    assert [document["title"] for document in result[0]] == ["About sea", "About sky", "About ö"]
    assert all(set(document) == {"id", "contents", "title", "text"} for document in result[0])
    assert post(url, {"queries": ["the"]}).status_code == 200
    assert post(url, {"queries": []}).json() == {"result": []}


def test_health_tells_the_facts(url):
    answer = httpx.get(url.replace("/retrieve", "/health"), trust_env=False).json()
    assert answer == {"status": "ok", "documents": 3}


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"", 400, "no JSON"),
        (b"queries=x", 400, "no JSON"),
        (b"\xff\xfe\x00", 400, "no JSON"),
        (b"[" * 90_000, 400, "no JSON"),
        (b'{"queries": ["a"], "topk": ' + b"9" * 5_000 + b"}", 400, "no JSON"),
        (["a"], 400, "the body is a list"),
        ({"query": "a"}, 400, "unknown key 'query'"),
        ({"topk": 3}, 400, "no list of texts"),
        ({"queries": "a"}, 400, "no list of texts"),
        ({"queries": ["a", 3]}, 400, "no list of texts"),
        ({"queries": ["a"], "topk": 0}, 400, "from 1 to 10"),
        ({"queries": ["a"], "topk": 11}, 400, "from 1 to 10"),
        ({"queries": ["a"], "topk": True}, 400, "topk is True"),
        ({"queries": ["a"], "topk": "many"}, 400, "topk is many"),
        ({"queries": ["a"], "return_scores": "yes"}, 400, "expected true or false"),
        ({"queries": ["a"] * 21}, 413, "at most 20"),
        ({"queries": ["a" * 2_001]}, 413, "2,001 characters"),
        (b'{"queries": ["' + b"a" * 5_000_000 + b'"]}', 413, "more than 100,000 bytes"),
        ({"queries": ["nonsense filter"]}, 400, "limit is 0"),
        ({"queries": ["explode"]}, 500, "RuntimeError"),
    ],
)
def test_a_bad_request_gets_a_reason_and_the_next_one_an_answer(url, body, status, reason):
    answer = post(url, body)
    assert answer.status_code == status
    assert reason in answer.json()["error"]
    assert "secret" not in answer.text
    assert post(url, {"queries": ["sky"]}).status_code == 200


def test_text_that_is_no_text_does_no_harm(url):
    body = json.dumps({"queries": ["\ud800 sky", "\x00 blue", "' OR 1=1 --"]}).encode()  # a lone surrogate first
    result = post(url, body).json()["result"]
    assert [len(entries) for entries in result] == [1, 1, 0]


def test_a_request_without_an_end_is_given_up(url):
    host, port = url.split("/")[2].split(":")
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(f"POST /retrieve HTTP/1.1\r\nHost: {host}\r\nContent-Length: 100\r\n\r\n{{".encode())
        slow.settimeout(10)
        assert b" 408 " in slow.recv(100).splitlines()[0]


def test_other_paths_and_methods_are_no_way_in(url):
    with httpx.Client(trust_env=False) as client:
        assert client.get(url).status_code == 405
        assert client.post(url.replace("retrieve", "%2e%2e/etc/passwd"), json={}).status_code == 404


def test_a_name_that_a_web_page_points_here_is_refused(url):
    for host, status in (("evil.example", 421), ("127.0.0.1.evil.example", 421), ("localhost:1", 200), ("[::1]", 200)):
        assert post(url, {"queries": ["sky"]}, headers={"Host": host}).status_code == status


def test_it_stays_on_this_machine_unless_told_otherwise():
    assert ServiceOptions().host in LOOPBACK
    with listen_for_requests(ServiceOptions(port=0)) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
        with pytest.raises(UserError, match="choose another --port"):
            listen_for_requests(ServiceOptions(port=listener.getsockname()[1]))


def test_too_many_at_once_are_sent_away_and_come_back():
    calls = []

    def slow(queries, topk):
        calls.append(queries)
        time.sleep(0.15)
        return search(queries, topk)

    async def ask(url):
        options = RetrieverOptions(url, retries=8)
        async with RetrieverClient(options) as client:
            return await asyncio.gather(*(client.retrieve(["sky"]) for _ in range(6)))

    with served(build_service(slow, ServiceOptions(max_waiting=1))) as url:
        answers = asyncio.run(ask(url))
        assert [answer[0][0].title for answer in answers] == ["About sky"] * 6
        assert len(calls) == 6


def test_what_comes_during_a_search_is_searched_for_together():
    calls, errors = [], ("explode", "nonsense filter")

    def slow(queries, topk):
        calls.append((queries, topk))
        time.sleep(0.2)
        return search(queries, topk)

    async def ask(url):
        bodies = [{"queries": ["sky"]}, *({"queries": ["the is", word]} for word in ("sea", "öl", "", "blue"))]
        bodies += [{"queries": ["is"], "topk": 1}, *({"queries": [word]} for word in errors)]
        async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
            first = asyncio.create_task(client.post(url, json=bodies[0]))
            while not calls:
                await asyncio.sleep(0.01)
            rest = asyncio.gather(*(client.post(url, json=body) for body in bodies[1:]))
            health = await client.get(url.replace("/retrieve", "/health"))
            assert health.status_code == 200 and len(calls) == 1  # searching does not block the service
            return [await first, *await rest]

    with served(build_service(slow, ServiceOptions())) as url:
        answers = asyncio.run(ask(url))
    assert [answer.status_code for answer in answers] == [200] * 6 + [500, 400]
    found = [[[entry["title"] for entry in entries] for entries in answer.json()["result"]] for answer in answers[:6]]
    both = ["About sea", "About sky"]
    assert found == [[["About sky"]], *([both, one] for one in (both[:1], ["About ö"], [], both[1:])), [both[:1]]]
    together, *alone = calls[1:]
    assert len(together[0]) == 9 and together[1] == 3  # blank ones are not asked
    assert len(alone) == 7  # one wants another number of passages; six are asked again, because two of them failed


def test_a_line_takes_no_more_queries_together_than_one_request_may_have():
    async def run():
        line = Line(search, ServiceOptions(max_queries=4))
        questions = [RetrieveRequest(queries=["sky"] * num, topk=3) for num in (2, 3, 2, 1)]
        answers = [asyncio.ensure_future(line.answer(question)) for question in questions]
        line.serving = asyncio.current_task()  # nobody serves yet
        await asyncio.sleep(0)
        taken = [[len(question.queries) for question, _ in line.take_batch()] for _ in range(3)]
        for answer in answers:
            answer.cancel()
        return taken

    assert asyncio.run(run()) == [[2, 2], [3, 1], []]


def test_the_client_asks_in_parts_and_keeps_the_order(url):
    async def ask():
        async with RetrieverClient(RetrieverOptions(url, topk=1, max_queries=2)) as client:
            return await client.retrieve(["sky", "none", "sea", "öl", "blue"])

    answers = asyncio.run(ask())
    assert [[passage.title for passage in passages] for passages in answers] == [
        ["About sky"],
        [],
        ["About sea"],
        ["About ö"],
        ["About sky"],
    ]
    assert answers[2] == [Passage("sea.txt#0", "About sea", TEXTS["sea"], 1.0)]


def test_the_client_reads_what_other_retrievers_answer():
    plain = {"id": 7, "contents": '"Title"\nText\nmore'}
    scored = {"document": plain, "score": 2}
    assert read_passages({"result": [[plain, scored], [{"text": "t", "title": "T"}], [{"contents": "bare"}]]}, 3) == [
        [Passage("7", "Title", "Text\nmore"), Passage("7", "Title", "Text\nmore", 2.0)],
        [Passage("", "T", "t")],
        [Passage("", "", "bare")],
    ]
    for wrong in ({}, [], {"result": {}}, {"result": [[]]}, {"result": [["text"], []]}, {"result": [[{"id": 1}], []]}):
        with pytest.raises(ValueError, match=r"no list|lists for|no document"):
            read_passages(wrong, 2)


@pytest.mark.parametrize(
    ("answers", "retries", "said"), [((503, 200), 1, None), ((500, 503), 1, "503"), ((404,), 3, "404")]
)
def test_the_client_tries_again_where_it_may_help(answers, retries, said):
    given = iter(answers)

    async def app(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": next(given), "headers": []})
            await send({"type": "http.response.body", "body": b'{"result": [[]]}'})

    async def ask(url):
        async with RetrieverClient(RetrieverOptions(url, retries=retries)) as client:
            return await client.retrieve(["x"])

    with served(app) as url:
        if said is None:
            assert asyncio.run(ask(url)) == [[]]
        else:
            with pytest.raises(RetrieverError, match=said):
                asyncio.run(ask(url))
    assert next(given, None) is None


def test_the_client_gives_up_on_nobody_and_on_silence():
    with listen_for_requests(ServiceOptions(port=0)) as silent:

        async def ask():
            url = f"http://127.0.0.1:{silent.getsockname()[1]}/retrieve"
            async with RetrieverClient(RetrieverOptions(url, seconds=0.2, retries=1)) as client:
                await client.retrieve(["x"])

        with pytest.raises(RetrieverError, match=r"after 2 attempts, ReadTimeout"):
            asyncio.run(ask())
    with pytest.raises(RetrieverError, match=r"after 2 attempts, ConnectError"):
        asyncio.run(ask_closed())


async def ask_closed():
    with listen_for_requests(ServiceOptions(port=0)) as listener:
        port = listener.getsockname()[1]
    async with RetrieverClient(RetrieverOptions(f"http://127.0.0.1:{port}/retrieve", retries=1)) as client:
        await client.retrieve(["x"])


@pytest.mark.parametrize(
    ("options", "said"),
    [({"topk": 0}, "topk: 0"), ({"topk": 9, "max_topk": 3}, "above max_topk"), ({"port": 70_000}, "port: 70000")],
)
def test_wrong_options_of_the_service_are_named(options, said):
    with pytest.raises(UserError, match=said):
        ServiceOptions(**options)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"url": "localhost:8000"}, "expected something like"), ({"seconds": 0}, "above 0"), ({"topk": 0}, "topk: 0")],
)
def test_wrong_options_of_the_client_are_named(options, said):
    with pytest.raises(UserError, match=said):
        RetrieverOptions(**options)


def test_the_defaults_take_a_whole_batch_of_rollouts():
    body = json.dumps({"queries": ["who wrote it?"] * 512, "topk": 5}).encode()
    assert len(parse_request(body, ServiceOptions()).queries) == 512


def test_a_knowledge_base_is_served_by_the_command_until_it_is_interrupted(tmp_path):
    pytest.importorskip("lancedb")
    from aurify.knowledge.knowledge_base import KnowledgeBase

    base = KnowledgeBase.create(tmp_path / "kb" / "notes", WordEmbedder())
    base.add([Document("sky.txt", TEXTS["sky"], "Sky"), Document("sea.txt", TEXTS["sea"], "Sea")])
    arguments = ["kb", "serve", "--kb", "notes", "--port", "0", "--mode", "bm25"]  # by words: no model is loaded
    command = [sys.executable, "-u", "-m", "aurify.cli.main", *arguments]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ
    ) as process:
        try:
            first = process.stdout.readline()
            assert "kb/notes: POST http://127.0.0.1:" in first, first + process.stdout.read()
            url = first.split()[2]
            result = post(url, {"queries": ["salty", "blue"], "topk": 1, "return_scores": True}).json()["result"]
            found = [[entry["document"]["id"] for entry in entries] for entries in result]
            assert found == [["sea.txt#0"], ["sky.txt#0"]]
            base.add([Document("sun.txt", "The sun is hot.", "Sun")])
            assert post(url, {"queries": ["hot"]}).json()["result"][0][0]["title"] == "Sun"  # at once
            for query in ('" OR (', "*", "title:x", "a AND NOT", "\x00", "\ud800", "x" * 7_000, "~^\\"):
                body = json.dumps({"queries": [query]}).encode()
                assert post(url, body).status_code == 200, query
        finally:
            process.send_signal(signal.SIGINT)
            rest = process.stdout.read()
    assert process.returncode in (0, 130)
    assert "Traceback" not in rest
