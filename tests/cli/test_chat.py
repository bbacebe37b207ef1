from __future__ import annotations

import asyncio
import io

import pytest
from typer.testing import CliRunner

from aurify.cli.chat import Wrap, ask_person, converse, drop_oldest_turns
from aurify.cli.main import app
from aurify.cli.names import NamedModel
from aurify.cli.writer import Writer, open_writer
from aurify.procedures.library import SOPLibrary, SOPOptions
from aurify.renderer import Renderer
from aurify.samplers.scripted import ScriptedSampler
from aurify.types import SamplingParams


@pytest.fixture(scope="module")
def tokenizer():
    from aurify.models.model import tiny_model

    return tiny_model().tokenizer


@pytest.fixture
def talk(tokenizer, monkeypatch, capsys):
    """Types the lines; returns what the model was shown each time, and what was printed."""

    def typed(*lines: str, system: str = "", max_context: int = 10_000, library=None):
        shown: list[str] = []

        def reply(prompt: list[int]) -> str:
            shown.append(tokenizer.decode(prompt))
            return f"answer {len(shown)}"

        sampler = ScriptedSampler(reply, tokenizer)
        sampler.max_context = max_context
        waiting = iter(lines)

        def read(prompt: str = "") -> str:
            try:
                return next(waiting)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", read)
        with asyncio.Runner() as runner:
            converse(Writer(sampler, Renderer(tokenizer), runner), SamplingParams(max_tokens=16), system, library)
        return shown, capsys.readouterr().out

    return typed


def test_a_conversation_remembers_until_it_is_reset(talk):
    shown, printed = talk("first", "second", "/reset", "third")
    assert "first" in shown[1] and "answer 1" in shown[1]
    assert "first" not in shown[2]
    assert "model> answer 3" in printed


def test_the_system_prompt_outlives_a_reset_and_can_be_changed(talk):
    shown, _ = talk("first", "/reset", "second", "/system Be rude.", "third", system="Be kind.")
    assert all("Be kind." in prompt for prompt in shown[:2])
    assert "Be rude." in shown[2] and "Be kind." not in shown[2]


def test_a_question_gets_its_procedure_and_the_next_goes_on_with_it(talk, tmp_path):
    (tmp_path / "tea.yaml").write_text("name: tea\nwhen: Tea is wanted\nsteps: [Boil the water]")
    (tmp_path / "coffee.yaml").write_text("name: coffee\nwhen: Coffee is wanted\nsteps: [Grind]\ntools: [mill]")
    library = SOPLibrary(SOPOptions(str(tmp_path), embedder=None))
    lines = ("hello", "some tea please", "go on", "coffee please", "/reset", "hello")
    shown, printed = talk(*lines, system="Be kind.", library=library)
    assert ["Boil the water" in prompt for prompt in shown] == [False, True, True, False, False]
    assert ["Grind" in prompt for prompt in shown] == [False, False, False, True, False]
    assert ["ask the user to do that step" in prompt for prompt in shown] == [False, False, False, True, False]
    assert all("Be kind." in prompt for prompt in shown)
    assert "hello" in shown[1]
    assert printed.count("(procedure: tea)") == 1
    assert "(procedure: coffee)" in printed and "the model is told to ask you to do mill" in printed


def test_quit_ends_and_blank_lines_and_unknown_commands_ask_nothing(talk):
    shown, printed = talk("", "  ", "/hepl", "/quit", "never")
    assert shown == []
    assert "/reset forgets" in printed


def test_a_full_context_drops_the_oldest_messages_and_says_so(talk):
    shown, printed = talk("x" * 100, "second", system="Stay.", max_context=180)
    assert "xxx" not in shown[1] and "Stay." in shown[1] and "second" in shown[1]
    assert "the oldest 2 messages were dropped" in printed


