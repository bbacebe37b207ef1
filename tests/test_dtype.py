"""Which dtype a model is loaded in: what the recipe says; where that is auto, AURIFY_DTYPE; else what is fast here."""

from __future__ import annotations

import pytest
import torch

from aurify.errors import UserError
from aurify.models.model import ModelConfig, load_model


def loaded(wish: str) -> torch.dtype:
    return load_model(ModelConfig("random:tiny", dtype=wish)).module.dtype


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_the_variable_decides_where_the_wish_is_auto(monkeypatch, name):
    monkeypatch.setenv("AURIFY_DTYPE", name)
    assert loaded("auto") == getattr(torch, name)
    assert [loaded("float32"), loaded("bfloat16")] == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("value", [None, "", "auto"])
def test_without_it_the_machine_decides(monkeypatch, value):
    monkeypatch.setenv("AURIFY_DTYPE", "float32")
    monkeypatch.delenv("AURIFY_DTYPE") if value is None else monkeypatch.setenv("AURIFY_DTYPE", value)
    assert loaded("auto") in (torch.float32, torch.bfloat16)


def test_an_unknown_value_is_named(monkeypatch):
    monkeypatch.setenv("AURIFY_DTYPE", "half")
    with pytest.raises(UserError, match="AURIFY_DTYPE: 'half' is not known"):
        loaded("auto")


def test_the_fixtures_for_tests(float32, dtype):
    assert loaded("auto") == torch.float32 and loaded(dtype) == getattr(torch, dtype)
