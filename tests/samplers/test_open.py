"""A recipe names its sampler; whatever it says is heard, or refused with the mend."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
from models import random_model

from aurify.config import build_options
from aurify.engine.engine import Engine
from aurify.errors import UserError
from aurify.pipeline.recipe import build_recipe
from aurify.samplers import open as opening
from aurify.samplers.inprocess import InProcessSampler
from aurify.samplers.open import SamplerOptions, open_sampler


def test_in_process_is_the_default_and_gets_all_options():
    engine = Engine(random_model(), trainable=False)
    sampler = open_sampler(
        build_options(SamplerOptions, {"max_batch": 5, "options": {"cache_bytes": 10**6}}), engine, seed=3
    )
    assert isinstance(sampler, InProcessSampler)
    assert (sampler.engine, sampler.max_batch, sampler.cache_bytes) == (engine, 5, 10**6)
    assert sampler.max_context == engine.max_context
    assert open_sampler(SamplerOptions(max_context=9), engine).max_context == 9


def test_another_kind_is_a_file_of_its_own(monkeypatch):
    module = ModuleType("another")
    module.open_it = lambda engine, *, seed, max_batch, max_context, url: SimpleNamespace(engine=engine, url=url)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "another", module)
    monkeypatch.setitem(opening.KINDS, "served", "another:open_it")
    assert open_sampler(SamplerOptions(kind="served", options={"url": "x"}), "engine").url == "x"  # type: ignore[arg-type, attr-defined]
    with pytest.raises(UserError, match="sampler 'served' needs the option 'url'"):
        open_sampler(SamplerOptions(kind="served"), "engine")  # type: ignore[arg-type]


def test_unknown_kinds_and_options_are_errors():
    with pytest.raises(UserError, match=r"sampler\.kind: 'inprocess' is no sampler; did you mean 'in_process'"):
        build_recipe({"model": "random:tiny", "sampler": {"kind": "inprocess"}, "stages": {"a": {"method": "grpo"}}})
    with pytest.raises(UserError, match=r"sampler 'in_process' has no option 'cache_byte'; did you mean 'cache_bytes'"):
        SamplerOptions(options={"cache_byte": 1})
