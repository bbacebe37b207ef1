"""q4_k_m: a GGUF file is written again with blocks that ggml quantises, the mixture of llama.cpp's `llama-quantize`.
ggml comes with xllamacpp, whose library exports its C functions."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from aurify.errors import UserError
from aurify.files import require

FILE_TYPE = 15  # "mostly Q4_K, medium" in general.file_type
BLOCK = 256  # values that Q4_K and Q6_K quantise together
ALTERNATIVES = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}  # for rows that are no multiple of BLOCK


def quantise_gguf(wide: Path, file: Path) -> None:
    reader = gguf.GGUFReader(wide)
    writer = gguf.GGUFWriter(file, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        writer.add_key_value(field.name, field.contents(), kind, field.types[-1] if kind.name == "ARRAY" else None)
    writer.add_file_type(FILE_TYPE)
    if "general.quantization_version" not in reader.fields:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    num_layers = sum(tensor.name.endswith(".attn_norm.weight") for tensor in reader.tensors)
    names = {tensor.name for tensor in reader.tensors}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        chosen = choose_gguf_type(tensor.name, values.shape, num_layers, "output.weight" not in names)
        if chosen == "F32":
            writer.add_tensor(tensor.name, values)
        else:
            kind = gguf.GGMLQuantizationType[chosen]
            writer.add_tensor(
                tensor.name, quantise_gguf_rows(values, kind, gguf.quant_shape_to_byte_shape), raw_dtype=kind
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def choose_gguf_type(name: str, shape: tuple[int, ...], num_layers: int, tied: bool) -> str:
    """llama.cpp's choice for Q4_K_M: six bits for the head and, in half of the layers, for values and down
    projections."""
    parts = name.split(".")
    if len(shape) < 2 or not name.endswith(".weight") or parts[-2].endswith("norm") or "gate_inp" in name:
        return "F32"
    finer = name == "output.weight" or (tied and name == "token_embd.weight")
    if parts[0] == "blk" and parts[2] in ("attn_v", "ffn_down", "ffn_down_exps"):
        layer, eighth = int(parts[1]), num_layers // 8
        finer = layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2
    chosen = "Q6_K" if finer else "Q4_K"
    return chosen if shape[-1] % BLOCK == 0 else ALTERNATIVES[chosen]


def quantise_gguf_rows(values: np.ndarray, kind: Any, byte_shape: Any) -> np.ndarray:
    library = require("xllamacpp.xllamacpp", "gguf", "to quantise GGUF files").__file__
    try:
        quantise_chunk = ctypes.CDLL(library).ggml_quantize_chunk
    except (OSError, AttributeError):
        raise UserError(
            f"this build of xllamacpp hides ggml's quantiser ({library}). Export bf16, and let llama.cpp's own tool do "
            "the rest: llama-quantize MODEL-bf16.gguf MODEL-q4_k_m.gguf q4_k_m"
        ) from None
    quantise_chunk.restype = ctypes.c_size_t
    rows = np.ascontiguousarray(values, dtype=np.float32)
    result = np.empty(byte_shape(rows.shape, kind), dtype=np.uint8)
    num_columns = rows.shape[-1]
    written = quantise_chunk(
        ctypes.c_int(int(kind)), rows.ctypes.data_as(ctypes.c_void_p), result.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int64(0), ctypes.c_int64(rows.size // num_columns), ctypes.c_int64(num_columns), None,
    )  # fmt: skip
    assert written == result.nbytes
    return result