def test_ctrl_c_takes_the_question_back_and_the_conversation_goes_on(talk, monkeypatch):
    stream = Writer.stream

    def interrupted(self, messages, params, show):
        if messages[-1]["content"] == "too long":
            show("well, ")
            raise KeyboardInterrupt
        return stream(self, messages, params, show)

    monkeypatch.setattr(Writer, "stream", interrupted)
    shown, printed = talk("first", "too long", "second")
    assert "model> well, \n(stopped)\n" in printed
    assert "first" in shown[1] and "too long" not in shown[1]


def test_an_answer_shows_while_it_is_written_and_in_whole_characters(tokenizer):
    text = "größer € ja"
    pieces: list[str] = []
    with asyncio.Runner() as runner:
        writer = Writer(ScriptedSampler([text], tokenizer), Renderer(tokenizer), runner)
        said = writer.stream([{"role": "user", "content": "?"}], SamplingParams(max_tokens=64), pieces.append)
    assert said == text and pieces == list(text), "a piece for each character, though some have several tokens"


def test_a_real_model_is_heard_token_by_token():
    with open_writer(NamedModel("random:tiny")) as writer:
        params = SamplingParams(max_tokens=40, seed=3)
        messages = [{"role": "user", "content": "hi"}]
        pieces: list[str] = []
        said = writer.stream(messages, params, pieces.append)
        assert "".join(pieces) == said == writer.write(messages, params)[0]
        assert len(pieces) > 5


def test_what_fits_is_kept(tokenizer):
    sampler = ScriptedSampler(["a"], tokenizer)
    sampler.max_context = 1000
    writer = Writer(sampler, Renderer(tokenizer), None)  # type: ignore[arg-type]
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert drop_oldest_turns(writer, SamplingParams(max_tokens=16), messages) == 0
    assert len(messages) == 3


def test_a_real_model_answers_from_the_command_line():
    result = CliRunner().invoke(app, ["chat", "random:tiny", "--max-tokens", "4", "--seed", "1"], input="hi\n/quit\n")
    assert result.exit_code == 0, result.output
    assert "model> " in result.stdout


def test_sample_repeats_itself_with_a_seed():
    with open_writer(NamedModel("random:tiny")) as writer:
        params = SamplingParams(max_tokens=8, seed=3)
        messages = [{"role": "user", "content": "hi"}]
        first, second = writer.write(messages, params, 2)
        assert writer.write(messages, params, 2) == [first, second]
    assert first != second


TEXT = "A sentence of several words, and  then\n\tan indented one with an incomprehensibilitiesque word."


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("width", [12, 20, 40])
def test_no_word_is_broken_at_the_edge_of_the_terminal(size, width):
    wrap = Wrap(width, len("model> "))
    shown = "model> " + "".join(wrap.add(TEXT[k : k + size]) for k in range(0, len(TEXT), size)) + wrap.end()
    lines = shown.split("\n")
    assert max(len(line.rstrip()) for line in lines) <= max(width, len("incomprehensibilitiesque"))
    if width >= 40:
        assert max(map(len, lines)) <= width
        assert {word for line in lines for word in line.split()} == {"model>", *TEXT.split()}
    assert "".join(shown.split()) == "model>" + "".join(TEXT.split()), "nothing is lost"


def test_text_without_spaces_is_shown_as_it_comes_and_breaks_anywhere():
    wrap = Wrap(10, 0)
    pieces = [wrap.add(sign) for sign in "日本語の文章です"]
    assert pieces == ["日", "本", "語", "の", "文", "\n章", "で", "す"]


def test_what_is_no_terminal_gets_the_pieces_as_they_are():
    wrap = Wrap(None, 7)
    assert [wrap.add("a wo"), wrap.add("rd"), wrap.end()] == ["a wo", "rd", ""]


def test_questions_from_a_pipe_are_shown_before_their_answers(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("What is 2+2?\n"))
    assert ask_person() == "What is 2+2?" and capsys.readouterr().out == "you> What is 2+2?\n"
