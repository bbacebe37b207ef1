"""Runs tasks of lm-evaluation-harness (extra `lm-eval`) on our engine and sampler. Prompts, examples in them
and scores are the harness's; log-likelihoods are those of the packed engine, answers those of the sampler. Texts are
encoded, and prompts that are too long are cut at their left, as the harness does it for models of transformers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from aurify.config import dump_config
from aurify.engine.engine import Engine
from aurify.errors import UserError
from aurify.evaluation.evaluate import compute_heldout_logprobs
from aurify.evaluation.suite import Suite, is_whole_task
from aurify.files import require
from aurify.renderer import Renderer
from aurify.samplers.sampler import Sampler
from aurify.types import Datum, SamplingParams

PURPOSE = "to run suites of lm-evaluation-harness"
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
SAMPLED = ("temperature", "top_p", "top_k", "min_p")
KNOWN = {"until", "do_sample", *LIMITS, *SAMPLED}
Run = Callable[[Coroutine[Any, Any, Any]], Any]  # in the event loop of the sampler
Scored = tuple[float, bool]  # the log-prob of a continuation, and whether it is the greedy one


@dataclass
class HarnessModel:
    """What the harness asks of a model. `open_harness_model` makes one of its own kind of it."""

    engine: Engine
    sampler: Sampler
    renderer: Renderer
    run: Run
    num_cut: int = field(default=0, init=False)  # prompts that were cut at their left

    def __post_init__(self) -> None:
        super().__init__()
        self.tokenizer = self.renderer.tokenizer
        self.max_length = self.engine.max_context

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """None: as the tokenizer does it, unless the text begins with its first token already."""
        begun = add_special_tokens is None and string.startswith(self.tokenizer.decode([self.prefix_token_id]))
        wanted = False if begun else add_special_tokens
        return list(self.tokenizer.encode(string, **({} if wanted is None else {"add_special_tokens": wanted})))

    def apply_chat_template(self, chat_history: list[Any], add_generation_prompt: bool = True) -> str:
        """Without the opening of a turn, the last message is one that the model goes on with."""
        text = self.renderer.template.text(chat_history, generate=add_generation_prompt)
        last = str(chat_history[-1]["content"]).strip()
        return text if add_generation_prompt else text[: text.rindex(last) + len(last)]

    # ------------------------------------------------------------------ log-likelihoods

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[Scored]:
        pairs = [self.fit_pair(context, continuation) for _, context, continuation in requests]
        data = [Datum([*a, *b], [0.0] * len(a) + [1.0] * len(b)) for a, b in pairs]
        values = [math.fsum(row) for row in compute_heldout_logprobs(self.engine, data)]
        greedy = self.run(self.write_greedily(pairs))
        return [(value, greedy[tuple(a)][: len(b)] == b) for value, (a, b) in zip(values, pairs, strict=True)]

    def fit_pair(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        if len(continuation) >= self.max_length:
            raise UserError(
                f"a continuation of {len(continuation)} tokens is to be scored, and the context has {self.max_length}"
            )
        return self.cut_left(context, self.max_length - len(continuation)), continuation

    def cut_left(self, tokens: list[int], limit: int) -> list[int]:
        self.num_cut += len(tokens) > limit
        return tokens[-limit:]

    async def write_greedily(self, pairs: Sequence[tuple[list[int], list[int]]]) -> dict[tuple[int, ...], list[int]]:
        """What follows each context greedily, as far as its longest continuation goes."""
        lengths: dict[tuple[int, ...], int] = {}
        for context, continuation in pairs:
            lengths[tuple(context)] = max(len(continuation), lengths.get(tuple(context), 0))
        made = await asyncio.gather(
            *(self.sampler.sample([*context], greedy_params(length)) for context, length in lengths.items())
        )
        return {context: one.tokens for context, [one] in zip(lengths, made, strict=True)}

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, in windows where they are longer than the context."""
        utils = require("lm_eval.utils", "lm-eval", PURPOSE)
        totals = []
        for request in requests:
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 1,  # a window has a token before it
                context_len=1,
            )
            parts = [(None, *utils.make_disjoint_window(window)) for window in windows]
            totals.append(math.fsum(value for value, _ in self._loglikelihood_tokens(parts)))
        return totals

    # ------------------------------------------------------------------ answers

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        async def answer() -> list[str]:
            return await asyncio.gather(*(self.write(index, *r.args) for index, r in enumerate(requests)))

        return cast(list[str], self.run(answer()))

    async def write(self, index: int, context: str, options: Mapping[str, Any]) -> str:
        params, until = read_generation_options(options, index)
        tokens = self.cut_left(self.tok_encode(context), self.max_length - params.max_tokens)
        [completion] = await self.sampler.sample(tokens, params)
        text = str(self.tokenizer.decode(completion.tokens, skip_special_tokens=True))
        for stop in until:
            text = text.split(stop)[0]
        return text


