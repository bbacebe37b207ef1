"""A vLLM server as sampler, against a server that answers in vLLM's form from a real tiny model (fake_vllm.py)."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx
import pytest
import torch
from models import ATTENTIVE, random_engine, run_sampler
from safetensors.torch import load_file
from vllm_stand_in import FAKE, write_stand_in

from aurify.engine import weights
from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.errors import UserError
from aurify.samplers import vllm_servers
from aurify.samplers.inprocess import InProcessSampler
from aurify.samplers.open import SamplerOptions, open_sampler
from aurify.samplers.sampler import Session
from aurify.types import Datum, SamplingParams

PROMPT = list(range(40, 60))


@pytest.fixture
def python(tmp_path):
    """What `python -m vllm.entrypoints.openai.api_server` is for the sampler."""
    yield write_stand_in(tmp_path / "python")
    for servers in list(vllm_servers.OPEN.values()):
        servers.end()
    vllm_servers.OPEN.clear()


def make_engine(dtype: str = "float32", *, lora: bool = True) -> Engine:
    adapter = LoraConfig(rank=4, alpha=8) if lora else None
    return random_engine(lora=adapter, dtype=getattr(torch, dtype), **ATTENTIVE)


def open_it(engine: Engine, python: str, **options: Any) -> Any:
    values = {"python": python, "start_seconds": 600.0, **options}
    if "faults" in values:
        values["environment"] = {"FAKE_FAULTS": values.pop("faults")}
    if "urls" in values:
        del values["python"]
    kind = values.pop("kind", "vllm_server")
    return open_sampler(SamplerOptions(kind=kind, max_context=128, options=values), engine)


def change(engine: Engine, seed: int = 1) -> None:
    """As a step of training would, only more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in engine.trainable:
            parameter += (0.15 * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)
    if engine.adapter is not None:
        engine.adapter.merge()
    engine.version += 1


def measure_gap(engine: Engine, prompt: list[int], completions: list[Any], temperature: float) -> float:
    gaps = []
    for one in completions:
        datum = Datum([*prompt, *one.tokens], [0.0] * len(prompt) + [1.0] * len(one.tokens))
        [known] = engine.logprobs([datum], temperature=temperature)
        gaps += [abs(a - b) for a, b in zip(known[len(prompt) :], one.logprobs, strict=True)]
    return fmean(gaps)


def read_stats(sampler: Any) -> list[dict[str, Any]]:
    return [httpx.get(f"{server.url}/stats", trust_env=False).json() for server in sampler.servers]


@pytest.mark.parametrize("push", ["adapter", "full"])
def test_answers_are_the_trainers_after_each_push(python, dtype, push):
    engine = make_engine(dtype)
    sampler = open_it(engine, python, push=push)
    close = 1e-4 if dtype == "float32" else 0.08
    greedy = SamplingParams(max_tokens=12, temperature=0.0)

    async def body() -> None:
        for version in range(3):
            if version:  # the first push is the sampler's own
                change(engine, version)
                await sampler.load_weights(engine.weights(), engine.version)
            params = SamplingParams(max_tokens=12, temperature=0.7, seed=5)
            made = await sampler.sample(PROMPT, params, 3)
            assert measure_gap(engine, PROMPT, made, 0.7) < close
            assert all(one.versions == [version] * len(one.tokens) for one in made)
            assert len({tuple(one.tokens) for one in made}) == 3
            again = await sampler.sample(PROMPT, params, 3)
            assert [one.tokens for one in again] == [one.tokens for one in made]
            if dtype == "float32":
                inside = InProcessSampler(engine)
                [expected], [found] = await inside.sample(PROMPT, greedy), await sampler.sample(PROMPT, greedy)
                await inside.close()
                assert found.tokens == expected.tokens and found.finish == expected.finish
        [stats] = read_stats(sampler)
        assert stats["pushes"] == stats["resets"] == 3
        assert len(list(sampler.weights_folder.iterdir())) == 1  # old ones are removed

    run_sampler(sampler, body)
    assert not sampler.weights_folder.exists()


