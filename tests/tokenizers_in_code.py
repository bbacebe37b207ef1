"""Byte-level tokenizers with small chat templates of several kinds, made in code: tests need no download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

BOS, EOS, OPEN, CLOSE = SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
MERGES = [("h", "e"), ("l", "l"), ("1", "2"), (":", "Ġ")]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_SYSTEM = (  # adds a system prompt of its own
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}" + CHATML
)
STRIPPING = CHATML.replace("m['content']", "m['content'] | trim")
LLAMA = (  # a beginning token, nothing between turns, no opening of a reply
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }}</s>"
    "{% else %}[{{ m['role'] }}] {{ m['content'] }} [/]{% endif %}{% endfor %}"
)
UNCLOSED = (  # no token ends a turn
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
FORGETFUL = CHATML.replace(  # thoughts only stay in the last message
    "{{ m['content'] }}", "{{ m['content'] if loop.last else m['content'].split('</think>')[-1] }}"
)
# new replies are opened with a thought, old ones stand without
THINKING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
TOOLS = (  # tools in the first turn, calls as JSON between tags
    "{% if tools %}<|im_start|>system\nTools: {{ tools | map(attribute='function') | map(attribute='name') | join }}"
    "<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "system": WITH_SYSTEM,
    "stripping": STRIPPING,
    "llama": LLAMA,
    "unclosed": UNCLOSED,
    "none": None,
}


def byte_level(template: str | None = CHATML, *, eos: str = CLOSE, pad: str | None = None) -> Any:
    """Text that spells "he" out in two tokens is read back as one: encode(decode(ids)) is not ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIAL, *alphabet, *(a + b for a, b in MERGES)]
    inner = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=MERGES))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return finished(inner, template, eos, pad)


def word_start(template: str = CHATML) -> Any:
    """Puts a space before a text, as tokenizers of the Llama 2 family do."""
    tokens = [*SPECIAL, "▁", "\n", *"abcdefghijklmnopqrstuvwxyz "]
    inner = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    return finished(inner, template, CLOSE, None)


def finished(inner: Tokenizer, template: str | None, eos: str, pad: str | None) -> Any:
    others = [token for token in SPECIAL if token not in (eos, BOS)]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=BOS, eos_token=eos, pad_token=pad or eos, additional_special_tokens=others
    )
    fast.chat_template = template
    return fast


# ---------------------------------------------------------------------- families of models


# the control tokens of each family of models; "markers" are added tokens that its tokenizer does not call special, and
# "swallows" the special ones that take the spaces after them
FOLDER = Path(__file__).parent / "templates"
FAMILIES: dict[str, dict[str, Any]] = json.loads((FOLDER / "families.json").read_text(encoding="utf-8"))


def family(name: str) -> Any:
    """A byte-level tokenizer with the control tokens and a template of one family of models."""
    made, alphabet = FAMILIES[name], sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(a + b for a, b in MERGES)]
    inner = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=MERGES))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    swallows, eos = made.get("swallows", ()), made["eos"]
    inner.add_special_tokens([AddedToken(t, special=True, rstrip=t in swallows) for t in made["special"]])
    inner.add_tokens([AddedToken(t, special=False, normalized=False) for t in made.get("markers", ())])
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=made.get("bos"), eos_token=eos, pad_token=eos)
    fast.chat_template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    return fast
