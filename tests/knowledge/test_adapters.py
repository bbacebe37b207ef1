"""Real ChromaDB and FAISS, against the exact answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from aurify.errors import UserError
from aurify.knowledge.adapters import open_chroma, open_faiss, search_faiss
from aurify.knowledge.knowledge_base import KnowledgeBase
from aurify.knowledge.types import Retriever

sys.path.insert(0, str(Path(__file__).parent))
from words import WordEmbedder, some_documents

EMBEDDER = WordEmbedder()
DOCUMENTS = some_documents(30)
VECTORS = EMBEDDER.embed_documents([document.text for document in DOCUMENTS])
QUERIES = ["word1 word5", "word77 word3 word2", "word9"]
ODD = {"parity": "odd", "number": {">": 5, "<=": 21}}


def expected(query, limit, allowed=lambda document: True):
    scores = VECTORS @ EMBEDDER.embed_queries([query])[0]
    ranked = sorted(zip(-scores, (document.id for document in DOCUMENTS), DOCUMENTS, strict=True))
    return [(id, pytest.approx(-score, abs=1e-5)) for score, id, document in ranked if allowed(document)][:limit]


def check(search: Retriever):
    for query, hits in zip(QUERIES, search(QUERIES, 4), strict=True):
        assert [(hit.chunk.document, hit.score) for hit in hits] == expected(query, 4)
        assert [hit.ranks["dense"] for hit in hits] == [1, 2, 3, 4]
        texts = {document.id: document.text for document in DOCUMENTS}
        assert all(hit.chunk.text == texts[hit.chunk.document] for hit in hits)
    assert search([]) == []
    assert len(search(["x"], 99)[0]) == 30


@pytest.mark.parametrize("space", ["cosine", "ip", "l2"])
def test_a_chroma_collection(tmp_path, space):
    chromadb = pytest.importorskip("chromadb")
    with pytest.raises(UserError, match="holds no ChromaDB"):
        open_chroma(tmp_path, "notes", EMBEDDER)
    client = chromadb.PersistentClient(str(tmp_path), chromadb.config.Settings(anonymized_telemetry=False))
    collection = client.create_collection("notes", embedding_function=None, configuration={"hnsw": {"space": space}})
    with pytest.raises(UserError, match="no collection 'other'; it has notes"):
        open_chroma(tmp_path, "other", EMBEDDER)
    assert open_chroma(tmp_path, "notes", EMBEDDER)(["x"]) == [[]]
    collection.add(
        ids=[document.id for document in DOCUMENTS],
        embeddings=VECTORS,
        documents=[document.text for document in DOCUMENTS],
        metadatas=[dict(document.metadata) for document in DOCUMENTS],
    )
    check(open_chroma(tmp_path, "notes", EMBEDDER))
    odd = {"$and": [{"parity": "odd"}, {"number": {"$gt": 5}}, {"number": {"$lte": 21}}]}
    for query, hits in zip(QUERIES, open_chroma(tmp_path, "notes", EMBEDDER, where=odd)(QUERIES, 4), strict=True):
        wanted = expected(query, 4, lambda document: document.metadata["number"] in range(7, 22, 2))
        assert [(hit.chunk.document, hit.score) for hit in hits] == wanted


@pytest.mark.parametrize("kind", ["IndexFlatIP", "IndexFlatL2"])
def test_a_faiss_index(kind):
    faiss = pytest.importorskip("faiss")
    index = getattr(faiss, kind)(EMBEDDER.dim)
    index.add(VECTORS)
    check(search_faiss(index, DOCUMENTS, EMBEDDER))
    with pytest.raises(UserError, match="has 30 vectors, and 29 are needed"):
        search_faiss(index, DOCUMENTS[1:], EMBEDDER)
    with pytest.raises(UserError, match="has 256 numbers a vector, and 8 are needed"):
        search_faiss(index, DOCUMENTS, WordEmbedder(8))


def test_the_files_of_search_r1(tmp_path):
    faiss = pytest.importorskip("faiss")
    index = faiss.IndexFlatIP(EMBEDDER.dim)
    index.add(VECTORS[:2])
    faiss.write_index(index, str(tmp_path / "e5.index"))
    lines = [{"id": 7, "contents": '"A title"\nand\ntext'}, {"id": "8", "contents": "text alone"}]
    corpus = tmp_path / "wiki.jsonl"
    with pytest.raises(UserError, match=r"there is no file .*wiki\.jsonl"):
        open_faiss(tmp_path / "e5.index", corpus, EMBEDDER)
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
    search = open_faiss(tmp_path / "e5.index", corpus, EMBEDDER)
    (hits,) = search([DOCUMENTS[0].text], 1)
    assert (hits[0].chunk.document, hits[0].chunk.title, hits[0].chunk.text) == ("7", "A title", "and\ntext")
    assert hits[0].score == pytest.approx(1, abs=1e-5)
    corpus.write_text('{"id": 1}\n')
    with pytest.raises(UserError, match=r"wiki\.jsonl:1: expected"):
        open_faiss(tmp_path / "e5.index", corpus, EMBEDDER)


def test_a_knowledge_base_speaks_the_same_protocol(tmp_path):
    kb = KnowledgeBase.create(tmp_path / "kb", EMBEDDER)
    kb.add(DOCUMENTS)
    search: Retriever = kb.search_many
    assert [len(hits) for hits in search(QUERIES, 4)] == [4, 4, 4]
    assert np.all([hit.metadata["parity"] == "odd" for hit in kb.search_many(QUERIES, 4, where=ODD)[0]])