def test_limits_stops_and_errors_of_a_request(python):
    engine = make_engine()
    sampler = open_it(engine, python)

    async def body() -> None:
        [whole] = await sampler.sample(PROMPT, SamplingParams(max_tokens=20, seed=1))
        assert (whole.finish, len(whole.tokens)) == ("length", 20)
        text = engine.tokenizer.decode(whole.tokens[5:7])
        told: list[int] = []
        [cut] = await sampler.sample(PROMPT, SamplingParams(max_tokens=20, seed=1, stop=(text,)), on_token=told.append)
        assert cut.tokens == whole.tokens[: len(cut.tokens)] == told and len(cut.tokens) <= 7 and cut.finish == "stop"
        [ended] = await sampler.sample(PROMPT, SamplingParams(max_tokens=20, seed=1, stop_tokens=(whole.tokens[3],)))
        assert ended.tokens == whole.tokens[: whole.tokens.index(whole.tokens[3]) + 1] and ended.finish == "stop"
        [full] = await sampler.sample(PROMPT * 6, SamplingParams(max_tokens=20, seed=1))
        assert len(full.tokens) == 8  # the context is full
        for wrong in ([], PROMPT * 7, [10**6]):
            with pytest.raises(UserError, match="prompt"):
                await sampler.sample(wrong, SamplingParams())

    run_sampler(sampler, body)
    with pytest.raises(ValueError, match="closed"):
        asyncio.run(sampler.sample(PROMPT, SamplingParams()))


@pytest.mark.parametrize("push", ["adapter", "full"])
def test_a_server_that_does_not_take_all_weights_is_an_error(python, push):
    engine = make_engine()
    sampler = open_it(engine, python, push=push, faults='{"drop": "layers.1."}')

    async def body() -> None:
        change(engine)
        with pytest.raises(UserError, match=r"differ from the trainer's by \d.* has not taken all of them"):
            await sampler.load_weights(engine.weights(), 1)
        with pytest.raises(UserError, match="no vLLM server is left"):  # nothing is sampled from the wrong weights
            await sampler.sample(PROMPT, SamplingParams())

    run_sampler(sampler, body)


def test_weights_that_are_missing_or_strange_are_never_pushed(python):
    engine = make_engine(lora=False)
    sampler = open_it(engine, python)
    whole = dict(engine.weights())
    name = min(whole)
    less = {key: tensor for key, tensor in whole.items() if key != name}
    wrong = {
        rf"1 weights of LlamaForCausalLM are missing, such as '{name}'": less,
        r"weight 'strange' \[1\] is none of": {**whole, "strange": torch.zeros(1)},
        rf"weight '{name}' \[2, 2\]": {**whole, name: torch.zeros(2, 2)},
    }

    async def body() -> None:
        for match, values in wrong.items():
            with pytest.raises(UserError, match=match):
                await sampler.load_weights(values.items(), 1)
        assert sampler.version == 0 and sampler.servers[0].process.running is None

    run_sampler(sampler, body)


def test_weights_are_written_in_files_that_are_not_too_large(tmp_path, monkeypatch):
    engine = make_engine()
    expected = {name: tensor.clone() for name, tensor in engine.weights()}
    monkeypatch.setattr(weights, "SHARD", 40_000)
    weights.write_shards(engine.weights(), tmp_path, engine.module)
    files = sorted(tmp_path.iterdir())
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert len(files) > 3 and found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(len(load_file(file)) == 1 or file.stat().st_size < 42_000 for file in files)


def test_two_servers_share_the_load_and_a_prompt_has_a_home(python):
    engine = make_engine()
    sampler = open_it(engine, python, num_servers=2, faults='{"seconds": 0.002}')
    prompts = [[number + 40, *PROMPT] for number in range(8)]

    async def body() -> None:
        params = SamplingParams(max_tokens=8)
        await asyncio.gather(*(sampler.sample(prompt, params, 4) for prompt in prompts))
        seen = [[tuple(p) for p in stats["prompts"] if len(p) == 21] for stats in read_stats(sampler)]
        assert sorted(map(len, seen)) == [16, 16]
        assert not {*seen[0]} & {*seen[1]}  # all answers to a prompt come from one server
        session = Session()
        home = []
        for length in (21, 90, 100):  # turns of a conversation, whatever else goes on
            with session:
                before = [server.num_sent for server in sampler.servers]
                await sampler.sample(prompts[0] * 5 if length > 21 else prompts[0], params)
                sent = [server.num_sent for server in sampler.servers]
                home.append([after - b for after, b in zip(sent, before, strict=True)])
            await sampler.sample(list(range(length)), params)
        assert home[0] == home[1] == home[2]

    run_sampler(sampler, body)


