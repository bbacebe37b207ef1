"""Letters, exact answers and likeness: what people write, what reads alike, and any script."""

from __future__ import annotations

import unicodedata

import pytest
from said import rewarded

from aurify.rewards.choices import read_choice
from aurify.rewards.text import choice_match, contains_answer, exact_match, rouge_l, word_f1
from aurify.rewards.words import list_words

CHOICES = {
    "B": [
        "The answer is (B).",
        "B. I hope this helps!",
        "**B**",
        "b",
        "(b)",
        "B)",
        "B:",
        "B\n\nC is wrong.",
        "The answer is B, because vitamin C is in fruit.",
        "Answer: B\n\nA is wrong, since it is too small.",
        "\\boxed{B}",
        "\\boxed{\\text{B}}",
        "$\\boxed{\\text{(B)}}$",
        "\\boxed{\\textbf{(B)}\\ 12}",
        "Option B.",
        "B) Paris",
        "(B) Paris",
        "The answer is B.\nLet me know. A great question!",
        "<answer>B</answer>",
        "<answer>The answer is (B).</answer>",
        "The correct option is B. A and C are too small.",
        "**Answer:** B",
        "Answer: **B) Paris**",
        "The answer is: B",
        "The answer is **(B)**, as the table says.",
        "The answer to question 3 is B.",
        "So the answer must be B!",
        "B is correct.",
        "B is the right answer. A is not.",
        "I would choose B.",
        "I'll go with option B, since A is too long.",
        "The answer is A. Wait, no: the answer is B.",
        "Comparing A, C and D, none holds.\n\nB",
        "A. Too small.\nB. Right.\nC. Too large.\n\nAnswer: B",
        "It is B.",
        "I think (B) fits.",
        "答案是B。",
        "答案\uff1a\uff08B\uff09",
        "选B",
        "The answer is $\\text{B}$.",
        "\uff08\uff22\uff09",
        "The answer is b.",
        "The answer is B and I am sure.",
        "Answer: `B`",
    ],
    "A": [
        "The answer is A.",
        "A",
        "A) yes",
        "The answer is A, as I said.",
        "The answer is A because it is.",
        "(A)",
        "a.",
    ],
    "I": ["The answer is I.", "(I)", "I"],
    None: [
        "",
        "I am sure.",
        "A great question! I will think.",
        "The answer is A dog in the fog.",
        "The answer is I think unknown.",
        "The answer is a good one.",
        "The answer is A or B.",
        "The answer is (A) and (B).",
        "\\boxed{A, B}",
        "\\boxed{B",
        "\\boxed{}",
        "Paris",
        "<answer>B",
        "Not sure. It contains vitamin C",
        "The answer is not B.",
        "A, B",
    ],
}


@pytest.mark.parametrize(
    ("letter", "reply"), [(letter, reply) for letter, all_of in CHOICES.items() for reply in all_of]
)
def test_the_letter_of_a_reply(letter, reply):
    assert read_choice(reply) == letter
    for gold in "ABI":
        assert rewarded(choice_match, reply, gold) == float(gold == letter)


def test_letters_in_thoughts_do_not_count():
    assert rewarded(choice_match, "<think>A? C? D</think>B", "B") == 1.0
    assert rewarded(choice_match, "<think>The answer is B.</think>I do not know.", "B") == 0.0
    assert rewarded(choice_match, "<think>The answer is B", "B") == 0.0


@pytest.mark.parametrize(
    "gold", ["B", "b", "(B)", "B.", "B)", "B) Paris", "B. Paris", "\\text{(B)}", "\\boxed{B}", "Option B", " B "]
)
def test_how_files_write_the_right_letter(gold):
    assert rewarded(choice_match, "(B)", gold) == 1.0
    assert rewarded(choice_match, "(C)", gold) == 0.0


def test_an_answer_that_is_no_letter():
    for gold in ("Paris", "A dog", "AB", "", "7"):
        with pytest.raises(ValueError, match="is no single letter; use exact_match"):
            rewarded(choice_match, "A", gold)


