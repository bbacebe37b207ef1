"""Rewards of the shape of a reply: tags, likeness, length, repetition, language."""

from __future__ import annotations

import itertools
import random

import pytest
from said import rewarded

from aurify.errors import UserError
from aurify.rewards.format import num_words, repetition, tags
from aurify.rewards.language import language
from aurify.rewards.text import choice_match, common_subsequence, rouge_l, word_f1


@pytest.mark.parametrize(
    ("text", "whole", "share"),
    [
        ("<think>a</think> <answer>b</answer>\n", 1.0, 1.0),
        ("<think>a\nb</think><answer>c < d</answer>", 1.0, 1.0),
        ("<think></think><answer>b</answer>", 0.0, 0.25),
        ("so <think>a</think><answer>b</answer>", 0.0, 0.0),
        ("<think>a</think> so <answer>b</answer>", 0.0, 0.5),
        ("<think>a</think><answer>b</answer> so", 0.0, 1.0),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0.0, 1.0),
        ("<think>a<think>b</think><answer>c</answer>", 0.0, 0.25),
        ("<answer>b</answer><think>a</think>", 0.0, 0.0),
        ("<think>a</think><answer>b", 0.0, 0.75),
        ("", 0.0, 0.0),
    ],
)
def test_tags(text, whole, share):
    assert rewarded(tags(), text) == whole
    assert rewarded(tags(partial=True), text) == share


def test_tags_that_the_prompt_has_opened():
    assert rewarded(tags(opened=True), "a</think><answer>b</answer>") == 1.0
    assert rewarded(tags(opened=True), "<think>a</think><answer>b</answer>") == 0.0
    assert rewarded(tags(opened=True, partial=True), "") == 0.0
    assert rewarded(tags(["plan"]), "<plan>x</plan>") == 1.0
    for order in ([], "think", ["a", "a"]):
        with pytest.raises(UserError, match="expected a list of different names"):
            tags(order)


def test_rouge_and_f1():
    """reply "the cat sat on a mat" (6 words), answer "the cat on the mat" (5): in order the, cat, on, mat = 4 common;
    in any order the same 4. F1 = 2 * 4 / 11."""
    text, answer = "The cat sat on a mat.", "the cat on the mat"
    assert rewarded(rouge_l, text, answer) == rewarded(word_f1, text, answer) == pytest.approx(8 / 11)
    assert rewarded(rouge_l, "mat the on cat the", answer) == pytest.approx(2 * 3 / 10)  # the, on, the
    assert rewarded(word_f1, "mat the on cat the", answer) == 1.0
    assert rewarded(rouge_l, "b", answer, answers=["a", "b"]) == 1.0
    assert rewarded(rouge_l, "", answer) == 0.0
    assert rewarded(rouge_l, "x") is None
    assert rewarded(word_f1, "x") is None


def test_the_longest_common_subsequence_against_trying_all():
    generator = random.Random(0)
    for _ in range(100):
        a = generator.choices("abc", k=generator.randrange(7))
        b = generator.choices("abc", k=generator.randrange(7))
        every = {c for n in range(len(a) + 1) for c in itertools.combinations(a, n)}
        every &= {c for n in range(len(b) + 1) for c in itertools.combinations(b, n)}
        assert common_subsequence(a, b) == max(map(len, every))


def test_number_of_words():
    scores = [rewarded(num_words(4, 5), "w " * n) for n in (0, 2, 4, 5, 10)]
    assert scores == [0.0, 0.5, 1.0, 1.0, 0.5]
    assert rewarded(num_words(), "any") == 1.0
    with pytest.raises(UserError, match="no reply can have so many"):
        num_words(5, 4)


def test_repetition():
    assert rewarded(repetition(2), "a b a b a") == pytest.approx(-2 / 4)  # ab ba ab ba
    assert rewarded(repetition(), "one two three four five") == 0.0
    assert rewarded(repetition(), "a b c") == 0.0
    assert rewarded(repetition(2), "哈哈哈哈哈哈") == pytest.approx(1 / 5 - 1)
    assert rewarded(repetition(), "again and " * 100) < -0.95


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("The largest of these numbers is the one which you have at the end of the list.", "en"),
        ("Die größte von diesen Zahlen ist die, die am Ende der Liste steht.", "de"),
        ("Le plus grand de ces nombres est celui qui est à la fin de la liste.", "fr"),
        ("El número más grande de la lista es el que está al final.", "es"),
        ("Il numero più grande della lista è quello che si trova alla fine.", "it"),
        ("O maior número da lista é o que está no fim, mas não sei.", "pt"),
        ("Het grootste getal van de lijst is het getal dat aan het einde staat.", "nl"),
        ("Самое большое число стоит в конце списка.", "ru"),
        ("列表中最大的数字在最后。", "zh"),
        ("リストの中で一番大きい数字は最後にあります。", "ja"),
        ("가장 큰 숫자는 목록의 끝에 있습니다.", "ko"),
    ],
)
def test_language(text, code):
    assert rewarded(language(code), text) == 1.0
    for other in {"en", "de", "fr", "es", "it", "pt", "nl", "ar", "ko"} - {code}:
        assert rewarded(language(other), text) == 0.0, other


def test_language_of_mixtures():
    assert 0.2 < rewarded(language("ru"), "Самое большое число is the last one") < 0.9
    assert rewarded(language("ja"), "最大的数字") == 0.0
    assert rewarded(language(), "12 + 3") is None
    assert rewarded(language("de"), "Das ist so:\n```python\nprint('the of and')\n```") == 1.0
    with pytest.raises(UserError, match="'xx' is not among the languages it can tell: ar, de,"):
        language("xx")


def test_choices():
    assert rewarded(choice_match, "A is wrong. The answer is (B).", "B") == 1.0
    assert rewarded(choice_match, "The answer is B", "(A)") == 0.0
    assert rewarded(choice_match, "Because", "B") == 0.0
    with pytest.raises(ValueError, match="no single letter"):
        rewarded(choice_match, "A", "Paris")
