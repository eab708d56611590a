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
    shares: dict[Key, int] = {}
    left, num_left = num_slots, len(demands)
    for key in sorted(demands, key=lambda k: demands[k]):
        shares[key] = min(demands[key], left // num_left)
        left -= shares[key]
        num_left -= 1
    for key, demand in demands.items():
        if left <= 0:
            break
        if shares[key] < demand:
            shares[key] += 1
            left -= 1
    return shares
