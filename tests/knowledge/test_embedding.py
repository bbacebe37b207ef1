"""Embedders: a tiny model of our own in a folder; the way of the wheel through pip with a local one; the real MiniLM
where its package is installed."""

from __future__ import annotations

import hashlib
import importlib.util
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from aurify.errors import UserError
from aurify.knowledge import embedding
from aurify.knowledge.embedding import MINILM, SentenceEmbedder, batch_texts_by_length, find_embedder, load_embedder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "fish", "swims", "in", "sea", "query", ":", "dog", "runs"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random BERT of two layers, with prompts as E5 has them, and a window of 16 tokens."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("tiny")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(folder / "bert")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    bert = Transformer(str(folder / "bert"), max_seq_length=16)
    model = SentenceTransformer(modules=[bert, Pooling(24)], prompts={"query": "query: ", "document": ""}, device="cpu")
    model.save(str(folder / "model"))
    return folder / "model"


@pytest.fixture(scope="module")
def embedder(folder):
    return load_embedder(str(folder))


def test_vectors_have_length_one_and_know_queries_from_documents(embedder):
    texts = ["the fish swims", "the dog runs in the sea", "", "fish"]
    documents, queries = embedder.embed_documents(texts), embedder.embed_queries(texts)
    assert embedder.dim == 24 and documents.shape == queries.shape == (4, 24)
    assert documents.dtype == queries.dtype == np.float32
    assert np.linalg.norm(documents, axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    assert np.abs(documents - queries).max() > 0.01
    assert queries == pytest.approx(embedder.embed_documents([f"query: {text}" for text in texts]), abs=1e-5)
    assert documents[3:] == pytest.approx(embedder.embed_documents(["fish"]), abs=1e-5)  # padding changes nothing
    assert embedder.embed_queries([]).shape == (0, 24)


def test_tokens_are_counted_beyond_the_window(embedder):
    assert embedder.max_tokens == 16
    assert embedder.count_tokens(["", "fish", "the fish " * 100]) == [2, 3, 202] and embedder.count_tokens([]) == []
    seen, more = "the fish " * 7, "the fish " * 7 + "dog dog dog"
    assert embedder.embed_documents([seen]) == pytest.approx(embedder.embed_documents([more]), abs=1e-6)


@pytest.mark.parametrize("texts", [["fish"], ["the sea " * 30], ["fish", "the fish swims in the sea", "", "dog"]])
def test_queries_get_the_vectors_of_encode(embedder, texts):
    found = embedder.embed_queries(texts)
    assert embedder._plain["query"]
    expected = embedder.model.encode_query(texts, normalize_embeddings=True)
    assert found == pytest.approx(expected, abs=1e-5)


def test_documents_get_the_vectors_of_encode_in_their_order(embedder):
    texts = [" ".join(WORDS[5 : 6 + (7 * number) % 9] * (1 + number % 3)) for number in range(100)]
    expected = embedder.model.encode_document(texts, normalize_embeddings=True)
    assert embedder.embed_documents(texts) == pytest.approx(expected, abs=1e-5)


def test_batches_are_bounded_in_rows_and_characters_and_hold_every_text():
    lengths = [5, 100, 0, 30, 30, 30, 7, 1000, 2]
    made = list(batch_texts_by_length(lengths, max_rows=4, max_chars=100))
    assert sorted(index for batch in made for index in batch) == list(range(9))
    assert made == [[7], [1], [3, 4, 5], [6, 0, 8, 2]]
    assert list(batch_texts_by_length([], 4, 100)) == []


def test_a_model_that_wants_more_is_asked_by_encode(folder):
    """One that cuts its vectors, and one whose modules cannot be called by themselves."""
    from sentence_transformers import SentenceTransformer

    class Demanding(SentenceTransformer):
        def preprocess(self, inputs, prompt=None, **kwargs):
            if kwargs.pop("show", None) is None:
                raise TypeError("show is missing")
            return super().preprocess(inputs, prompt, **kwargs)

        def encode_query(self, inputs, **kwargs):
            self.preprocess(inputs, show=True)
            return np.ones((len(inputs), 24), np.float32)

    for model in (SentenceTransformer(str(folder), truncate_dim=8), Demanding(str(folder))):
        embedder = SentenceEmbedder("special", model.eval())
        found = embedder.embed_queries(["the fish", "dog"])
        assert not embedder._plain["query"] and found.shape == (2, embedder.dim)
        assert np.array_equal(found, model.encode_query(["the fish", "dog"], normalize_embeddings=True))


def test_cores_embed_what_one_does(embedder):
    """Also when several embed at once."""
    texts = ["the fish swims " * (1 + number % 9) for number in range(90)]
    expected = embedder.embed_documents(texts)
    held = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        others = SentenceEmbedder("another", embedder.model)
        with ThreadPoolExecutor(4) as threads:
            for found in threads.map(others.embed_documents, [texts] * 8):
                assert found == pytest.approx(expected, abs=1e-6)
        assert others._cores.parts == 3
    finally:
        torch.set_num_threads(held)


def test_a_question_alone_has_the_vector_of_encode(embedder):
    for text in ("the fish", "dog " * 40, ""):
        expected = embedder.model.encode_query([text], normalize_embeddings=True)
        assert embedder.embed_queries([text]) == pytest.approx(expected, abs=1e-5)


def test_threads_do_not_disturb_each_other(embedder):
    """A service searches in several at once."""
    texts = [" ".join(WORDS[5 : 6 + number % 9]) for number in range(40)]
    expected = [(embedder.embed_queries([text]), embedder.count_tokens([text])) for text in texts]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda text: (embedder.embed_queries([text]), embedder.count_tokens([text])), texts))
    for (vectors, counts), (other_vectors, other_counts) in zip(found, expected, strict=True):
        assert np.array_equal(vectors, other_vectors) and counts == other_counts


