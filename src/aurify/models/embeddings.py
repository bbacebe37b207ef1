"""Whether every token has a row of the embedding, and rows for tokens that were added."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from aurify.errors import UserError
from aurify.models.loading import read_adapter_header

log = logging.getLogger("aurify")


MEND = "if tokens were added to the tokenizer, set model.resize_embeddings: true; else it belongs to another model"


def check_embedding_ids(tokens: Sequence[int], num_rows: int, what: str) -> None:
    """Every token needs a row of the embedding. what: has these tokens, for the error."""
    if not 0 <= min(tokens) <= max(tokens) < num_rows:
        wrong = next(token for token in tokens if not 0 <= token < num_rows)
        raise UserError(f"{what} has the token {wrong}, outside 0..{num_rows - 1}, the rows of the embedding: {MEND}")


@torch.no_grad()
def add_embedding_rows(module: Any, tokenizer: Any) -> int:
    """Gives each token of the tokenizer a row of the embedding and of the head: the mean of those that are there.
    Returns how many were missing."""
    old = len(module.get_input_embeddings().weight)
    new = max(tokenizer.get_vocab().values()) + 1
    if new <= old:
        return 0
    module.resize_token_embeddings(new, mean_resizing=False)
    head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    for part in (module.get_input_embeddings(), head):
        if part is not None:
            part.weight[old:] = part.weight[:old].float().mean(0).to(part.weight.dtype)
    log.info("%d rows of the embedding were added, for tokens up to %d", new - old, new - 1)
    return new - old


def resize_embedding_for_adapter(module: Any, adapter: Path) -> None:
    """An adapter that was trained with further tokens has the larger embedding in its file."""
    embedding, (shapes, _) = module.get_input_embeddings(), read_adapter_header(adapter)
    name = next(name for name, part in module.named_modules() if part is embedding)
    for key in (f"base_model.model.{name}.weight", f"base_model.model.{name}.base_layer.weight"):
        if key in shapes and shapes[key][0] != len(embedding.weight):
            module.resize_token_embeddings(shapes[key][0], mean_resizing=False)


def check_vocabulary(tokenizer: Any, num_rows: int, name: str) -> None:
    """Every token that a text or the chat template can bring must have an embedding. Other added tokens, such as that
    of an image in a tokenizer that several models share, may lack one."""
    beyond = {text: token for text, token in tokenizer.get_vocab().items() if token >= num_rows}
    if not beyond:
        return
    added = {str(entry) for entry in getattr(tokenizer, "added_tokens_decoder", {}).values()}
    written = {tokenizer.eos_token, tokenizer.bos_token} | {t for t in added if t in str(tokenizer.chat_template or "")}
    needed = sorted((token, text) for text, token in beyond.items() if text not in added or text in written)
    if needed:
        token, text = needed[0]
        raise UserError(
            f"model {name!r}: its tokenizer has {len(needed)} tokens without an embedding, such as {text!r} ({token}); "
            f"the model has {num_rows} rows: {MEND}"
        )
    log.warning(
        "%s: added tokens without an embedding: %s; the chat template writes none of them, and a prompt that has one "
        "is refused",
        name,
        ", ".join(sorted(beyond)[:5]),
    )
