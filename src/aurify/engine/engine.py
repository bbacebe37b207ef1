"""The engine trains. Four verbs drive every model and every method:

    forward_backward(data, algorithm)   gradients of one term of the step's loss
    optim_step(lr)                      one update from the gradients so far
    logprobs(data)                      log-probs of the trained tokens, under the policy or the reference
    save(folder), load(folder)          everything that decides the future

The engine is blind to algorithms: it turns data into packed rows, runs the model, hands `Outputs` and `Batch` to
`algorithm.loss`, which returns a sum, and divides by the one denominator of the whole call (all micro-batches, all
ranks). Algorithms are blind to models, memory and devices."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from aurify.engine import parallel
from aurify.engine.adapter import Adapter
from aurify.engine.budget import Checkpointing, plan_memory, retreat
from aurify.engine.cpu.rows import choose_executor
from aurify.engine.divergence import check_teacher, linear_divergence
from aurify.engine.executor import Grads, Result, sum_terms
from aurify.engine.forward import Body
from aurify.engine.inputs import Inputs, build_inputs, select_trained
from aurify.engine.logprobs import Head, linear_logprobs
from aurify.engine.lora import LoraConfig
from aurify.engine.offload import HostStore
from aurify.engine.optim import MasterAdamW, OptimConfig
from aurify.engine.packing import Row, pack_rows
from aurify.engine.recompute import recompute_layers
from aurify.engine.restore import open_adapter
from aurify.engine.weights import Weights, share_weights
from aurify.errors import UserError
from aurify.models.loading import save_model
from aurify.models.model import LoadedModel, read_max_context, read_vocabulary
from aurify.types import Algorithm, Datum, Metrics, Outputs, count_units

STATE_FILE = "engine.pt"
OPTIMIZER_BYTES = 16  # a trained parameter: gradient, two moments, and the master of a weight that is not fp32
Key = TypeVar("Key", bound=Hashable)


class Engine:
    """A model with its optimiser.

    lora: train low-rank adapters instead of all weights. A model loaded from an adapter folder goes on with that
    adapter, whose initial state is then the reference. If lora is None, the adapter is merged and all weights are
    trained. micro_batch_tokens: nodes of a packed row; None: what the memory has room for. checkpointing: recompute
    activations in backward; "auto": if they would not fit; "offload": and keep layer inputs in host memory. share:
    prompt sharing. packing: False gives every sequence a padded row of its own, to compare with.

    The module stays in eval mode: the model's own dropout is off, so that log-probs are those of one policy. LoRA
    dropout is on in `forward_backward` alone."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        lora: LoraConfig | None = None,
        optim: OptimConfig | None = None,
        micro_batch_tokens: int | None = None,
        checkpointing: Checkpointing = "auto",
        share: bool = True,
        packing: bool = True,
        trainable: bool = True,
        seed: int = 0,
    ) -> None:
        self.module: Any = model.module
        self.tokenizer, self.name, self.origin, self.seed = model.tokenizer, model.name, model.origin, seed
        self.dtype, self.dtype_reason = self.module.get_input_embeddings().weight.dtype, model.dtype_reason
        self.device = next(self.module.parameters()).device
        self.share, self.version = share, 0
        self.lock = threading.RLock()  # held while weights change; the sampler takes it for each of its steps
        self.score: nn.Linear | None = getattr(self.module, "score", None)
        self.adapter: Adapter | None = open_adapter(model, lora, seed)
        head = None if self.score is not None else Head.of(self.module)
        if self.score is None and head is None:
            raise UserError(f"{self.name}: the output head of {type(self.module).__name__} is no plain linear layer")
        self.trainable = [p for p in self.module.parameters() if p.requires_grad] if trainable else []
        self.optimizer: MasterAdamW | None = None
        if trainable:
            rows = self.adapter.trained_rows() if self.adapter is not None else {}
            self.optimizer = MasterAdamW(self.trainable, optim or OptimConfig(), rows)
        self.dropout = self.adapter is not None and self.adapter.dropout > 0
        self.module.eval()
        num_trained = sum(parameter.numel() for parameter in self.trainable)
        wanted = checkpointing if trainable else False  # without gradients nothing is saved
        plan = plan_memory(self.module, self.device, OPTIMIZER_BYTES * num_trained, micro_batch_tokens, wanted)
        self.micro_batch_tokens, self.checkpointing = plan.micro_batch_tokens, plan.checkpointing
        self.store = HostStore() if wanted == "offload" and self.device.type != "cpu" else None
        if plan.checkpointing and not recompute_layers(self.module, self.adapter, self.store):
            self.checkpointing = False
            if checkpointing != "auto":
                raise UserError(
                    f"engine.checkpointing: {type(self.module).__name__} has no layers that can be recomputed; "
                    "set it to false"
                )
        self.executor = choose_executor(self.device, self.trainable, dropout=self.dropout)
        self.body = Body(self.module, head, packing=packing)
        self.reference_body: Body | None = None
        self.teacher: Engine | None = None  # see `follow`
        self.calls = 0  # forward_backward since the last optim_step
        self.retreats = 0  # how often memory ran out and the micro-batch was halved

    # ------------------------------------------------------------------ the four verbs

    def forward_backward(self, data: Sequence[Datum], algorithm: Algorithm, *, temperature: float = 1.0) -> Metrics:
        """Adds the gradient of `algorithm`'s loss over `data` to the step. Calls add up until `optim_step`.

        Returns the loss and the algorithm's metrics, divided by the denominator, and what was computed
        (`ledger/...`)."""
        if self.optimizer is None:
            raise ValueError("this engine was made with trainable=False")
        optimizer, scores = self.optimizer, "scores" in algorithm.needs
        teacher = self.followed() if "teacher_divergence" in algorithm.needs else None
        data = select_trained(
            data,
            algorithm,
            max_context=min(self.max_context, teacher.max_context) if teacher else self.max_context,
            vocabulary=self.vocabulary,
            has_score=self.score is not None,
        )
        counts = [
            sum(sum(datum.weights) for datum in data),
            len(data),
            count_units(data),
        ]
        totals = dict(zip(("token", "sequence", "unit"), parallel.sum_over_ranks(counts), strict=True))
        denominator = totals[algorithm.per]
        if denominator == 0:
            raise UserError(
                f"no trainable token in {len(data)} sequences: every weight is 0. Look at the chat template and at "
                "what is masked; `aurify train --dry-run` shows the first example"
            )

        def term(row: Row) -> tuple[dict[str, Any], Grads | None]:
            inputs = build_inputs(row, data, self.device)
            outputs = self._outputs(self.body, row, inputs, temperature, "entropy" in algorithm.needs, scores, teacher)
            loss, metrics = algorithm.loss(outputs, inputs.batch)
            if not loss.requires_grad:
                raise ValueError(f"{type(algorithm).__name__}.loss reaches no parameter: it returned a constant")
            grads = self.executor.backward(loss / denominator, self.trainable, self.micro_batch_tokens)
            return {"loss": loss.detach()} | metrics, grads

        def compute() -> tuple[list[Row], dict[str, float]]:
            rows, terms = self._rows(data, teacher), []
            for values, grads in self._each(rows, term, training=True):
                optimizer.collect(grads)
                terms.append(values)
            return rows, sum_terms(terms)

        rows, sums = retreat(self, compute)
        names = sorted(sums)
        reduced = parallel.sum_over_ranks([sums[name] for name in names])
        self.calls += 1
        return (
            {name: value / denominator for name, value in zip(names, reduced, strict=True)}
            | {
                "ledger/tokens_trained": totals["token"],
                "ledger/tokens_computed": float(sum(len(row.tokens) for row in rows)),
                "ledger/tokens_shared": float(sum(row.num_shared for row in rows)),
                "ledger/micro_batches": float(len(rows)),
            }
            | ({"ledger/retreats": float(self.retreats)} if self.retreats else {})
        )

    def optim_step(self, lr: float) -> Metrics:
        """One AdamW update; clips the gradient to `optim.max_grad_norm`. The next weights carry the next version. A
        gradient that is not finite changes nothing and is counted; see `MasterAdamW.step`."""
        if self.optimizer is None or self.calls == 0:
            raise ValueError("optim_step without a forward_backward before it")
        parallel.sum_grads(self.optimizer.masters)
        with self.lock:
            norm = self.optimizer.step(lr)
            if not self.optimizer.skipped:
                if self.adapter is not None:
                    self.adapter.merge()
                self.version += 1
        self.calls = 0
        skipped = {"ledger/steps_skipped": 1.0} if self.optimizer.skipped else {}
        return {"optim/grad_norm": norm, "optim/lr": lr} | skipped

    @torch.no_grad()
    def logprobs(
        self, data: Sequence[Datum], *, reference: bool = False, temperature: float = 1.0
    ) -> list[list[float]]:
        """Log-prob of every token with weight != 0, at the index of its token; 0.0 elsewhere.

        reference: under the policy that training began with. With an adapter that is the same model with the
        adapter switched off (or set back to its initial state); without one it is the frozen copy of
        `keep_reference`."""
        body = self._reference() if reference else self.body
        with self.adapter.using("reference") if reference and self.adapter is not None else nullcontext():
            return self._by_token(data, lambda row, inputs: self._outputs(body, row, inputs, temperature).logprobs)

    @torch.no_grad()
    def entropies(self, data: Sequence[Datum], *, temperature: float = 1.0) -> list[list[float]]:
        """Entropy, in nats, of the distribution that predicts each token with weight != 0; 0.0 elsewhere."""

        def entropy(row: Row, inputs: Inputs) -> Tensor:
            return self._outputs(self.body, row, inputs, temperature, entropy=True).entropy  # type: ignore[return-value]

        return self._by_token(data, entropy)

    @torch.no_grad()
    def scores(self, data: Sequence[Datum]) -> list[float]:
        """The scalar head on the last token of each sequence."""

        def score(row: Row) -> Iterable[tuple[int, float]]:
            outputs = self._outputs(self.body, row, build_inputs(row, data, self.device), 1.0, scores=True)
            return zip(row.data, outputs.scores.tolist(), strict=True)  # type: ignore[union-attr]

        values = self._gather(data, score)
        return [values[index] for index in range(len(data))]

    def over_ranks(self, values: Sequence[float]) -> list[float]:
        return parallel.gather(values)

    def save(self, folder: Path | str) -> None:
        """Everything of the engine that decides the future: master weights, optimiser, version."""
        if self.optimizer is None:
            raise ValueError("this engine was made with trainable=False: there is nothing to save")
        Path(folder).mkdir(parents=True, exist_ok=True)
        torch.save({"optimizer": self.optimizer.state_dict(), "version": self.version}, Path(folder) / STATE_FILE)

    def load(self, folder: Path | str) -> None:
        if self.optimizer is None:
            raise ValueError("this engine was made with trainable=False")
        # mapped, not read: the device never holds a second optimiser state
        state = torch.load(Path(folder) / STATE_FILE, map_location="cpu", mmap=True, weights_only=True)
        with self.lock:
            self.optimizer.load_state_dict(state["optimizer"])
            self.version = state["version"]
            if self.adapter is not None:
                self.adapter.merge()

    # ------------------------------------------------------------------ around them

    def keep_reference(self) -> None:
        """Keeps the present weights as the reference. An adapter needs no copy; full fine-tuning makes one, and so do
        whole weights that are trained beside an adapter. Call it before the first step and before `load`, if an
        algorithm needs reference log-probs all along."""
        if self.reference_body is None and (self.adapter is None or self.adapter.changes_base):
            changing = self.trainable if self.adapter is None else [e.parameter for e in self.adapter.extras]
            held = share_weights(self.module, own=changing)
            self.reference_body = Body(held, Head.of(held))

    def follow(self, teacher: Engine) -> None:
        """From now on `Outputs.divergence` compares with `teacher`."""
        tokens, taught = self.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
        check_teacher(self.name, tokens, teacher.name, taught, teacher.vocabulary)
        self.teacher = teacher

    def followed(self) -> Engine:
        if self.teacher is None:
            raise ValueError("a divergence from a teacher needs Engine.follow(teacher) before it")
        return self.teacher

    def weights(self) -> Weights:
        """What to sample from."""
        return Weights(self.module, self.adapter)

    def export(self, folder: Path | str) -> None:
        """Writes the model as a folder that plain transformers (or peft, for an adapter) loads."""
        if self.adapter is None:
            save_model(self.module, self.tokenizer, Path(folder))
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.adapter.save(Path(folder), self.name, self.origin)
        self.tokenizer.save_pretrained(folder)

    def describe(self) -> dict[str, Any]:
        """What was really chosen, as JSON values, for the record of a run."""
        adapter = self.adapter
        return {
            "model": self.name,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type,
            "dtype": str(self.dtype).removeprefix("torch."),
            "dtype_reason": self.dtype_reason,
            "seed": self.seed,
            "micro_batch_tokens": self.micro_batch_tokens,
            "checkpointing": self.checkpointing and (self.store is None or "offload"),
            "retreats": self.retreats,
            "rows_side_by_side": self.executor.parts(self.micro_batch_tokens),
            "merged_adapter": adapter is not None and any(x.merged is not None for x in adapter.layers.values()),
            "attention": self.body.describe(),
        }

    @property
    def head(self) -> Head | None:
        return self.body.head

    @property
    def vocabulary(self) -> int:
        return read_vocabulary(self.module)

    @property
    def max_context(self) -> int:
        return read_max_context(self.module)

    def close(self) -> None:
        """Lets go of the model's memory."""
        self.executor.close()
        del self.module, self.body, self.reference_body, self.optimizer, self.trainable
        self.adapter = self.score = self.teacher = None

    # ------------------------------------------------------------------ rows

    def _reference(self) -> Body:
        if self.reference_body is not None:
            return self.reference_body
        if self.adapter is not None and not self.adapter.changes_base:
            return self.body
        if self.version > 0:
            raise ValueError("reference log-probs after the first step need Engine.keep_reference() before it")
        return self.body  # nothing has changed yet

    def _rows(self, data: Sequence[Datum], teacher: Engine | None = None) -> list[Row]:
        packs, tokens = self.body.packs and (teacher is None or teacher.body.packs), self.micro_batch_tokens
        return pack_rows(data, tokens, self.share and packs, self.executor.parts(tokens), self.body.head_cost)

    def _each(
        self, rows: Sequence[Row], function: Callable[[Row], Result], *, training: bool = False
    ) -> Iterator[Result]:
        """What `function` gives for each row, in their order. It may run in another thread, which takes over the grad
        mode and the adapter's use of this one."""
        adapter, grad = self.adapter, torch.is_grad_enabled()
        use = adapter.state.use if adapter is not None else "adapter"
        dropping = training and self.dropout

        def run(row: Row) -> Result:
            mode = nullcontext() if adapter is None else adapter.using(use, dropping=dropping)
            with torch.set_grad_enabled(grad), mode:
                return function(row)

        return self.executor.run(rows, run, self.micro_batch_tokens)

    def _gather(self, data: Sequence[Datum], values: Callable[[Row], Iterable[tuple[Key, float]]]) -> dict[Key, float]:
        """What `values` gives for all rows of the data."""
        return retreat(self, lambda: dict(chain.from_iterable(self._each(self._rows(data), values))))

    def _by_token(self, data: Sequence[Datum], values: Callable[[Row, Inputs], Tensor]) -> list[list[float]]:
        """What `values` gives for the trained tokens of each row, at the indices of those tokens."""
        results = [[0.0] * len(datum.tokens) for datum in data]
        wanted = [i for i, datum in enumerate(data) if any(datum.weights)]
        chosen = [data[i] for i in wanted]

        def found(row: Row) -> Iterable[tuple[tuple[int, int], float]]:
            inputs = build_inputs(row, chosen, self.device)
            return zip(inputs.indices, values(row, inputs).tolist(), strict=True)

        for (k, t), value in self._gather(chosen, found).items():
            results[wanted[k]][t] = value
        return results

    def _outputs(
        self, body: Body, row: Row, inputs: Inputs, temperature: float, entropy: bool = False, scores: bool = False,
        teacher: Engine | None = None,
    ) -> Outputs:  # fmt: skip
        hidden = body.hidden(row)  # [nodes, hidden]
        if scores:
            assert self.score is not None
            weight, bias = self.score.weight.float(), self.score.bias
            # in fp32, so that close scores stay apart; the weight has the dtype of the model, as transformers wants it
            value = nn.functional.linear(hidden[inputs.last].float(), weight, None if bias is None else bias.float())
            return Outputs(hidden.new_zeros(0), scores=value.squeeze(-1))
        assert body.head is not None
        states = hidden.index_select(0, inputs.parents)
        targets = inputs.targets
        logprobs, entropies = linear_logprobs(states, body.head, targets, temperature=temperature, entropy=entropy)
        outputs = Outputs(logprobs[inputs.scatter], entropies[inputs.scatter] if entropy else None)
        if teacher is not None:
            assert teacher.head is not None
            with torch.no_grad():
                taught = teacher.body.hidden(row).index_select(0, inputs.parents)
            between = partial(linear_divergence, states, body.head, taught, teacher.head, temperature=temperature)
            outputs.divergence = lambda kind, beta: between(kind=kind, beta=beta)[inputs.scatter]
        return outputs