def test_what_is_no_model_is_said_plainly(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="neither a folder, a hub id"):
        load_embedder("minilm")
    with pytest.raises(UserError, match=r"neither modules\.json nor config\.json \(it holds nothing"):
        load_embedder(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_embedder(str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find_embedder("owner/model") == "owner/model"


@pytest.fixture
def wheel(folder, tmp_path, monkeypatch):
    """The tiny model in a package that pip finds, and nothing of the kind installed."""
    made = tmp_path / "registry" / "tiny_words-0.1-py3-none-any.whl"
    made.parent.mkdir()
    with zipfile.ZipFile(made, "w") as archive:
        for file in folder.rglob("*"):
            archive.write(file, f"tiny_words/model/{file.relative_to(folder)}")
        archive.writestr("tiny_words/__init__.py", "raise RuntimeError('never imported')")
        archive.writestr("tiny_words-0.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-words\nVersion: 0.1\n")
        archive.writestr(
            "tiny_words-0.1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_words-0.1.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(made.parent))
    monkeypatch.setenv("AURIFY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedding, "MODULE", "tiny_words")
    monkeypatch.setattr(embedding, "INSIDE", "tiny_words/model")
    monkeypatch.setattr(embedding, "PACKAGE", "tiny-words==0.1")
    monkeypatch.setattr(embedding, "SHA256", hashlib.sha256(made.read_bytes()).hexdigest())
    return made


def test_the_wheel_is_fetched_once_and_used_from_the_cache(wheel, tmp_path, embedder):
    cached = tmp_path / "cache" / "models" / MINILM
    loaded = load_embedder("sentence-transformers/all-MiniLM-L6-v2")
    assert np.array_equal(loaded.embed_documents(["fish"]), embedder.embed_documents(["fish"]))
    assert sorted(path.name for path in cached.parent.iterdir()) == [MINILM, f"{MINILM}.lock"]
    assert {path.name for path in cached.iterdir()} >= {"modules.json", "model.safetensors"}
    wheel.unlink()
    assert find_embedder(MINILM) == str(cached)


def test_another_wheel_than_the_known_one_is_not_used(wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "SHA256", "0" * 64)
    with pytest.raises(UserError, match=r"SHA-256 [0-9a-f]{64}, expected 0{64}; it is not used"):
        find_embedder(MINILM)
    assert not (tmp_path / "cache" / "models" / MINILM).exists()


@pytest.mark.skipif(not importlib.util.find_spec(embedding.MODULE), reason="MiniLM's package is not installed")
def test_minilm_knows_what_belongs_together():
    minilm = load_embedder()
    texts = ["How do fish breathe?", "What is (are) Lung Cancer ?"]
    expected = minilm.model.encode_query(texts, normalize_embeddings=True)
    for num in (1, 2):
        assert minilm.embed_queries(texts[:num]) == pytest.approx(expected[:num], abs=1e-5)
    assert minilm._plain["query"]
    assert (minilm.dim, minilm.max_tokens) == (384, 256)
    query = minilm.embed_queries(["How do fish breathe?"])[0]
    scores = minilm.embed_documents(["Gills take oxygen out of water.", "Stocks fell on Monday."]) @ query
    assert scores[0] > 0.4 > 0.2 > scores[1]
