"""A stand-in of a CUDA graph for CPUs: it repeats what a capture called, with the very tensors and numbers.

What Python decided during the capture is not decided again. As on a device,

- a result of a call lies in the memory in which it lay during the capture, and nowhere else
- after a capture that memory holds nothing of use: it is filled with NaN and with numbers out of any range
- whatever waits for the device, or copies from the host's memory, can't be captured

``external`` has what a graph reads and did not make: memory that has to stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

_NOT_CAPTURED = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.lift_fresh.default,
    torch.ops.aten.is_nonzero.default,
}


class RecordedGraph(TorchDispatchMode):
    """Has of ``torch.cuda.CUDAGraph`` what vLLM uses."""

    _now: ClassVar[RecordedGraph | None] = None
    #: vLLM's operators whose kernels are called one by one, by name: a graph knows only kernels.
    opened: ClassVar[dict[str, Callable[..., Any]]] = {}

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]] = []
        self._made: dict[int, torch.Tensor] = {}
        self.external: dict[int, torch.Tensor] = {}

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Record what is called inside."""
        RecordedGraph._now = self
        try:
            with self:
                yield
        finally:
            RecordedGraph._now = None
        for made in self._made.values():
            _spoil(made)

    def replay(self) -> None:
        """Call all again."""
        for function, args, more, result in self._calls:
            again = function(*args, **more)
            for old, new in zip(_tensors(result), _tensors(again), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        more = kwargs or {}
        if func in _NOT_CAPTURED:
            raise RuntimeError(f"{func} is not permitted while a graph is captured")
        if (body := self.opened.get(func._schema.name)) is not None:
            with self:
                return body(*args, **more)
        return self._called(func, args, more)

    def _called(self, function: Callable[..., Any], args: tuple[Any, ...], more: dict[str, Any]) -> Any:
        read = {_place(tensor): tensor for tensor in _tensors((args, more))}
        result = function(*args, **more)
        self.external |= {place: tensor for place, tensor in read.items() if place not in self._made}
        made = {_place(tensor): tensor for tensor in _tensors(result)}
        self._made |= {place: tensor for place, tensor in made.items() if place not in self.external}
        self._calls.append((function, args, more, result))
        return result

    @staticmethod
    def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` as one kernel: what it does inside is not recorded."""

        def call(*args: Any, **more: Any) -> Any:
            graph = RecordedGraph._now
            if graph is None:
                return function(*args, **more)
            RecordedGraph._now = None
            try:
                with _disable_current_modes():
                    return graph._called(function, args, more)
            finally:
                RecordedGraph._now = graph

        return call


@contextmanager
def capture_into(graph: RecordedGraph, *_: Any, **__: Any) -> Iterator[None]:
    """In the place of ``torch.cuda.graph``."""
    with graph.capturing():
        yield


def captured(run: Callable[[], Any]) -> RecordedGraph:
    """A graph of what ``run`` does, which has run once before."""
    run()
    graph = RecordedGraph()
    with graph.capturing():
        run()
    return graph


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _spoil(tensor: torch.Tensor) -> None:
    whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())  # type: ignore[call-overload]
    if tensor.dtype.is_floating_point:
        whole.fill_(float("nan"))
    elif tensor.dtype != torch.bool:
        whole.fill_(torch.iinfo(tensor.dtype).max)
