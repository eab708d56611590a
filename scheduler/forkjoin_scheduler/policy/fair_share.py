"""Slots shared fairly between those that want several and those that want one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Key = TypeVar("Key")


def fair_shares(demands: Mapping[Key, int], num_slots: int) -> dict[Key, int]:
    """Max-min fair whole shares of ``num_slots``: nobody gets more while one with less wants more.

    None gets more than its demand; what is left of an even split goes one by one in the order of
    ``demands``. Time: O(n log n).
    """
    left, level = num_slots, 0
    ascending = sorted(demands.values())
    for index, demand in enumerate(ascending):
        level = left // (len(ascending) - index)
        if demand > level:
            break
        left -= demand
    shares = {key: min(demand, level) for key, demand in demands.items()}
    left = num_slots - sum(shares.values())
    for key, demand in demands.items():
        if left <= 0:
            break
        if shares[key] < demand:
            shares[key] += 1
            left -= 1
    return shares
