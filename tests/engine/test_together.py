"""Which layers one copy reaches. What it writes is tested in test_layouts.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forkjoin_scheduler.tensors import together as module
from forkjoin_scheduler.tensors.slots import copy_slots
from forkjoin_scheduler.tensors.together import together

BLOCKS, HEADS, SIZE, CONTENT = 4, 2, 16, 8
SHAPE = (BLOCKS, HEADS, SIZE, CONTENT)


def _layers(num, *, apart=0):
    """``num`` layers in one allocation, one after the other, with so many more numbers between the last two."""
    length = BLOCKS * HEADS * SIZE * CONTENT
    raw = torch.arange(num * length + apart)
    starts = [i * length for i in range(num - 1)] + [(num - 1) * length + apart]
    return [raw[start : start + length].view(SHAPE) for start in starts]


def _of_each(view):
    """The layers of a view."""
    return list(view.unbind(1)) if view.dim() == len(SHAPE) + 1 else [view]


def test_layers_of_one_allocation_are_one_view_of_the_same_memory():
    layers = _layers(3)
    ((key, view),) = together([("rows", layer) for layer in layers], 1)
    assert (key, view.shape) == ("rows", (BLOCKS, 3, HEADS, SIZE, CONTENT))
    assert [v.data_ptr() for v in _of_each(view)] == [layer.data_ptr() for layer in layers]
    assert all(map(torch.equal, _of_each(view), layers))


@pytest.mark.parametrize(
    "caches",
    [
        [("rows", layer) for layer in _layers(3, apart=8)],
        [("rows", torch.zeros(SHAPE)) for _ in range(3)],
        list(zip(("rows", "columns", "tiles"), _layers(3), strict=True)),
    ],
    ids=["at unequal distances", "in allocations of their own", "of other keys"],
)
def test_other_layers_have_views_of_their_own(caches):
    views = list(together(caches, 1))
    assert [(key, view.data_ptr()) for key, view in views] == [(key, c.data_ptr()) for key, c in caches]
    assert all(view.shape == SHAPE for _, view in views)


def test_a_cache_that_layers_share_is_there_once():
    first, second = _layers(2)
    ((_, view),) = together([("rows", c) for c in (first, second, first.view(SHAPE), second)], 1)
    assert len(_of_each(view)) == 2


@pytest.mark.parametrize(("num_slots", "nums"), [(1, [5]), (2, [2, 2, 1]), (64, [1, 1, 1, 1, 1])])
def test_a_copy_reads_no_more_at_once_than_it_may_unless_it_is_of_one_layer(monkeypatch, num_slots, nums):
    layers = _layers(5)
    monkeypatch.setattr(module, "MOST_BYTES", 5 * HEADS * CONTENT * layers[0].element_size())
    views = [view for _, view in together([("rows", layer) for layer in layers], num_slots)]
    found = [layer for view in views for layer in _of_each(view)]
    assert [len(_of_each(view)) if view.dim() == 5 else 1 for view in views] == nums
    assert [layer.data_ptr() for layer in found] == [layer.data_ptr() for layer in layers]


@pytest.mark.parametrize(("most", "nums"), [(1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (64, [5])])
def test_slots_that_are_too_many_to_be_read_at_once_are_moved_in_turns(monkeypatch, most, nums):
    cache = torch.zeros(SHAPE)
    monkeypatch.setattr(module, "MOST_BYTES", most * HEADS * CONTENT * cache.element_size())
    copies, moved = np.arange(10).reshape(5, 2), []
    copy_slots(
        [(lambda _, *slots: moved.append(slots), cache)], copies, lambda host, _: torch.from_numpy(host)
    )
    assert [len(source) for source, _ in moved] == nums
    assert torch.cat([torch.stack(slots, 1) for slots in moved]).tolist() == copies.tolist()