def test_a_common_beginning_does_not_keep_all_on_one_server(python):
    engine = make_engine()
    sampler = open_it(engine, python, num_servers=2)
    ready = sampler.servers
    beginning = list(range(100))
    for number in range(60):
        sampler._route(ready, [*beginning, number]).in_flight += 1
    low, high = sorted(server.in_flight for server in ready)
    assert low + high == 60 and high <= 2 * low + 9
    for server in ready:
        server.in_flight = 0
    assert len({id(sampler._route(ready, [*beginning, number])) for number in range(100, 110)}) == 1
    asyncio.run(sampler.close())


def kill(sampler: Any, number: int = 0) -> int:
    """The server itself, as the kernel does when memory runs out."""
    pid = read_stats(sampler)[number]["pid"]
    os.kill(pid, signal.SIGKILL)
    return pid


@pytest.mark.parametrize("num_servers", [1, 2])
def test_a_server_killed_in_mid_step_loses_nothing(python, caplog, num_servers):
    caplog.set_level(logging.WARNING, logger="aurify")
    engine = make_engine()
    sampler = open_it(engine, python, num_servers=num_servers, faults='{"seconds": 0.05}')
    prompts = [[number + 40, *PROMPT] for number in range(8)]
    params = SamplingParams(max_tokens=12, seed=3)

    async def body() -> None:
        change(engine)
        await sampler.load_weights(engine.weights(), 1)
        expected = [(await sampler.sample(prompt, params, 2)) for prompt in prompts]
        asked = [asyncio.ensure_future(sampler.sample(prompt, params, 2)) for prompt in prompts]
        await asyncio.sleep(0.25)
        killed = await asyncio.to_thread(kill, sampler)
        found = [await one for one in asked]
        assert [[one.tokens for one in row] for row in found] == [[one.tokens for one in row] for row in expected]
        assert {one.versions[0] for row in found for one in row} == {1}
        assert "What it was asked is asked again" in caplog.text and "it is started again" in caplog.text
        while sampler.servers[0].label != sampler.label:  # it comes back, with the weights of now
            await sampler._choose(PROMPT)
            await asyncio.sleep(0.1)
        stats = read_stats(sampler)[0]
        assert stats["pid"] != killed and stats["pushes"] == 1
        [one] = await sampler.sample(PROMPT, params)
        assert measure_gap(engine, PROMPT, [one], 1.0) < 1e-4

    run_sampler(sampler, body)


def test_a_server_that_never_comes_up_is_an_error_with_its_last_words(python, tmp_path):
    def fail(engine: Engine, program: str, match: str) -> None:
        sampler = open_it(engine, program)
        with pytest.raises(UserError, match=match):
            run_sampler(sampler, lambda: sampler.sample(PROMPT, SamplingParams()))

    fail(make_engine(), str(tmp_path / "absent"), "has ended after 1 starts. It wrote: .*not found.*docs/vllm.md")
    fail(make_engine(), sys.executable, "No module named 'vllm'.*docs/vllm.md")


def test_a_server_that_dies_again_and_again_is_given_up(python, tmp_path, monkeypatch):
    """It comes up, and each time it is asked it dies."""
    engine = make_engine()
    sampler = open_it(engine, python)

    async def body() -> None:
        await sampler.sample(PROMPT, SamplingParams(max_tokens=2))
        monkeypatch.setattr(sampler, "_check_push", lambda server: asyncio.to_thread(kill, sampler))
        await asyncio.to_thread(kill, sampler)
        with pytest.raises(UserError, match="no vLLM server is left: a vLLM server has ended after 3 starts"):
            await sampler.sample(PROMPT, SamplingParams(max_tokens=2))

    run_sampler(sampler, body)


def test_a_busy_server_is_asked_again(python):
    sampler = open_it(make_engine(), python, faults='{"flaky": 4}')

    async def body() -> None:
        made = await sampler.sample(PROMPT, SamplingParams(max_tokens=4), 4)
        assert [len(one.tokens) for one in made] == [4] * 4

    run_sampler(sampler, body)