def greedy_params(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0)


def read_generation_options(options: Mapping[str, Any], seed: int) -> tuple[SamplingParams, list[str]]:
    """As the harness means them: greedy unless do_sample or a temperature says otherwise. The texts that end an answer
    do not belong to it."""
    if unknown := sorted(set(options) - KNOWN):
        raise UserError(f"generation: {unknown[0]!r} has no meaning here; known are {', '.join(sorted(KNOWN))}")
    until = options.get("until") or []
    until = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
    max_tokens = next((int(options[name]) for name in LIMITS if options.get(name)), 256)
    temperature = float(options.get("temperature") or (1.0 if options.get("do_sample") else 0.0))
    if options.get("do_sample") is False or temperature == 0:
        return SamplingParams(max_tokens=max_tokens, temperature=0.0, stop=tuple(until)), until
    given = {name: options[name] for name in SAMPLED if options.get(name) is not None} | {"temperature": temperature}
    return SamplingParams(max_tokens=max_tokens, stop=tuple(until), seed=seed, **given), until


# ---------------------------------------------------------------------- a suite


def open_harness_model(engine: Engine, sampler: Sampler, renderer: Renderer, run: Run) -> HarnessModel:
    api = require("lm_eval.api.model", "lm-eval", PURPOSE)
    kind = type("AurifyModel", (HarnessModel, api.TemplateLM), {})
    return cast(HarnessModel, kind(engine, sampler, renderer, run))


def run_suite(suite: Suite, model: HarnessModel) -> dict[str, Any]:
    """The harness's results, with every question under `samples`."""
    evaluator = require("lm_eval.evaluator", "lm-eval", PURPOSE)
    manager = require("lm_eval.tasks", "lm-eval", PURPOSE).TaskManager(include_defaults=not suite.is_whole)
    template = {"apply_chat_template": True, "fewshot_as_multiturn": suite.fewshot_as_turns}
    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    with TemporaryDirectory() as scratch:
        tasks = list_task_files(suite, manager.task_index, Path(scratch))
        try:
            return cast(
                dict[str, Any],
                evaluator.simple_evaluate(
                    model=model,
                    tasks=tasks,
                    task_manager=manager,
                    num_fewshot=suite.num_fewshot,
                    limit=suite.limit_count,
                    system_instruction=suite.system,
                    gen_kwargs=dict(suite.generation) or None,
                    bootstrap_iters=1000,
                    **(template if suite.chat_template else {"fewshot_as_multiturn": False}),
                    **dict.fromkeys(seeds, suite.seed),
                ),
            )
        except (OSError, KeyError) as error:
            raise UserError(
                f"suite {suite.name}: its tasks cannot be loaded ({type(error).__name__}: {str(error)[:300]}). Where "
                "the hub does not answer, give local files: files.TASK.test=FILE; names of tasks: lm-eval ls tasks"
            ) from error


def list_task_files(suite: Suite, index: Mapping[str, Any], folder: Path) -> list[str | dict[str, Any]]:
    """Tasks as the harness takes them. index: what it knows. Changes of a task that it knows go into a file that
    includes the harness's own."""
    tasks: list[str | dict[str, Any]] = []
    for name, changes in suite.list_changes():
        if not is_whole_task(changes) and name not in index:
            raise UserError(f"suite {suite.name}: lm-eval knows no task {name!r}; `lm-eval ls tasks` lists them")
        if changes and not is_whole_task(changes):
            changes = {"include": str(index[name].yaml_path), "tag": None, "task": name, **changes}
            path = folder / f"{len(tasks)}.yaml"
            path.write_text(dump_config(changes), encoding="utf-8")
            tasks.append(str(path))
        else:
            tasks.append({"task": name, **changes} if changes else name)
    return tasks


def list_suite_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a task and number: the harness calls a number `metric,filter`."""
    rows = []
    for task, numbers in results["results"].items():
        for key, value in numbers.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = numbers.get(f"{metric}_stderr,{chosen}")
            num = results["n-samples"].get(task, {}).get("effective", 0)
            measure = metric if chosen == "none" else f"{metric}, {chosen}"
            known = float(error) if isinstance(error, int | float) else 0.0
            rows.append({"task": task, "measure": measure, "value": float(value), "error": known, "num": num})
    return rows


def list_suite_values(results: Mapping[str, Any], task: str, measure: str) -> dict[str, float]:
    """What each question earned by a number that is a mean over questions, by its id."""
    metric, _, chosen = measure.partition(", ")
    known = {}
    for sample in results.get("samples", {}).get(task, ()):
        value = sample.get(metric)
        if sample.get("filter", "none") == (chosen or "none") and isinstance(value, int | float):
            known[str(sample["doc_id"])] = float(value)
    return known
