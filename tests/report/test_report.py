"""report.html: one offline page made of a run's files, whatever state they are in."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from report_pages import EVIL, RECIPE, Page, page_of, sample

from aurify.files import replace_text
from aurify.report.report import write_report
from aurify.tracking import jsonl
from aurify.tracking.run_folder import RunFolder


def test_the_page_tells_the_whole_run(run):
    page = page_of(run)
    for word in (
        "0.086",
        "0.344",
        "+0.258",
        "+0.187",
        "±0.027",
        "1 min 15 s",
        "killed",
        "all is well",
        "steps: 30",
    ):
        assert word in page.text
    for word in ("best words", "worst words", "which one?", "this one", "that one", "2 of 3"):
        assert word in page.text
    assert {"Loss", "Reward", "Gradient norm", "mine/own_metric", "Rewards of the completions"} <= set(page.titles())
    assert re.search(r"tokens trained\s+3,000", page.text)
    assert [href for href in page.attributes("href") if href not in {f"#{stage}" for stage in RECIPE["stages"]}] == []


def test_the_page_asks_nothing_of_the_network(run):
    html = write_report(run.path).read_text(encoding="utf-8")
    page = Page(html)
    assert not page.attributes("src") and not {"link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|https?:", html)
    assert any("default-src 'none'" in policy for policy in page.attributes("content"))


def test_the_page_has_a_light_and_a_dark_face(run):
    html = write_report(run.path).read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in html and "light dark" in html


def test_a_page_made_again_is_the_same(run, tmp_path):
    first = write_report(run.path).read_bytes()
    assert write_report(run.path).read_bytes() == first
    shutil.copytree(run.path, tmp_path / "elsewhere" / run.name)
    assert write_report(tmp_path / "elsewhere" / run.name).read_bytes() == first
    assert not list(run.path.glob("*.tmp"))


def test_what_others_wrote_is_text_not_markup(run):
    """Models, data sets, recipes and exceptions: all of it."""
    plain = {tag for tag, _ in page_of(run).tags}
    grpo, chosen = run.stage("grpo"), {"prompt": EVIL, "chosen": EVIL, "rejected": EVIL}
    tools = {"role": EVIL, "content": None, "tool_calls": [{"name": EVIL}]}
    jsonl.append_log(grpo.samples, sample(1, 2.0, EVIL) | {"answer": EVIL, "rewards": {EVIL: 1.0}})
    jsonl.append_log(grpo.samples, sample(30, 3.0) | {"messages": [tools]})
    jsonl.append_log(grpo.metrics, {"step": 31, EVIL: 1.0, "reward/" + EVIL: 1.0, "reward/b": 2.0})
    jsonl.append_log(grpo.ledger, {"step": 31, "ledger/" + EVIL: 1.0})
    jsonl.append_log(run.stage("pairs").path / "pairs.jsonl", chosen)
    replace_text(grpo.events, EVIL)
    replace_text(run.recipe, json.dumps(RECIPE | {"name": EVIL, "model": EVIL, "task": {"name": EVIL}}))
    run.record("grpo", method=EVIL, model=EVIL, measure=EVIL, status=EVIL)
    page = page_of(run)
    assert {tag for tag, _ in page.tags} == plain and len(page.scripts) == 1 and "alert" not in page.scripts[0]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.text.count("alert('x')") >= 12


def test_charts_are_well_formed_and_inside_their_frame(run):
    html = write_report(run.path).read_text(encoding="utf-8")
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(drawings) > 10
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        for line in root.iter():
            for point in line.attrib.get("points", "").split():
                x, y = map(float, point.split(","))
                assert -1 <= x <= width + 1 and -1 <= y <= height + 1


def row(**values: float | None) -> bytes:
    return b"".join(json.dumps({"step": step} | values).encode() + b"\n" for step in (1, 2))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("sft/metrics.jsonl", b""),
        ("sft/metrics.jsonl", row(loss=None)),
        ("sft/metrics.jsonl", row(loss=0.0)),
        ("sft/metrics.jsonl", row(loss=1e300)),
        ("sft/metrics.jsonl", row(loss=-1e-300)),
        ("sft/metrics.jsonl", b'{"step": 1, "loss": 1e300}\n{"step": 2, "loss": -1e300}\n'),
        ("sft/metrics.jsonl", row(loss=1.0) + b'{"step": 3, "lo'),
        ("sft/metrics.jsonl", row(**{"reward/mean": 1.0, "reward/std": None})),
        ("grpo/samples.jsonl", row()[:0] + json.dumps(sample(1, None)).encode() + b"\n"),
        ("grpo/samples.jsonl", json.dumps(sample(1, 0.5)).encode() + b"\n" + "é".encode()[:1]),
        ("sft/events.log", b"half a character \xc3"),
        ("run_info.json", b"{}"),
    ],
)
def test_a_page_is_made_of_whatever_a_killed_run_left(run, file, content):
    (run.path / file).write_bytes(content)
    assert "Gradient norm" in page_of(run).titles()


def test_a_run_that_has_not_begun_has_a_page(tmp_path):
    for recipe in ({}, RECIPE):
        page = page_of(RunFolder.create(tmp_path, recipe))
        assert "alert" not in page.text
    assert "not started" in page.text and "0 of 3" in page.text


def test_a_run_without_recipe_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no run folder"):
        write_report(tmp_path)


def test_a_long_run_has_a_small_page_that_keeps_its_spikes(tmp_path):
    folder = RunFolder.create(tmp_path, {"stages": {"sft": {}}})
    losses = [math.sin(step / 500) for step in range(20_000)]
    losses[12_345] = 77.0
    jsonl.append_log(
        folder.stage("sft").metrics, *({"step": step, "loss": loss} for step, loss in enumerate(losses, 1))
    )
    report: Path = write_report(folder.path)
    assert report.stat().st_size < 120_000
    [series] = [json.loads(text) for text in Page(report.read_text()).attributes("data-series")]
    assert max(series[0][1]) == 77.0 and series[0][0][series[0][1].index(77.0)] == 12_346


def test_very_long_texts_are_shortened(run):
    jsonl.append_log(run.stage("grpo").samples, sample(1, 9.0, "begin " + "x" * 500_000 + " end"))
    text = page_of(run).text
    assert "begin x" in text and "x end" in text and "characters left out" in text and len(text) < 60_000


def test_the_page_tells_on_what_each_stage_ran_but_not_every_number_of_the_check(tmp_path):
    folder = RunFolder.create(tmp_path, RECIPE)
    checks = [{"path": "blocks", "accepted": True, "packed": {"kl": {"mean": 0.125}}}]
    folder.record_engine("sft", {"dtype": "bfloat16", "attention": {"path": "blocks", "checks": checks}})
    page = page_of(folder).text
    assert "stages sft dtype" in page and "bfloat16" in page and "stages sft attention path" in page
    assert "0.125" not in page and "0.125" in (folder.path / "run_info.json").read_text()


def record_stage(run: RunFolder, stage: str, before: float, after: float, **details: float) -> None:
    run.record(stage, measure="number_match", before=before, after=after, details_before=details, details_after=details)


def test_held_out_numbers_say_of_how_many_how_sure_and_by_what_margin(run):
    record_stage(run, "pairs", 0.9, 0.95, error=0.0312, num=1234, margin=0.21, margin_error=0.013)
    text = page_of(run).text
    assert "n = 1,234" in text and text.count("±0.031") >= 2
    assert text.count("+0.210 ±0.013") == 2 and text.count("margin") == 1


@pytest.mark.parametrize(
    ("middle", "last", "colour", "note"),
    [
        (0.5, 0.6, "better", False),
        (0.9, 0.6, "same", True),  # better than at the start, but the last stage lost some
        (0.9, 0.89, "better", False),  # within the error
        (0.5, 0.01, "same", True),
    ],
)
def test_the_large_number_is_no_success_where_the_last_stage_got_worse(run, middle, last, colour, note):
    record_stage(run, "sft", 0.2, middle, error=0.02, num=64)
    record_stage(run, "pairs", middle, last, error=0.02, num=64)
    run.record("grpo", measure=None, before=None)
    html = write_report(run.path).read_text()
    assert f'<em class="{colour}">{last:.3f}</em>' in html
    assert ("the last stage made it worse" in html) == note


def test_held_out_points_stand_in_the_charts(run):
    """Of a loss beside the training loss, of others in a chart of their own with a band; step 0 is not counted."""
    sft, pairs = run.stage("sft"), run.stage("pairs")
    jsonl.append_log(sft.heldout, {"step": 0, "eval/loss": 3.5, "eval/loss_error": 0.5})
    jsonl.append_log(sft.heldout, {"step": 30, "eval/loss": 1.5, "eval/loss_error": 0.5})
    for step, value in ((0, 0.5), (30, 0.75)):
        jsonl.append_log(pairs.heldout, {"step": step, "eval/likelier_pairs": value, "eval/likelier_pairs_error": 0.1,
                                     "eval/margin": value, "eval/margin_error": 0.1})  # fmt: skip
    page = page_of(run)
    assert {"Held-out likelier pairs", "Held-out margin"} <= set(page.titles())
    assert not [title for title in page.titles() if "error" in title or "Held-out loss" in title]
    assert "held out 1.5" in " ".join(page.text.split()) and "30 steps" in page.text and "31 steps" not in page.text
    series = [json.loads(text) for text in page.attributes("data-series")]
    assert [[0, 30], [3.5, 1.5]] in [one for chart in series for one in chart]


def test_a_narrow_screen_shows_the_table_as_cards_with_headings(run):
    html = write_report(run.path).read_text()
    assert '<td class="n" data-title="Before">' in html
    assert re.search(r"max-width: 960px\).*\.results td::before \{ content: attr\(data-title\)", html, re.DOTALL)
    widths = {re.search(r'viewBox="0 0 (\d+)', svg)[1] for svg in re.findall(r"<figure.*?</figure>", html, re.DOTALL)}
    assert widths == {"340"}, "a wider chart has letters too small for a phone"


def test_an_unfinished_run_says_how_it_goes_on_and_its_state_is_seen(run):
    run.record("grpo", status="failed", error={"text": "no memory"})
    html = write_report(run.path).read_text()
    assert f"aurify train --resume {run.path.name} goes on with it" in html and 'class="badge failed"' in html
    assert re.search(r"\.badge\.failed[^}]*var\(--bad\)", html)
    run.record("grpo", status="finished")
    assert "goes on with it" not in write_report(run.path).read_text()


def test_tool_calls_are_charted_where_people_look_first(run):
    jsonl.append_log(run.stage("grpo").metrics, {"step": 31, "rollout/tool_calls": 0.8, "rollout/calls_failed": 0.2})
    page = page_of(run)
    assert "Tool calls an answer" in page.titles() and "rollout/tool_calls" not in page.titles()


def test_the_page_fits_at_every_width(run):
    """Seen in a browser: the demo's column of times was out of sight at 1280 pixels, and the heading under the bar on a
    phone. The rules that mended it stand in the style sheet."""
    html = write_report(run.path).read_text()
    phone = html[html.index("(max-width: 640px)") :]
    assert "main { padding-left: 14px; padding-right: 14px }" in phone
    assert ".results small { margin-left: 2px; white-space: nowrap }" in html and ".dumbbell { width: 96px" in html
