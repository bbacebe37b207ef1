"""Layer inputs in host memory: with recomputing they are all that is kept for backward, hidden size x layers for each
token. A GPU copies them out while it computes the next layer, and back while it computes the layer behind.

torch's allocator of pinned memory keeps buffers that are given back, so that each step finds those of the last."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Parked:
    """A tensor in host memory."""

    host: torch.Tensor
    device: torch.device
    earlier: Parked | None  # what backward asks for next
    coming: torch.Tensor | None = None  # on the device again, or on the way there
    arrival: torch.cuda.Event | None = None


class HostStore:
    """Its two methods are hooks for saved tensors (torch.autograd.graph.saved_tensors_hooks)."""

    def __init__(self) -> None:
        self.last: Parked | None = None
        self.streams: dict[torch.device, torch.cuda.Stream] = {}
        self.num_bytes = 0  # that were ever parked

    def park(self, tensor: torch.Tensor) -> Parked:
        cuda = tensor.device.type == "cuda"
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=cuda)
        if cuda:
            stream = self.stream(tensor.device)
            stream.wait_stream(torch.cuda.current_stream(tensor.device))
            with torch.cuda.stream(stream):
                host.copy_(tensor, non_blocking=True)
            tensor.record_stream(stream)  # its memory is not given to others before it is copied
        else:
            host.copy_(tensor)
        self.num_bytes += host.nbytes
        self.last = Parked(host, tensor.device, self.last)
        return self.last

    def fetch(self, parked: Parked) -> torch.Tensor:
        self.start(parked)
        if parked.earlier is not None:
            self.start(parked.earlier)
        tensor, parked.coming = parked.coming, None
        assert tensor is not None
        if parked.arrival is not None:
            current = torch.cuda.current_stream(parked.device)
            current.wait_event(parked.arrival)
            tensor.record_stream(current)
        if self.last is parked:
            self.last = None  # the next row begins a new chain
        parked.earlier = None
        return tensor

    def start(self, parked: Parked) -> None:
        """Has the copy to the device begin, if it has not."""
        if parked.coming is not None:
            return
        if parked.device.type != "cuda":
            parked.coming = parked.host.to(parked.device, copy=True)
            return
        stream = self.stream(parked.device)
        with torch.cuda.stream(stream):
            parked.coming = parked.host.to(parked.device, non_blocking=True)
            parked.arrival = stream.record_event()

    def stream(self, device: torch.device) -> torch.cuda.Stream:
        """For copies alone, beside the computation."""
        if device not in self.streams:
            self.streams[device] = torch.cuda.Stream(device)
        return self.streams[device]
