"""Leases on numbered blocks: whom they are refused to, when they end, which gives way."""

from __future__ import annotations

import random

import pytest

from forkjoin_scheduler.policy.leases import MAX_ENDED, MAX_LEASES, MAX_OWN, Lease, Leases

ANY = float("inf")


def lease(name, blocks, *, tenant="", until=100.0, used=0.0):
    return Lease(name, tenant, frozenset(blocks), 16 * len(blocks), expires_at=until, used_at=used)


def leases_of(*given, most=100):
    leases = Leases(most)
    for one in given:
        leases.add(one)
    return leases


def test_a_block_of_two_leases_counts_once():
    leases = leases_of(lease("a", {1, 2, 3}), lease("b", {1, 2, 3, 4}))
    assert leases.num_blocks == 4
    leases.end(leases.find("a", ""), "released")
    assert leases.num_blocks == 4
    leases.end(leases.find("b", ""), "released")
    assert (leases.num_blocks, len(leases)) == (0, 0)


@pytest.mark.parametrize(
    ("blocks", "tenant", "max_own", "refusal"),
    [
        ({4, 5}, "", ANY, None),
        ({1, 2, 3, 4, 5}, "", ANY, None),
        ({4, 5, 6}, "", ANY, "share"),
        ({4}, "alice", 3, "budget"),
        ({1, 2, 3}, "alice", 3, None),
        ({4, 5}, "bob", 2, None),
        (set(), "", ANY, "not_cached"),
    ],
)
def test_a_lease_is_refused_over_the_share_of_all_or_the_budget_of_its_key(blocks, tenant, max_own, refusal):
    leases = leases_of(lease("a", {1, 2, 3}, tenant="alice"), most=5)
    assert leases.refusal(tenant, blocks, max_own) == refusal


def test_a_key_and_all_keys_together_have_so_many_leases_however_small_these_are():
    leases = leases_of(*(lease(f"a{n}", {1}, tenant="alice") for n in range(MAX_OWN)))
    assert leases.refusal("alice", {1}, ANY) == "budget"
    assert leases.refusal("bob", {1}, ANY) is None
    for n in range(MAX_LEASES - MAX_OWN):
        leases.add(lease(f"b{n}", {1}, tenant=f"b{n}"))
    assert leases.refusal("bob", {1}, ANY) == "share"


def test_leases_expire_at_their_time_and_not_before():
    leases = leases_of(lease("a", {1}, until=5.0), lease("b", {2}, until=3.0))
    assert leases.next_end == 3.0
    assert leases.expired(2.9) == []
    (first,) = leases.expired(3.0)
    leases.end(first, "expired")
    assert (first.name, leases.next_end) == ("b", 5.0)


def test_the_one_that_was_used_longest_ago_gives_way():
    leases = leases_of(lease("a", {1}, used=1.0), lease("b", {2}, used=2.0))
    leases.use(leases.find("a", ""), 3.0)
    assert leases.victim(lambda _: 1).name == "b"


def test_one_all_of_whose_blocks_run_does_not_give_way():
    leases = leases_of(lease("runs", {1, 2}, used=1.0), lease("idle", {3}, used=2.0))
    held = {1: 2, 2: 2, 3: 1}
    assert leases.victim(held.__getitem__).name == "idle"
    leases.end(leases.find("idle", ""), "pressure")
    assert leases.victim(held.__getitem__) is None


def test_of_two_leases_on_the_same_blocks_both_give_way():
    leases = leases_of(lease("a", {1}, used=1.0), lease("twin", {1}, used=2.0))
    for name, num_holders in (("a", 2), ("twin", 1)):
        victim = leases.victim(lambda _, num=num_holders: num)
        assert victim.name == name
        leases.end(victim, "pressure")


def test_what_has_ended_says_why_to_its_tenant_until_so_many_others_have():
    leases = leases_of(lease("a", {1}, tenant="alice"))
    assert (leases.state("a", "alice"), leases.state("a", "bob")) == ("kept", None)
    leases.end(leases.find("a", "alice"), "pressure")
    assert (leases.state("a", "alice"), leases.state("a", "bob")) == ("pressure", None)
    for n in range(MAX_ENDED):
        leases.add(lease(f"other {n}", {2}))
        leases.end(leases.find(f"other {n}", ""), "expired")
    assert leases.state("a", "alice") is None


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_kept_and_ended_the_counts_are_those_of_all_leases_together(seed):
    chance, leases = random.Random(seed), Leases(12)
    for n in range(200):
        blocks, tenant = {chance.randrange(20) for _ in range(chance.randint(1, 6))}, chance.choice("ab")
        if leases.refusal(tenant, blocks, 8) is None:
            leases.add(lease(str(n), blocks, tenant=tenant, until=float(n + chance.randint(1, 30))))
        for over in leases.expired(float(n)):
            leases.end(over, "expired")
        if len(leases) and chance.random() < 0.2:
            leases.end(chance.choice(list(leases)), "released")
        union = set().union(*(one.blocks for one in leases))
        assert leases.num_blocks == len(union) <= 12
        for whose in "ab":
            assert len(set().union(*(one.blocks for one in leases if one.tenant == whose))) <= 8
        assert leases.next_end == min((one.expires_at for one in leases), default=ANY)