def test_who_gives_up_closes_the_request(python):
    sampler = open_it(make_engine(), python, faults='{"seconds": 0.1}')

    async def body() -> None:
        await sampler.sample(PROMPT, SamplingParams(max_tokens=1))
        asked = asyncio.ensure_future(sampler.sample(PROMPT, SamplingParams(max_tokens=100), 3))
        await asyncio.sleep(0.5)
        asked.cancel()
        for _ in range(100):
            if (stats := read_stats(sampler)[0])["aborted"] == 3:
                break
            await asyncio.sleep(0.1)
        assert stats["aborted"] == 3 and sampler.num_running == 0 and sampler.servers[0].in_flight == 0

    run_sampler(sampler, body)


def test_new_weights_wait_for_the_requests_in_flight(python):
    engine = make_engine()
    sampler = open_it(engine, python, faults='{"seconds": 0.03}')

    async def body() -> None:
        await sampler.sample(PROMPT, SamplingParams(max_tokens=1))
        early = asyncio.ensure_future(sampler.sample(PROMPT, SamplingParams(max_tokens=20), 2))
        await asyncio.sleep(0.1)
        change(engine)
        push = asyncio.ensure_future(sampler.load_weights(engine.weights(), 1))
        await asyncio.sleep(0)
        late = asyncio.ensure_future(sampler.sample(PROMPT, SamplingParams(max_tokens=20), 2))
        assert {version for one in await early for version in one.versions} == {0}
        await push
        assert measure_gap(engine, PROMPT, made := await late, 1.0) < 1e-4
        assert {version for one in made for version in one.versions} == {1}

    run_sampler(sampler, body)


# ---------------------------------------------------------------------- servers of others


class Foreign:
    """A server that somebody else has started."""

    def __init__(self, folder: Path, port: int, faults: str = "{}", max_model_len: int = 128) -> None:
        command = [sys.executable, str(FAKE), "--model", str(folder), "--host", "127.0.0.1", "--port", str(port)]
        command += ["--dtype", "float32", "--logprobs-mode", "processed_logprobs", "--enable-lora"]
        command += ["--max-model-len", str(max_model_len)]
        self.running = subprocess.Popen(command, env=os.environ | {"FAKE_FAULTS": faults})
        self.url = f"http://127.0.0.1:{port}"

    def end(self) -> None:
        self.running.kill()
        self.running.wait()


@pytest.fixture
def foreign(tmp_path):
    import socket

    started: list[Foreign] = []

    def start(engine: Engine, port: int = 0, **options: Any) -> Foreign:
        folder = tmp_path / "served"
        folder.mkdir(exist_ok=True)
        found = vllm_servers.find_server_base(engine, folder) if not (folder / "base").exists() else folder / "base"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = port or probe.getsockname()[1]
        started.append(Foreign(found, port, **options))
        return started[-1]

    yield start
    for one in started:
        one.end()


def test_a_server_of_others_is_joined_and_pushed_to_again_when_it_was_started_anew(python, foreign, caplog):
    caplog.set_level(logging.WARNING, logger="aurify")
    engine = make_engine()
    server = foreign(engine)
    sampler = open_it(engine, python, urls=server.url)
    params = SamplingParams(max_tokens=8, seed=2)

    async def body() -> None:
        change(engine)
        await sampler.load_weights(engine.weights(), 1)
        [before] = await sampler.sample(PROMPT, params)
        server.end()
        other = foreign(engine, port=int(server.url.rpartition(":")[2]))
        while True:  # nothing tells us that it is another one
            try:
                httpx.get(f"{other.url}/health", trust_env=False)
                break
            except httpx.TransportError:
                await asyncio.sleep(0.1)
        [after] = await sampler.sample(PROMPT, params)
        assert after.tokens == before.tokens and measure_gap(engine, PROMPT, [after], 1.0) < 1e-4
        assert "asked again" in caplog.text
        other.end()
        sampler.start_seconds = 1.0
        with pytest.raises(UserError, match="was not healthy for 1 seconds"):
            await sampler.sample(PROMPT, params)

    run_sampler(sampler, body)


