"""What is missing is named before any work is done."""

from __future__ import annotations

import sys

import pytest

from aurify.errors import UserError
from aurify.export.gguf import check_gguf_types


def test_without_llama_cpp(monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(UserError, match=r"to check GGUF files with llama.cpp, install xllamacpp .*aurify\[gguf\]"):
        check_gguf_types(["q8_0"])
