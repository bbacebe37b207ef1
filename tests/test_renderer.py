"""Messages and tokens: what is trained, and that supervised fine-tuning sees the tokens that a rollout sees."""

from __future__ import annotations

import logging

import pytest
import tokenizers_in_code as made

from aurify.errors import UserError
from aurify.renderer import Renderer

QUESTION = [{"role": "user", "content": "hello 12?"}]
ANSWER = {"role": "assistant", "content": "hello all"}
AGAIN = [{"role": "user", "content": "and he?"}]


@pytest.fixture(params=made.TEMPLATES)
def renderer(request):
    template = made.TEMPLATES[request.param]
    return Renderer(made.byte_level(template, eos=made.EOS if request.param in ("llama", "none") else made.CLOSE))


def trained_text(renderer, tokens, weights):
    return renderer.tokenizer.decode([t for t, w in zip(tokens, weights, strict=True) if w])


def test_only_the_reply_and_its_end_are_trained(renderer):
    tokens, weights = renderer.conversation([*QUESTION, ANSWER])
    end = renderer.tokenizer.convert_ids_to_tokens(renderer.end_token)
    assert trained_text(renderer, tokens, weights).strip() == "hello all" + end
    assert set(weights) == {0.0, 1.0}
    assert tokens[-1] == renderer.end_token in renderer.stop_tokens
    assert tokens[: weights.index(1.0)] == renderer.prompt(QUESTION)


def test_a_conversation_is_the_tokens_of_a_rollout(renderer):
    """Prompt, sampled reply, delta, sampled reply: token for token what SFT trains."""
    whole, weights = renderer.conversation([*QUESTION, ANSWER, *AGAIN, ANSWER])
    first, _ = renderer.conversation([*QUESTION, ANSWER])
    prompt = renderer.prompt(QUESTION)
    reply = first[len(prompt) :]
    delta = renderer.delta(QUESTION, reply, AGAIN)
    assert prompt + reply + delta + reply == whole
    assert [0.0] * len(prompt) + [1.0] * len(reply) + [0.0] * len(delta) + [1.0] * len(reply) == weights


def test_a_delta_closes_a_turn_that_was_cut(renderer):
    reply = renderer.tokenizer("hello", add_special_tokens=False).input_ids
    ended = renderer.delta(QUESTION, [*reply, renderer.end_token], AGAIN)
    assert renderer.delta(QUESTION, reply, AGAIN) == [renderer.end_token, *ended]
    assert "and he?" in renderer.tokenizer.decode(ended)
    assert "hello" not in renderer.tokenizer.decode(ended)


def test_train_last_leaves_earlier_replies_out(renderer):
    messages = [*QUESTION, ANSWER, *AGAIN, {"role": "assistant", "content": "no"}]
    tokens, weights = renderer.conversation(messages, train="last")
    assert trained_text(renderer, tokens, weights).strip().startswith("no")
    assert tokens[: weights.index(1.0)] == renderer.prompt(messages[:3])


def test_parse_gives_the_text_back(renderer):
    tokens, weights = renderer.conversation([*QUESTION, ANSWER])
    message = renderer.parse(tokens[weights.index(1.0) :])
    assert message["role"] == "assistant"
    assert message["content"].strip() == "hello all"


def test_template_text_after_the_end_token_is_context():
    """ChatML writes a newline after the end token: the model never has to say it."""
    renderer = Renderer(made.byte_level())
    tokens, weights = renderer.conversation([*QUESTION, ANSWER, *AGAIN, ANSWER])
    newline = renderer.tokenizer("\n", add_special_tokens=False).input_ids[0]
    place = weights.index(1.0) + weights[weights.index(1.0) :].index(0.0)
    assert tokens[place - 1 : place + 1] == [renderer.end_token, newline]
    assert weights[place - 1 : place + 1] == [1.0, 0.0]


def test_weights_do_not_look_at_ids():
    """The end token is pad as well, stands in the prompt, and closes the reply: only the last one is trained."""
    renderer = Renderer(made.byte_level())
    assert renderer.tokenizer.pad_token_id == renderer.tokenizer.eos_token_id == renderer.end_token
    tokens, weights = renderer.conversation([{"role": "system", "content": "be"}, *QUESTION, ANSWER])
    at_end_tokens = [w for t, w in zip(tokens, weights, strict=True) if t == renderer.end_token]
    assert at_end_tokens == [0.0, 0.0, 1.0]


def test_a_turn_that_the_template_does_not_close_ends_with_eos():
    renderer = Renderer(made.byte_level(made.UNCLOSED, eos=made.EOS))
    tokens, _ = renderer.conversation([*QUESTION, ANSWER])
    assert renderer.tokenizer.decode(tokens) == "user: hello 12?\n\nassistant: hello all</s>"
    delta = renderer.delta(QUESTION, [renderer.end_token], AGAIN)
    assert renderer.tokenizer.decode(delta) == "\n\nuser: and he?\n\nassistant: "


