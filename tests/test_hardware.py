"""Device and dtype: what is chosen, and that the reason is told."""

from __future__ import annotations

import asyncio
import logging
import platform

import psutil
import pytest
import torch
from models import random_model

from aurify import hardware
from aurify.engine.engine import Engine
from aurify.errors import UserError
from aurify.samplers.inprocess import InProcessSampler
from aurify.types import SamplingParams

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv(hardware.DTYPE_VARIABLE, raising=False)


@pytest.mark.parametrize(("flag", "expected"), [("avx512_bf16", torch.bfloat16), ("avx2", torch.float32)])
def test_auto_is_bf16_only_where_the_cpu_has_it(flag, expected, monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {flag: True})
    choice = hardware.choose_dtype("auto", CPU)
    assert choice.dtype == expected and (flag if flag != "avx2" else "no bf16") in choice.reason
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "aurify"):
        assert hardware.choose_dtype("bfloat16", CPU).dtype == torch.bfloat16
    assert ("emulated" in caplog.text) == (expected == torch.float32)


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), torch.float32), ((8, 6), torch.bfloat16)])
def test_a_card_before_ampere_gets_fp32_and_is_told(capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card X")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: capability >= (8, 0))
    choice = hardware.choose_dtype("auto", torch.device("cuda"))
    assert choice.dtype == expected and "Card X" in choice.reason
    assert ("older than Ampere" in choice.reason) == (expected == torch.float32)


def test_the_variable_says_what_auto_means(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setenv(hardware.DTYPE_VARIABLE, "float32")
    choice = hardware.choose_dtype("auto", CPU)
    assert choice.dtype == torch.float32 and "AURIFY_DTYPE" in choice.reason
    assert hardware.choose_dtype("bfloat16", CPU).dtype == torch.bfloat16  # what the recipe says counts
    monkeypatch.setenv(hardware.DTYPE_VARIABLE, "half")
    with pytest.raises(UserError, match=r"AURIFY_DTYPE: 'half'.*float32, bfloat16 or auto"):
        hardware.choose_dtype("auto", CPU)


def test_a_container_has_the_memory_of_its_limit(tmp_path, monkeypatch):
    physical = hardware.machine_memory()
    assert physical > 0
    limit = tmp_path / "memory.max"
    real = hardware.Path
    monkeypatch.setattr(hardware, "Path", lambda name: limit if name == "/sys/fs/cgroup/memory.max" else real("absent"))
    limit.write_text("1000000\n")
    assert hardware.machine_memory() == 1_000_000
    limit.write_text("max\n")
    assert hardware.machine_memory() >= physical


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc keeps what threads have freed")
def test_what_a_thread_has_freed_goes_back_when_sampling_begins_and_ends():
    """After a training step glibc kept 2.5 GB of 4.8, in the arenas of threads that were done."""
    sampler = InProcessSampler(Engine(random_model()))
    sampler.prepare()

    def resident() -> int:
        return psutil.Process().memory_info().rss

    def fill() -> bytes:
        """128 MiB in pieces of a thread's arena, of which the last one stays."""
        return [b"x" * 2**16 for _ in range(2048)][-1]

    async def body():
        kept = await asyncio.to_thread(fill)
        before = resident()
        await sampler.sample([5, 6, 7], SamplingParams(max_tokens=3))
        after = resident()
        await sampler.close()
        return before - after, kept

    freed, _ = asyncio.run(body())
    assert freed > 100 * 2**20
