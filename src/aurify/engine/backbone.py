"""The decoder of a model, without its head, and the two ways to run it over a row: packed, as the row is, or plain,
with one padded row for each sequence."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aurify.engine.attention import IMPLEMENTATION, Forest
from aurify.engine.logprobs import Head
from aurify.engine.lora import LoraLinear
from aurify.engine.packing import Row
from aurify.engine.upload import upload_arrays


class Backbone:
    def __init__(self, module: Any, head: Head | None) -> None:
        self.module, self._head = module, head
        self.decoder: Any = module.base_model
        self.device: torch.device = module.get_input_embeddings().weight.device
        chosen = module.config._attn_implementation
        self.fallback: str = "sdpa" if chosen in (None, IMPLEMENTATION) else chosen  # the attention of plain rows

    @property
    def head(self) -> Head | None:
        """An adapted head has another weight for each use of the adapter."""
        adapted = self._head is not None and isinstance(self.module.get_output_embeddings(), LoraLinear)
        return Head.of(self.module) if adapted else self._head

    @property
    def dtype(self) -> torch.dtype:
        return self.module.get_input_embeddings().weight.dtype

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, whatever the model calls them."""
        num = self.decoder.config.get_text_config().num_hidden_layers
        return next(part for part in self.decoder.children() if isinstance(part, nn.ModuleList) and len(part) == num)

    def run(self, layout: Forest) -> Tensor:
        """[layout.length, hidden]: the nodes and their padding."""
        result = self.decoder(input_ids=layout.tokens, position_ids=layout.positions, use_cache=False, layout=layout)
        hidden: Tensor = result.last_hidden_state[0]
        return hidden

    def plain(self, row: Row) -> Tensor:
        """[nodes, hidden], from one padded row a sequence. A node of several sequences is computed in each."""
        lengths = [len(path) for path in row.nodes]
        tokens = np.zeros((len(lengths), max(lengths)), dtype=np.int64)
        mask = np.zeros_like(tokens)
        for k, path in enumerate(row.nodes):
            tokens[k, : len(path)] = row.tokens[path]
            mask[k, : len(path)] = 1
        positions = np.flatnonzero(mask)[np.unique(np.concatenate(row.nodes), return_index=True)[1]]
        input_ids, attended, chosen = upload_arrays([tokens, mask, positions], self.device)
        result = self.decoder(input_ids=input_ids, attention_mask=attended, use_cache=False)
        return result.last_hidden_state.flatten(0, 1).index_select(0, chosen)

    def describe_structure(self) -> str:
        """All that decides which code the model runs: its configuration, the kinds of its modules (an adapter's among
        them), dtype and device. Other weights of the same structure are computed by the same code."""
        kinds = sorted({f"{type(part).__module__}.{type(part).__qualname__}" for part in self.module.modules()})
        return "\n".join(
            [self.module.config.to_json_string(), *kinds, str(self.dtype), str(self.device), self.fallback]
        )
