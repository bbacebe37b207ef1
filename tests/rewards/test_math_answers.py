"""What counts as the right mathematical answer: kinds that people reported, and neighbours of each. (gold, reply,
reward)"""

from __future__ import annotations

import pytest
from said import rewarded

from aurify.rewards.math import math, number_match

ANSWERS = {
    "unfinished": [
        ("3", r"\boxed{3 and so", 0),
        ("3", r"\boxed{3}. Or rather \boxed{4", 0),
        ("3", r"\boxed{\frac{9}{3}", 0),
        ("3", r"<think>\boxed{3}</think>", 0),
        ("3", "<think>The answer is 3.</think>I do not know.", 0),
        ("3", "<answer>3", 0),
        ("3", "<answer>3</answer> <answer>", 0),
        ("3", r"[THINK]\boxed{3}", 0),
        ("3", "The answer is 3</think>", 0),
    ],
    "reasons after the answer": [
        ("42", "The answer is 42, which is 6 times 7.", 1),
        ("42", "The answer is 42 as 6*7=42", 1),
        ("42", "The answer is 42 (that is 6 times 7).", 1),
        ("42", "The answer is 42; I checked 3 times.", 1),
        ("42", "answer: 42, so Bob has 42 apples and 3 pears", 1),
        ("7", "The answer is 42, since 7 times 6 is 42.", 0),
        ("42", "The answer is 41, not 42.", 0),
        ("42", "The answer is 41 because 42 is too many", 0),
        ("42", "The answer is 41 or 42.", 0),
        ("42", "**Answer**: 42 apples", 1),
        ("42", "**Final answer:** $42", 1),
        ("42", "The answer:\n\n\\[ 42 \\]", 1),
        ("42", "The answer to the question is 42 apples.", 1),
        ("18", "#### $18", 1),
        ("18", "She makes 9 * 2 = $18 every day.\n#### 18", 1),
        ("5", "The answer is $x = 5$ since $5+2=7$.", 1),
        ("5", "The answer is x = 5.", 1),
    ],
    "units": [
        ("12", r"\boxed{12 cm}", 1),
        ("12 cm", r"\boxed{12 centimetres}", 1),
        ("12 cm", r"\boxed{12 m}", 0),
        (r"12\text{ cm}", r"\boxed{12\text{ m}}", 0),
        ("12", r"\boxed{12\,\text{cm}^2}", 1),
        ("12", "The answer is 12 square meters.", 1),
        ("12", r"\boxed{12\text{ million}}", 0),
        ("12000000", r"\boxed{12\text{ million}}", 1),
        ("1.5 million", "1500000", 1),
        ("5", r"\boxed{5x}", 0),
        ("5", r"\boxed{5 m}", 1),
        ("20", "The answer is 20%.", 1),
        ("9.8", r"\boxed{9.8 m/s^2}", 1),
        ("45", "\\boxed{45°}", 1),
        (r"45^\circ", r"\boxed{45 degrees}", 1),
        ("5", r"\boxed{5 dozen}", 0),
        ("15", r"\boxed{15 and a half}", 0),
        ("3", "The answer is 3 hours and 20 minutes.", 0),
    ],
    "thousands": [
        ("1200000", r"\boxed{1\,200\,000}", 1),
        ("1200000", r"\boxed{1{,}200{,}000}", 1),
        ("12000", "\\boxed{12\u202f000}", 1),
        ("12000", "\\boxed{12\xa0000}", 1),
        ("1200", r"\boxed{1,\!200}", 1),
        ("12345.67", r"\boxed{12,345.67}", 1),
        ("1200", r"\boxed{1,2,0,0}", 0),
        (r"1\,200", r"\boxed{1200}", 1),
    ],
    "several boxes": [
        ("1, 2, 3", r"$\boxed{1}$, $\boxed{2}$ and $\boxed{3}$", 1),
        ("2, 3", r"$x=\boxed{2}$ or $x=\boxed{3}$", 1),
        ("3", r"\boxed{2} or \boxed{3}", 0),
        ("3", r"\boxed{2}. No: \boxed{3}", 1),
        ("2", r"\boxed{2}. No: \boxed{3}", 0),
        ("5", r"\boxed{5}, that is \boxed{5}", 1),
        ("1,2", r"\boxed{1}\text{ and }\boxed{2}", 1),
        ("1,2", "The answer is $1$ and $2$.", 1),
        ("1,2", "The answer is 1 and 2.", 1),
    ],
    "intervals and inequalities": [
        (r"(-\infty, 3]", r"\boxed{x \le 3}", 1),
        (r"[2, \infty)", r"\boxed{x \geq 2}", 1),
        ("(1,3]", r"\boxed{1 < x \leq 3}", 1),
        (r"(-\infty,-1)\cup(2,\infty)", r"\boxed{x<-1 \text{ or } x>2}", 1),
        (r"(-\infty,3)", r"\boxed{x \le 3}", 0),
        (r"(-\infty,3)", r"\boxed{x > 3}", 0),
        ("x<3", r"\boxed{(-\infty,3)}", 1),
        (r"x \ne 3", r"\boxed{(-\infty,3)\cup(3,\infty)}", 1),
        (r"(-\infty, 3)", "The answer is x < 3.", 1),
        ("(-∞, 3)", r"\boxed{(-\infty,3)}", 1),
        ("[0,1]", r"\boxed{0 \le x \le 1}", 1),
        ("(0,1)", r"\boxed{0 \le x \le 1}", 0),
        (r"x \ge 7", r"\boxed{\ge 7}", 1),
        ("7", r"\boxed{\ge 7}", 0),
        ("[1,2]", "\\boxed{x ∈ [1,2]}", 1),
    ],
    "bases": [
        ("1011_2", r"\boxed{1011_{2}}", 1),
        ("1011_2", r"\boxed{1011_{\text{two}}}", 1),
        ("1011_2", r"\boxed{1011_3}", 0),
        ("1011_2", r"\boxed{1012_2}", 0),
        ("11_{10}", r"\boxed{1011_2}", 1),
        ("1_{2}", r"\boxed{1_2}", 1),
        ("FF_{16}", r"\boxed{255_{10}}", 1),
        ("10", r"\boxed{10_2}", 0),
        ("x_1", r"\boxed{x_2}", 0),
        ("x_1", r"\boxed{x_1}", 1),
    ],
    "Unicode": [
        (r"\sqrt{3}", "\\boxed{√3}", 1),
        (r"2\sqrt{3}", "The answer is 2√3.", 1),
        (r"2\sqrt{3}", "The answer is 2*sqrt(3).", 1),
        (r"\frac{1}{2}", "\\boxed{½}", 1),
        (r"\frac{3}{2}", "\\boxed{1½}", 1),
        ("x^2", "\\boxed{x³}", 0),
        ("10^{-3}", "\\boxed{10⁻³}", 1),
        (r"\frac{\pi}{2}", "The answer is π/2", 1),
        (r"2\pi", "The answer is 2pi.", 1),
        ("6", "\\boxed{2\xd73}", 1),
        ("6", "\\boxed{2·3}", 1),
        (r"\pm 2", "\\boxed{±2}", 1),
        ("-5", "The answer is \u22125.", 1),
        ("12", "\\boxed{\uff11\uff12}", 1),
        (r"x \le 3", "\\boxed{x ≤ 3}", 1),
        (r"\infty", "\\boxed{∞}", 1),
        (r"\theta", "\\boxed{θ}", 1),
        ("H_2O", "\\boxed{H₂O}", 1),
        (r"3\frac12", "The answer is 3 1/2.", 1),
    ],
    "letters with their text": [
        ("C", r"\boxed{\textbf{(C)}\ 12}", 1),
        ("12", r"\boxed{\textbf{(C)}\ 12}", 1),
        (r"\textbf{(C)}\ 12", r"\boxed{C}", 1),
        (r"\textbf{(C)}\ 12", r"\boxed{12}", 1),
        (r"\textbf{(C)}\ 12", r"\boxed{(C)}", 1),
        (r"\textbf{(C)}\ 12", r"\boxed{B}", 0),
        (r"\textbf{(C)}\ 12", r"\boxed{\text{(B) }12}", 0),
        (r"\text{(C)}", r"\boxed{\text{(B)}}", 0),
        (r"\text{(C)}", "The answer is (C).", 1),
        ("C", "The answer is (C).", 1),
    ],
    "fractions and formulas without a mark": [
        ("1/3", r"The answer is \frac13", 1),
        (r"\frac{a}{b}", r"\boxed{a/b}", 1),
        (r"\frac{1}{2}", r"\boxed{\tfrac12}", 1),
        ("0.5", r"\boxed{\frac{1}{2}}", 1),
        ("2", "The result is 1/2", 0),
        ("2", r"So $\frac{1}{2}$.", 0),
        ("1", "So $x^2+1$.", 0),
        ("0.5", "1/2", 1),
    ],
    "words": [
        (r"\text{east}", r"\boxed{\text{seat}}", 0),
        ("east", "The answer is East.", 1),
        (r"\text{Yes}", r"\boxed{No}", 0),
        ("no solution", r"\boxed{\text{No solution}}", 1),
        (r"\text{Monday}", "The answer is Monday, because it is.", 1),
        (r"\text{odd}", r"\boxed{odd}", 1),
    ],
    "false equations and hedges": [
        ("3", r"\boxed{4=3}", 0),
        ("3", r"\boxed{3=3}", 1),
        ("3", r"\boxed{4=5=3}", 0),
        ("3", r"\boxed{6/2=3}", 1),
        ("3", r"\boxed{3, 4}", 0),
        ("3", r"\boxed{3 \text{ or } 4}", 0),
        ("4", r"\boxed{3 (or 4)}", 0),
        ("3", r"\boxed{3;4}", 0),
        ("3", r"\boxed{3 \pm 1}", 0),
        ("4", r"\boxed{x=3 \quad x=4}", 0),
    ],
    "powers of ten": [
        (r"6.02 \times 10^{23}", r"\boxed{6.02e23}", 1),
        ("0.001", r"\boxed{1e-3}", 1),
        ("1000000", r"\boxed{1e6}", 1),
        ("3e8", r"\boxed{3 \times 10^8}", 1),
        ("12345678901234567890", r"\boxed{12345678901234567890}", 1),
    ],
    "as people write them": [
        ("42", "The answer is 42 because 6*7=42.", 1),
        ("42", "The answer is $42$ apples.", 1),
        ("42", "So the answer is 42, since 6 times 7 is 42.", 1),
        ("42", "The answer is: **42**", 1),
        ("42", "Final Answer: 42 dollars", 1),
        ("42", "The answer is 42.\n\nLet me know if you want 3 more examples!", 1),
        (r"\frac{1}{2}", r"\boxed{\dfrac12}", 1),
        (r"\frac{1}{2}", r"\boxed{1/2}", 1),
        (r"\frac{1}{2}", r"\boxed{0.5}", 1),
        (r"\frac12", r"\boxed{\frac{1}{2}}", 1),
        (r"50\%", r"\boxed{50\%}", 1),
        (r"50\%", r"\boxed{0.5}", 1),
        ("50", r"\boxed{50\%}", 1),
        (r"50\%", r"\boxed{50}", 1),
        ("1,200", r"\boxed{1200}", 1),
        ("1200", r"\boxed{1{,}200}", 1),
        ("1200", r"\boxed{1\,200}", 1),
        ("1200", r"\boxed{\$1,200}", 1),
        ("12", r"\boxed{12\text{ cm}}", 1),
        (r"12\text{ cm}", r"\boxed{12}", 1),
        (r"12 \mathrm{~cm}^2", r"\boxed{12}", 1),
        (r"90^\circ", r"\boxed{90}", 1),
        ("90", r"\boxed{90^{\circ}}", 1),
        ("5", r"\boxed{x=5}", 1),
        ("x=5", r"\boxed{5}", 1),
        ("(1,2]", r"\boxed{[1,2)}", 0),
        ("(1,2]", r"\boxed{(1,2]}", 1),
        ("[1,2]", r"\boxed{(1,2)}", 0),
        ("(1,2)", r"\boxed{(2,1)}", 0),
        (r"\{1,2\}", r"\boxed{\{2,1\}}", 1),
        ("1,2", r"\boxed{1} and \boxed{2}", 1),
        (r"(-\infty, 3)", r"\boxed{x<3}", 1),
        (r"1\frac{1}{2}", r"\boxed{\frac{3}{2}}", 1),
        ("1.5", r"\boxed{1\frac{1}{2}}", 1),
        (r"2\sqrt{3}", r"\boxed{2\sqrt3}", 1),
        (r"\text{Evelyn}", r"\boxed{Evelyn}", 1),
        (r"\text{Evelyn}", r"\boxed{\text{evelyn}}", 1),
        (r"\text{(C)}", r"\boxed{C}", 1),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}", 1),
        ("3", r"\boxed{3", 0),
        ("3", r"\boxed 3", 1),
        ("3", r"\boxed{}", 0),
        ("0", r"\boxed{-0}", 1),
        ("-5", "\\boxed{\u22125}", 1),
        (".5", r"\boxed{0.5}", 1),
        ("0.5", r"\boxed{.5}", 1),
        ("5", ".5 is the answer, the answer is .5", 0),
        ("11:30", r"\boxed{11:30}", 1),
        ("1_{2}", r"\boxed{1}", 0),
        ("3", r"<think>\boxed{4}</think>\boxed{3}", 1),
        ("3", r"<think>maybe \boxed{3}, let me go on", 0),
        ("1/3", "The answer is 1/3", 1),
        ("1/3", "3", 0),
        ("x^2+1", "The answer is x²+1", 1),
        ("1000000", r"\boxed{10^6}", 1),
        (r"3 \text{ or } 4", r"\boxed{3,4}", 1),
        (r"\pm 2", r"\boxed{2,-2}", 1),
        ("12345678901234567890", r"\boxed{12345678901234567891}", 0),
    ],
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_answers(kind):
    reward = math()
    wrong = [
        f"{reply!r} to {gold!r} earned {got}"
        for gold, reply, expected in ANSWERS[kind]
        if (got := rewarded(reward, reply, gold)) != expected
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("answers", "right", "wrong"),
    [
        ("12", "12", "2"),
        ("12", "12", "1"),
        (12, "12", "2"),
        (0.5, "1/2", "5"),
        (["12", 13], "13", "3"),
        ('["12", "13"]', "13", "3"),
        ({"text": ["12"], "answer_start": [3]}, "12", "3"),
        ('{"aliases": ["12", "a dozen"]}', "12", "3"),
        (["12", None], "12", "1"),
    ],
)
def test_the_column_answers_in_all_its_forms(answers, right, wrong):
    assert rewarded(math(), rf"\boxed{{{right}}}", "0", answers=answers) == 1.0
    assert rewarded(math(), rf"\boxed{{{wrong}}}", "0", answers=answers) == 0.0
    assert rewarded(math(), r"\boxed{0}", "0", answers=answers) == 0.0
    for nothing in ([], None, [None]):
        assert rewarded(math(), rf"\boxed{{{right}}}", right, answers=nothing) == 1.0
    with pytest.raises(ValueError, match=r"'t/1': its answers are .*; expected a list of texts"):
        rewarded(math(), "1", "0", answers={"value": "12"})


