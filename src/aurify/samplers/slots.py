"""The state of the sequences in flight: all that a decoding step reads and writes besides the cache.

A step stays on the device: it takes the last tokens, draws the next ones, records them and moves on. A sequence that
met a stop token or has all its tokens stands still. The host sends the state, with uniform numbers for a block of
steps, fetches it after the block, and changes it only between blocks. On a CPU both are the same memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aurify.samplers.draw import draw_tokens
from aurify.samplers.request import Sequence

TOKEN, POSITION, LEFT, COUNT, GREEDY, TOP_K, STOPS = range(7)  # rows of the integers
NUM_STOPS = 8  # stop tokens of a sequence that the device checks; the host checks all of them
DRAWN = STOPS + NUM_STOPS
TEMPERATURE, TOP_P, MIN_P, UNIFORMS = range(4)  # rows of the numbers


@dataclass(frozen=True, slots=True)
class StepOptions:
    """What at least one sequence in flight asks for. A step leaves out the rest."""

    temperature: bool
    greedy: bool
    filters: bool


@dataclass(frozen=True, slots=True)
class State:
    """The state of neighbouring slots. A block has at most `steps` steps."""

    integers: Tensor  # [DRAWN + steps, slots] int64
    numbers: Tensor  # [UNIFORMS + 2 * steps, slots] float64
    steps: int

    def part(self, first: int, stop: int) -> State:
        return State(self.integers[:, first:stop], self.numbers[:, first:stop], self.steps)

    @property
    def tokens(self) -> Tensor:  # the last of each sequence; not in the cache yet
        return self.integers[TOKEN]

    @property
    def positions(self) -> Tensor:  # of that token
        return self.integers[POSITION]

    def record(self, logits: Tensor, options: StepOptions) -> None:
        """Draws a token a slot and moves on. logits [slots, vocabulary] fp32, overwritten"""
        integers, numbers = self.integers, self.numbers
        left, counts = integers[LEFT], integers[COUNT]
        filters = (integers[TOP_K], numbers[TOP_P], numbers[MIN_P]) if options.filters else None
        tokens, logprobs = draw_tokens(
            logits,
            numbers[UNIFORMS:].gather(0, counts[None]).squeeze(0),
            temperature=numbers[TEMPERATURE].float() if options.temperature else None,
            greedy=integers[GREEDY] > 0 if options.greedy else None,
            filters=filters,
        )
        integers[DRAWN:].scatter_(0, counts[None], tokens[None])
        numbers[UNIFORMS + self.steps :].scatter_(0, counts[None], logprobs.double()[None])
        drawing = left > 0
        counts.add_(drawing)
        stopped = (integers[STOPS:DRAWN] == tokens).any(0)
        left.sub_(drawing.long()).masked_fill_(stopped, 0)
        going = left > 0
        self.positions.add_(going)
        self.tokens.copy_(torch.where(going, tokens, self.tokens))


class Slots:
    def __init__(self, num: int, steps: int, device: torch.device) -> None:
        self.num, self.steps, self.device = num, steps, device
        pinned = device.type == "cuda"
        integers = torch.zeros(DRAWN + steps, num, dtype=torch.int64, pin_memory=pinned)
        numbers = torch.zeros(UNIFORMS + 2 * steps, num, dtype=torch.float64, pin_memory=pinned)
        self.host = State(integers, numbers, steps)
        self.state = State(integers.to(device), numbers.to(device), steps)
        self.integers, self.numbers = integers.numpy(), numbers.numpy()

    def put(self, slot: int, sequence: Sequence) -> None:
        """A new sequence, whose prompt is about to be computed."""
        params = sequence.params
        stops = [*sequence.stop_tokens][:NUM_STOPS]
        self.integers[:STOPS, slot] = (
            sequence.prompt[-1], len(sequence.prompt) - 1, sequence.max_tokens, 0, params.temperature == 0, params.top_k
        )  # fmt: skip
        self.integers[STOPS:DRAWN, slot] = stops + [-1] * (NUM_STOPS - len(stops))
        self.numbers[:UNIFORMS, slot] = params.temperature or 1.0, params.top_p, params.min_p

    def send(self, first: int, sequences: list[Sequence], steps: int) -> StepOptions:
        """Begins a block for the sequences in the slots from `first` on. Other slots stand still."""
        stop = first + len(sequences)
        self.integers[COUNT] = 0
        for slot, sequence in enumerate(sequences, first):
            self.numbers[UNIFORMS : UNIFORMS + steps, slot] = sequence.generator.random(steps)
        if self.state.integers is not self.host.integers:
            self.state.integers.copy_(self.host.integers, non_blocking=True)
            self.state.numbers.copy_(self.host.numbers, non_blocking=True)
        chosen, numbers = self.integers[:, first:stop], self.numbers[:, first:stop]
        filters = (chosen[TOP_K] > 0) | (numbers[TOP_P] < 1) | (numbers[MIN_P] > 0)
        return StepOptions(bool((numbers[TEMPERATURE] != 1).any()), bool(chosen[GREEDY].any()), bool(filters.any()))

    def fetch(self, first: int, sequences: list[Sequence]) -> list[tuple[Sequence, list[int], list[float]]]:
        """Ends a block: what each sequence has drawn in it."""
        if self.state.integers is not self.host.integers:
            self.host.integers.copy_(self.state.integers)
            self.host.numbers.copy_(self.state.numbers)
        found = []
        for slot, sequence in enumerate(sequences, first):
            count, start = int(self.integers[COUNT, slot]), UNIFORMS + self.steps
            tokens = self.integers[DRAWN : DRAWN + count, slot].tolist()
            found.append((sequence, tokens, self.numbers[start : start + count, slot].tolist()))
        return found

    def move(self, sources: list[int], targets: list[int]) -> None:
        for array in (self.integers, self.numbers):
            array[:, targets] = array[:, sources]

    def clear(self, first: int) -> None:
        """Frees the slots from `first` on. A step that includes them does no harm."""
        self.integers[:, first:] = 0


def pair_slot_moves(finished: list[bool]) -> tuple[list[int], list[int]]:
    """Which slots move where, so that those in use are the first ones again. finished: one entry a slot in use."""
    num = finished.count(False)
    targets = [slot for slot in range(num) if finished[slot]]
    sources = [slot for slot in range(num, len(finished)) if not finished[slot]]
    return sources, targets