def test_a_full_push_that_another_trainer_has_overwritten_is_noticed(python, foreign):
    engine = make_engine(lora=False)
    server = foreign(engine)
    sampler = open_it(engine, python, urls=[server.url])

    async def body() -> None:
        await sampler.sample(PROMPT, SamplingParams(max_tokens=2))
        httpx.post(f"{server.url}/update_weight_version", json={"new_version": "another's"}, trust_env=False)
        [made] = await sampler.sample(PROMPT, SamplingParams(max_tokens=2))
        assert len(made.tokens) == 2 and read_stats(sampler)[0]["pushes"] == 2

    run_sampler(sampler, body)


def test_servers_whose_answers_a_trainer_would_misread_are_refused(python, foreign):
    engine = make_engine()
    cases = {
        "raw_logprobs; start it with --logprobs-mode": foreign(engine, faults='{"mode": "raw_logprobs"}'),
        r"takes 64 tokens, and we may send 128: set sampler\.max_context: 64": foreign(engine, max_model_len=64),
    }
    for match, server in cases.items():
        sampler = open_it(engine, python, urls=server.url)
        with pytest.raises(UserError, match=match):
            run_sampler(sampler, lambda sampler=sampler: sampler.load_weights(engine.weights(), 0))
    other = make_engine()
    change(other)
    with torch.no_grad():
        other.module.get_input_embeddings().weight.mul_(-1.0)
    server = foreign(engine)
    sampler = open_it(other, python, urls=server.url)
    with pytest.raises(UserError, match="serves another model than"):
        run_sampler(sampler, lambda: sampler.load_weights(other.weights(), 1))


# ---------------------------------------------------------------------- whose servers they are


def test_servers_outlive_a_sampler_and_end_with_their_engine(python):
    def open_and_ask(engine: Engine, **options: Any) -> int:
        sampler = open_it(engine, python, **options)

        async def body() -> int:
            await sampler.sample(PROMPT, SamplingParams(max_tokens=1))
            return int(read_stats(sampler)[0]["pid"])

        return run_sampler(sampler, body)

    engine = make_engine()
    first = open_and_ask(engine)
    assert open_and_ask(engine) == first
    second = open_and_ask(engine, arguments={"max-num-seqs": 3})  # other options, another server
    assert second != first
    assert_ends(first)
    del engine
    gc.collect()
    assert_ends(second)


def assert_ends(pid: int) -> None:
    for _ in range(150):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError(f"{pid} still runs")