@pytest.mark.parametrize(
    ("gold", "reply"),
    [
        ("caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9")),
        ("caf\u00e9", "CAF\u00c9"),
        ("\u5317\u4eac", "\u5317\u4eac\u3002"),
        ("Paris", "**Paris**"),
        ("Paris", "**Paris.**"),
        ("Paris", "*Paris*"),
        ("Paris", "__Paris__"),
        ("Paris", "`Paris`"),
        ("Paris", "# Paris"),
        ("it's", "it\u2019s"),
        ("it's", "it\u02bcs".replace("\u02bc", "\u2018")),
        ('say "no"', "say \u201cno\u201d"),
        ("Paris", '"Paris"'),
        ("Paris", "\u201cParis.\u201d"),
        ("Paris", "\u00a0Paris\u200b"),
        ("Paris", "\ufeffParis\u202f"),
        ("Par\u00adis", "Paris"),
        ("1990-1995", "1990\u20131995"),
        ("Paris", "Paris!"),
        ("Paris", "paris..."),
        ("Paris", "Paris?"),
        ("ABC", "\uff21\uff22\uff23"),
        ("office", "o\ufb03ce"),
        ("Paris", "<think>hmm</think>\nParis"),
        ("Paris", "<think>London?</think><answer>Paris</answer>"),
        ("Paris", "\\boxed{Paris}"),
        ("Paris", "$\\boxed{Paris}$"),
        ("the  Seine", "The\nSeine"),
        ("2*3*4", "2*3*4"),
        ("__init__", "__init__"),
        ("a_b_c", "a_b_c"),
        ("?", "?"),
        ("Stra\u00dfe", "STRASSE"),
    ],
)
def test_what_reads_alike_is_the_same_answer(gold, reply):
    assert rewarded(exact_match, reply, gold) == 1.0


@pytest.mark.parametrize(
    ("gold", "reply"),
    [
        ("Paris", "London"),
        ("Paris", "Paris is it"),
        ("Paris", "<think>Paris"),
        ("Paris", "<think>Paris</think>London"),
        ("x\u00b2", "x2"),
        ("\u00bd", "12"),
        ("120", "5!"),
        ("5!", "5"),
        ("cafe", "caf\u00e9"),
        (".", "?"),
        ("2*3*4", "234"),
        ("a", ""),
    ],
)
def test_what_does_not_is_another(gold, reply):
    assert rewarded(exact_match, reply, gold) == 0.0


def test_one_of_several_answers():
    assert rewarded(exact_match, "NYC", "New York", answers=["New York City", "NYC"]) == 1.0
    assert rewarded(exact_match, "1", None, answers="12") == 0.0
    assert rewarded(contains_answer, "It is NYC.", None, answers=["New York City", "NYC"]) == 1.0
    assert rewarded(choice_match, "B", None, answers=["A", "B"]) == 1.0


@pytest.mark.parametrize(
    ("gold", "reply", "expected"),
    [
        ("7", "The answer is 17.", 0.0),
        ("7", "The answer is 7.5.", 0.0),
        ("7", "It is 7.", 1.0),
        ("7", "7.0", 1.0),
        ("1,200", "1200 of them", 1.0),
        ("no", "I do not know", 0.0),
        ("no", "No, never.", 1.0),
        ("New York", "in new\u00a0york.", 1.0),
        ("\u5317\u4eac", "\u7b54\u6848\u662f\u5317\u4eac\u3002", 1.0),
        ("C++", "It is C++.", 1.0),
        ("Paris", "<think>Paris</think>London", 0.0),
        ("Paris", "<think>Paris", 0.0),
    ],
)
def test_an_answer_stands_in_a_reply_as_whole_words(gold, reply, expected):
    assert rewarded(contains_answer, reply, gold) == expected


def test_likeness_in_scripts_without_spaces():
    """Each character is a word: of the four of the answer the reply has two, F1 = 2 * 2 / 6."""
    for reward in (rouge_l, word_f1):
        assert rewarded(reward, "\u5317\u4eac", "\u5317\u4eac\u5927\u5b66") == pytest.approx(4 / 6)
        assert rewarded(reward, "\u5317\u4eac\u5927\u5b66", "\u5317\u4eac\u5927\u5b66") == 1.0
        assert 0 < rewarded(reward, "\u6771\u4eac\u3067\u3059", "\u6771\u4eac\u306b\u3044\u307e\u3059") < 1
        assert (
            0
            < rewarded(
                reward,
                "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e04\u0e23\u0e31\u0e1a",
                "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
            )
            < 1
        )
        assert rewarded(reward, "<think>a b</think>", "a b") == rewarded(reward, "<think>a b", "a b") == 0.0
    assert rewarded(rouge_l, "a b", None, answers="a b") == 1.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop", ["don", "t", "stop"]),
        ("caf\u00e9 cafe\u0301", ["caf\u00e9", "caf\u00e9"]),
        (
            "\u0939\u093f\u0928\u094d\u0926\u0940 \u092d\u093e\u0937\u093e\u0964",
            ["\u0939\u093f\u0928\u094d\u0926\u0940", "\u092d\u093e\u0937\u093e"],
        ),
        ("\uc11c\uc6b8\uc5d0 \uac11\ub2c8\ub2e4", ["\uc11c\uc6b8\uc5d0", "\uac11\ub2c8\ub2e4"]),
        ("GPT\u662f\u6a21\u578b", ["gpt", "\u662f", "\u6a21", "\u578b"]),
        ("", []),
    ],
)
def test_words(text, words):
    assert list_words(text) == words