def test_both_end_tokens_stop_where_template_and_tokenizer_differ():
    renderer = Renderer(made.byte_level(made.CHATML, eos=made.EOS))
    ids = renderer.tokenizer.convert_tokens_to_ids([made.CLOSE, made.EOS])
    assert renderer.end_token == ids[0]
    assert renderer.stop_tokens == set(ids)
    text = renderer.tokenizer("hello", add_special_tokens=False).input_ids
    assert renderer.parse([*text, ids[1]])["content"] == "hello"


def test_a_missing_template_is_replaced_with_a_warning(caplog):
    tokenizer = made.byte_level(None, eos=made.EOS)
    with caplog.at_level(logging.WARNING, "aurify"):
        renderer = Renderer(tokenizer)
    assert "no chat template" in caplog.text
    assert tokenizer.decode(renderer.prompt(QUESTION)) == "<s>User: hello 12?\nAssistant:"
    tokenizer.bos_token = None
    assert tokenizer.decode(renderer.prompt(QUESTION)) == "User: hello 12?\nAssistant:"


def test_a_default_system_prompt_stands_once():
    renderer = Renderer(made.byte_level(made.WITH_SYSTEM))
    tokens, _ = renderer.conversation([*QUESTION, ANSWER, *AGAIN, ANSWER])
    assert renderer.tokenizer.decode(tokens).count("Be brief.") == 1
    assert "Be brief." not in renderer.tokenizer.decode(renderer.delta(QUESTION, [renderer.end_token], AGAIN))


def test_a_template_that_strips_does_not_touch_sampled_tokens():
    """The policy wrote spaces around its reply; the template would drop them, the delta knows nothing of it."""
    renderer = Renderer(made.byte_level(made.STRIPPING))
    reply = [*renderer.tokenizer("  hello  ", add_special_tokens=False).input_ids, renderer.end_token]
    assert renderer.parse(reply)["content"] == "  hello  "
    delta = renderer.delta(QUESTION, reply, AGAIN)
    assert renderer.tokenizer.decode(delta) == "\n<|im_start|>user\nand he?<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_that_forgets_thoughts():
    """Earlier turns are rewritten: training all of them at once is refused with the mend; last ones and deltas work."""
    renderer = Renderer(made.byte_level(made.FORGETFUL))
    thought = {"role": "assistant", "content": "<think>he</think>12"}
    messages = [*QUESTION, thought, *AGAIN, thought]
    with pytest.raises(UserError, match="train_on: last"):
        renderer.conversation(messages)
    tokens, weights = renderer.conversation(messages, train="last")
    assert trained_text(renderer, tokens, weights) == "<think>he</think>12<|im_end|>"
    assert renderer.tokenizer.decode(tokens).count("<think>") == 1
    delta = renderer.delta(QUESTION, [renderer.end_token], AGAIN)
    assert renderer.tokenizer.decode(delta) == "\n<|im_start|>user\nand he?<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_that_opens_a_thought():
    """A new reply begins with <think>, an old one does not: the opening belongs to the prompt, as in a rollout."""
    renderer = Renderer(made.byte_level(made.THINKING))
    tokens, weights = renderer.conversation([*QUESTION, {"role": "assistant", "content": "he</think>12"}])
    assert tokens[: weights.index(1.0)] == renderer.prompt(QUESTION)
    assert trained_text(renderer, tokens, weights) == "he</think>12<|im_end|>"


def test_a_reply_gets_no_space_that_only_beginnings_have():
    renderer = Renderer(made.word_start())
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    tokens, weights = renderer.conversation(messages)
    reply = [t for t, w in zip(tokens, weights, strict=True) if w]
    assert renderer.tokenizer.convert_ids_to_tokens(reply) == ["y", "e", "s", made.CLOSE]
    assert renderer.parse(reply)["content"] == "yes"


def test_a_greeting_is_context():
    renderer = Renderer(made.byte_level())
    tokens, weights = renderer.conversation([{"role": "assistant", "content": "hi"}, *QUESTION, ANSWER])
    assert trained_text(renderer, tokens, weights) == "hello all<|im_end|>"
    with pytest.raises(UserError, match="no assistant message to train on"):
        renderer.conversation([ANSWER])


def test_errors_say_what_was_rendered():
    refusing = made.CHATML + "{% if messages[0]['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    renderer = Renderer(made.byte_level(refusing))
    with pytest.raises(UserError, match=r"refuses a conversation of 1 messages \(tool\): no tools here"):
        renderer.prompt([{"role": "tool", "content": "x"}])
    with pytest.raises(UserError, match=r"no assistant message to train on in .* \(user\)"):
        renderer.conversation(QUESTION)


def test_tools_reach_the_template():
    renderer = Renderer(made.byte_level("{% if tools %}{{ tools[0].function.name }}{% endif %}" + made.CHATML))
    tools = [{"type": "function", "function": {"name": "search"}}]
    assert renderer.tokenizer.decode(renderer.prompt(QUESTION, tools)).startswith("search<|im_start|>")


def test_describe_shortens():
    renderer = Renderer(made.byte_level())
    tokens = renderer.tokenizer("x" * 500, add_special_tokens=False).input_ids
    assert len(renderer.describe(tokens)) < 200
    assert renderer.describe(tokens[:5]) == "'xxxxx'"