def test_servers_end_when_we_are_killed(python, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        f"import sys; sys.path[:0] = {[str(FAKE.parent), str(FAKE.parents[1])]}\n"
        "import asyncio, os, signal\n"
        "from test_vllm_server import *\n"
        f"sampler = open_it(make_engine(), {python!r})\n"
        "asyncio.run(sampler.sample(PROMPT, SamplingParams(max_tokens=1)))\n"
        "print(read_stats(sampler)[0]['pid'], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, timeout=600)
    assert done.returncode == -signal.SIGKILL
    assert_ends(int(done.stdout))


def test_options_that_do_not_go_together_are_errors(python):
    full, adapter = make_engine(lora=False), make_engine()
    cases: list[tuple[Engine, dict[str, Any], str]] = [
        (full, {"push": "adapter"}, "push: no adapter can be pushed: the engine trains none; set push: full"),
        (adapter, {"push": "adaptor"}, "'push' is 'adaptor'.*did you mean 'adapter'"),
        (adapter, {"num_server": 2}, "no option 'num_server'; did you mean 'num_servers'"),
        (adapter, {"num_servers": 0}, "num_servers: 0 is out of range"),
        (adapter, {"urls": "localhost:8000"}, "urls: 'localhost:8000'; expected something like http"),
        (
            adapter,
            {"urls": "http://localhost:1", "arguments": {"a": 1}},
            "arguments: it is for servers that are started",
        ),
    ]
    for engine, options, match in cases:
        with pytest.raises(UserError, match=match):
            open_it(engine, python, **options)
    dora = random_engine(lora=LoraConfig(rank=4))
    next(iter(dora.adapter.layers.values())).lora_magnitude = torch.nn.Parameter(torch.ones(1))  # type: ignore[union-attr]
    with pytest.raises(UserError, match="vLLM reads none with DoRA"):
        open_it(dora, python, push="adapter")
    sampler = open_it(dora, python)
    assert not sampler.as_adapter
    asyncio.run(sampler.close())


def test_flags_are_those_of_vllm():
    flags = {"tensor_parallel_size": 2, "enable_lora": True, "enforce_eager": False, "hf_overrides": {"a": 1}}
    expected = ["--tensor-parallel-size", "2", "--enable-lora", "--no-enforce-eager", "--hf-overrides", '{"a": 1}']
    assert vllm_servers.write_server_flags(flags) == expected


@pytest.mark.parametrize("push", ["adapter", "full"])
def test_a_colocated_server_sleeps_while_the_trainer_computes(python, dtype, push):
    engine = make_engine(dtype)
    close = 1e-4 if dtype == "float32" else 0.08
    params = SamplingParams(max_tokens=8, temperature=0.7, seed=5)
    sampler = open_it(engine, python, push=push, kind="vllm_colocated")

    async def body() -> None:
        for version in range(3):
            if version:
                change(engine, version)
                await sampler.load_weights(engine.weights(), engine.version)
            assert measure_gap(engine, PROMPT, await sampler.sample(PROMPT, params, 2), 0.7) < close
            await sampler.rest()
            [server] = sampler.servers
            assert await server.is_asleep(sampler._client())
        [made] = await sampler.sample(PROMPT, params)  # nobody has said that training is over
        assert measure_gap(engine, PROMPT, [made], 0.7) < close
        [stats] = read_stats(sampler)
        assert stats["sleeps"] == [1 if push == "adapter" else 2] * 3

    run_sampler(sampler, body)
    [server] = sampler.servers
    assert httpx.get(f"{server.url}/is_sleeping", trust_env=False).json() == {"is_sleeping": True}  # after its end, too
    other = open_it(engine, python, push=push, kind="vllm_colocated")  # as the measure after training is

    async def measured() -> None:
        assert measure_gap(engine, PROMPT, await other.sample(PROMPT, params), 0.7) < close

    run_sampler(other, measured)
    assert other.servers[0].url == server.url


def test_a_request_in_flight_ends_before_the_server_sleeps(python):
    engine = make_engine()
    sampler = open_it(engine, python, kind="vllm_colocated", faults='{"seconds": 0.05}')

    async def body() -> None:
        await sampler.load_weights(engine.weights(), engine.version)
        request = asyncio.ensure_future(sampler.sample(PROMPT, SamplingParams(max_tokens=20, seed=1)))
        while not sampler.num_running:
            await asyncio.sleep(0.01)
        await sampler.rest()
        assert request.done() and len(request.result()[0].tokens) == 20

    run_sampler(sampler, body)


def test_a_server_that_does_not_sleep_is_an_error(python):
    engine = make_engine()
    sampler = open_it(engine, python, kind="vllm_colocated", faults='{"awake": 1}')

    async def body() -> None:
        await sampler.load_weights(engine.weights(), engine.version)
        with pytest.raises(UserError, match="told to sleep, and says that it is awake"):
            await sampler.rest()

    run_sampler(sampler, body)


def test_a_server_that_has_ended_in_its_sleep_is_started_again(python):
    engine = make_engine()
    sampler = open_it(engine, python, kind="vllm_colocated")

    async def body() -> None:
        await sampler.load_weights(engine.weights(), engine.version)
        await sampler.rest()
        os.killpg(sampler.servers[0].process.running.pid, signal.SIGKILL)
        change(engine)
        await sampler.load_weights(engine.weights(), engine.version)
        made = await sampler.sample(PROMPT, SamplingParams(max_tokens=8, temperature=0.7, seed=5), 2)
        assert measure_gap(engine, PROMPT, made, 0.7) < 1e-4

    run_sampler(sampler, body)


@pytest.mark.parametrize("options", [{"urls": "http://127.0.0.1:1"}, {"num_servers": 2}, {"share": 1.0}])
def test_what_a_card_has_no_room_for_is_refused(options):
    with pytest.raises(UserError, match=next(iter(options))):
        SamplerOptions(kind="vllm_colocated", options=options)
        open_it(make_engine(), "python", kind="vllm_colocated", **options)