@pytest.mark.parametrize(
    ("gold", "reply", "expected"),
    [
        ("1/2", "2", 0.0),
        ("1/2", "It is 1/2.", 1.0),
        ("1/2", "0.5", 1.0),
        ("2", "It is 1/2.", 0.0),
        ("2", r"So \frac{1}{2}.", 0.0),
        ("2", r"It is \sqrt{2}.", 0.0),
        ("2", "x^2", 0.0),
        ("5", "The area is 5 cm^2.", 1.0),
        ("1000000", "10^6", 1.0),
        ("1200", r"1\,200", 1.0),
        ("1200", "1\u202f200", 1.0),
        (".5", "0.5", 1.0),
        ("5", "It is .5", 0.0),
        ("2", "101_2", 0.0),
        ("2023", "On 1/2/2023.", 1.0),
        ("5", "<think>5</think>I do not know.", 0.0),
        ("5", "<think>It is 5", 0.0),
        ("5", "<think>6</think>It is 5.", 1.0),
        ("so 5\n#### 6", "6", 1.0),
        ("9" * 5000, "9" * 5000, 1.0),
        ("1/0", "9^999/0", 0.0),
    ],
)
def test_the_last_number_is_read_with_what_belongs_to_it(gold, reply, expected):
    assert rewarded(number_match, reply, gold) == expected


def test_a_number_that_is_none():
    for gold in (r"\sqrt{2}", "x^2", "none"):
        with pytest.raises(ValueError, match="is no number; use exact_match or math"):
            rewarded(number_match, "2", gold)
