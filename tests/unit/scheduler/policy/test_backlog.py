from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkjoin_scheduler.errors import Overloaded
from forkjoin_scheduler.policy.backlog import (
    FIRST_RETRY_S,
    MAX_RETRY_S,
    Backlog,
    Bounds,
    Expected,
    Load,
    Tenant,
    Visit,
    share_of_tenant,
    shared,
)
from forkjoin_scheduler.request.visits import salted


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def _backlog(clock, families=None, threads=None, tokens=None):
    return Backlog(Bounds(families, threads, tokens), Expected(100, 4), clock)


def _enter(backlog, name, visit=None, prompt=10, max_tokens=None):
    visit = visit or Visit(Tenant())
    backlog.arrive(visit)
    backlog.enter(name, visit, prompt, max_tokens)
    return visit


def test_a_request_is_counted_by_what_is_expected_of_it(clock):
    backlog = _backlog(clock)
    _enter(backlog, "a")
    assert backlog.waiting == Load(1, 4, 110)
    _enter(backlog, "b", Visit(Tenant(), width=9), max_tokens=5)
    assert backlog.waiting == Load(2, 13, 125)
    backlog.has_begun("a")
    assert backlog.waiting == Load(1, 9, 15)
    backlog.has_ended("b")
    assert (backlog.waiting, backlog.num_families) == (Load(0, 0, 0), 1)


@pytest.mark.parametrize(
    ("bounds", "unit"),
    [(Bounds(families=2), "families"), (Bounds(threads=8), "threads"), (Bounds(tokens=220), "tokens")],
)
def test_past_a_bound_a_request_is_refused_at_once_and_changes_nothing(bounds, unit, clock):
    backlog = Backlog(bounds, Expected(100, 4), clock)
    for name in "ab":
        _enter(backlog, name)
    before = backlog.waiting
    visit = Visit(Tenant())
    with pytest.raises(Overloaded, match=f"{unit} to wait") as caught:
        _enter(backlog, "c", visit)
    assert (caught.value.status, caught.value.reason) == (503, f"queued_{unit}")
    backlog.leave(visit)
    assert backlog.waiting == before
    backlog.has_begun("a")
    _enter(backlog, "c")


def test_what_finds_nothing_before_it_may_wait_whatever_is_expected_of_it(clock):
    _enter(_backlog(clock, families=1, threads=1, tokens=1), "a", prompt=10**6)
    _enter(_backlog(clock, families=50, threads=1), "a", Visit(Tenant(), num_families=50))


@pytest.mark.parametrize(
    ("bounds", "visit", "message"),
    [
        (
            Bounds(families=3),
            Visit(Tenant(), num_families=4),
            "at most 3 answers .*max-queued-families.*got 4",
        ),
        (Bounds(threads=9), Visit(Tenant(), num_families=2, width=5), "at most 9 threads .*-threads.*got 10"),
    ],
    ids=["families", "threads"],
)
@pytest.mark.parametrize("others", [0, 1])
def test_a_request_for_more_than_may_ever_wait_is_a_400_on_an_idle_server_too(
    bounds, visit, message, others, clock
):
    backlog = Backlog(bounds, Expected(100, 4), clock)
    for number in range(others):
        _enter(backlog, f"{number}")
    for ask in (backlog.announce, lambda visit: backlog.enter("a", visit, 10, None)):
        visit = replace(visit)
        backlog.arrive(visit)
        with pytest.raises(Overloaded, match=message) as caught:
            ask(visit)
        assert caught.value.status == 400
        assert backlog.waiting.families == others


def test_a_request_is_refused_for_its_answers_before_their_prompts_are_made(clock):
    backlog = _backlog(clock, families=5)
    alice = Tenant("alice", max_families=2)
    _enter(backlog, "other")
    for visit, status in (
        (Visit(Tenant(), num_families=5), 503),
        (Visit(alice, num_families=3), 400),
    ):
        backlog.arrive(visit)
        with pytest.raises(Overloaded) as caught:
            backlog.announce(visit)
        assert caught.value.status == status
        assert (backlog.waiting.families, set(backlog._tenants)) == (1, {""})
    visit = Visit(alice, num_families=2)
    backlog.arrive(visit)
    backlog.announce(visit)
    assert backlog.waiting.families == 2  # it is at the door, as before
    for name in "ab":
        backlog.enter(name, visit, 10, None)
    assert backlog.waiting.families == 3


def test_families_that_a_request_did_not_announce_need_room_of_their_own(clock):
    backlog = _backlog(clock, families=3)
    visit = Visit(Tenant(), num_families=2)
    backlog.announce(visit)
    _enter(backlog, "a", visit)
    for name in "bc":
        backlog.enter(name, visit, 10, None)
    with pytest.raises(Overloaded, match="the queue is full"):
        backlog.enter("d", visit, 10, None)
    assert (visit.num_present, backlog.num_families) == (3, 3)
    for name in "abc":
        backlog.has_begun(name)
        backlog.has_ended(name)
    _enter(backlog, "full", Visit(Tenant(), num_families=3))
    backlog.enter("turn", visit, 10, None)  # the next turn of a request that has been admitted


def test_what_no_body_announces_is_admitted_whole(clock):
    """vLLM makes many requests of an hour of sound, or of a list of texts to embed."""
    backlog = _backlog(clock, families=3)
    visit = _enter(backlog, "a", Visit(Tenant()))
    for name in "bcde":
        backlog.enter(name, visit, 10, None)
    assert backlog.num_families == 5


def test_at_the_door_a_request_counts_before_its_body_is_read(clock):
    backlog = _backlog(clock, families=2)
    first, second = Visit(Tenant()), Visit(Tenant())
    backlog.arrive(first)
    backlog.arrive(second)
    with pytest.raises(Overloaded):
        backlog.arrive(Visit(Tenant()))
    backlog.leave(first)  # it was a 400, say
    backlog.leave(first)
    backlog.arrive(Visit(Tenant()))
    assert backlog.waiting == Load(2, 0, 0)


def test_all_answers_of_a_request_are_let_in_or_none(clock):
    backlog = _backlog(clock, families=5)
    _enter(backlog, "other")
    many = Visit(Tenant(), num_families=5)
    backlog.arrive(many)
    for name in ("a", "b"):
        with pytest.raises(Overloaded):
            backlog.enter(name, many, 10, None)
    assert backlog.num_families == 1
    some = Visit(Tenant(), num_families=4)
    backlog.arrive(some)
    for name in "abcd":
        backlog.enter(name, some, 10, None)
    assert backlog.waiting.families == 5


def test_a_visit_hears_once_that_it_is_decided(clock):
    backlog, heard = _backlog(clock, families=2), []
    visit = Visit(Tenant(), num_families=2, decided=lambda: heard.append("in"))
    backlog.arrive(visit)
    backlog.enter("a", visit, 1, None)
    backlog.enter("b", visit, 1, None)
    out = Visit(Tenant(), decided=lambda: heard.append("out"))
    for _ in range(2):
        with pytest.raises(Overloaded):
            backlog.enter("c", out, 1, None)
    assert heard == ["in", "out"]


# ---- limits of a key -----------------------------------------------------------------------

ALICE, BOB = Tenant("alice", max_families=2, max_queued_tokens=100), Tenant("bob")


def test_a_key_may_have_so_many_requests_at_once_whatever_others_have(clock):
    backlog = _backlog(clock)
    for name in "ab":
        _enter(backlog, name, Visit(ALICE))
        backlog.has_begun(name)
    with pytest.raises(Overloaded, match="at most 2 answers at once for this API key") as caught:
        backlog.arrive(Visit(ALICE))
    assert (caught.value.status, caught.value.reason) == (429, "key_families")
    _enter(backlog, "c", Visit(BOB))
    backlog.has_ended("a")
    _enter(backlog, "d", Visit(ALICE))


def test_one_request_may_have_what_all_front_ends_may_together(clock):
    """Which of them it comes to is chance."""
    backlog = Backlog(shared(Bounds(families=16), 4), Expected(100, 4), clock, num_front_ends=4)
    backlog.announce(Visit(Tenant(), num_families=16))
    with pytest.raises(Overloaded, match="at most 16 answers"):
        backlog.announce(Visit(Tenant(), num_families=17))


def test_a_request_for_more_answers_than_the_key_may_ever_have_is_a_400(clock):
    visit = Visit(ALICE, num_families=3)
    with pytest.raises(Overloaded, match="ask for fewer") as caught:
        _enter(_backlog(clock), "a", visit)
    assert caught.value.status == 400


def test_a_key_may_let_so_many_tokens_of_prompts_wait(clock):
    backlog = _backlog(clock)
    alice = Tenant("alice", max_queued_tokens=100)
    _enter(backlog, "a", Visit(alice), prompt=400)  # alone it always may
    with pytest.raises(Overloaded, match="at most 100 tokens") as caught:
        _enter(backlog, "b", Visit(alice), prompt=1)
    assert (caught.value.status, caught.value.reason) == (429, "key_tokens")
    backlog.has_begun("a")
    _enter(backlog, "b", Visit(alice), prompt=60)
    _enter(backlog, "c", Visit(alice), prompt=40)


def _enter_group(backlog, name, group="g", prompt="p", num=1, tokens=60, tenant=None):
    visit = Visit(tenant or Tenant("a", max_queued_tokens=100), num_families=num, group=group)
    backlog.arrive(visit)
    backlog.enter(name, visit, tokens, None, prompt)
    return visit


def test_equal_prompts_of_a_group_count_once_while_the_first_is_still_to_be_prefilled(clock):
    backlog = _backlog(clock)
    visit = _enter_group(backlog, "a", num=16)
    for number in range(15):
        backlog.enter(f"b{number}", visit, 60, None, "p")
    assert backlog.waiting == Load(16, 64, 60 + 16 * 100)
    with pytest.raises(Overloaded):
        _enter_group(backlog, "c", prompt="another")
    with pytest.raises(Overloaded):
        _enter_group(backlog, "c", group="another")
    _enter_group(backlog, "c", tenant=Tenant("b", max_queued_tokens=100))
    backlog.has_begun("a")
    assert backlog.waiting == Load(16, 64, 60 + 16 * 100)
    _enter_group(backlog, "d", prompt="another")


def test_the_prompt_of_one_that_ends_before_it_begins_is_the_next_ones(clock):
    backlog = _backlog(clock)
    _enter_group(backlog, "a")
    _enter_group(backlog, "b")
    backlog.has_ended("a")
    assert backlog.waiting == Load(1, 4, 160)
    with pytest.raises(Overloaded):
        _enter_group(backlog, "c", group="another")
    backlog.has_ended("b")
    assert (backlog.waiting, backlog._sharing) == (Load(0, 0, 0), {})
    _enter_group(backlog, "c", group="another")


def test_prompts_that_are_not_told_apart_count_each(clock):
    backlog = _backlog(clock)
    _enter_group(backlog, "a", prompt=None)
    with pytest.raises(Overloaded):
        _enter_group(backlog, "b", prompt=None)


GROUP_MOVES = st.lists(
    st.tuples(st.sampled_from(["enter", "begin", "end"]), st.integers(0, 5), st.integers(0, 1)), max_size=60
)


@settings(max_examples=200, deadline=None)
@given(GROUP_MOVES)
def test_one_of_those_that_wait_with_a_prompt_counts_it_until_it_begins(moves):
    backlog, rows, counts, names = _backlog(Clock()), {"p": [], "q": []}, {}, iter(range(99))
    for move, which, number in moves:
        prompt, row = "pq"[number], rows["pq"[number]]
        if move == "enter":
            name = f"{next(names)}"
            _enter_group(backlog, name, prompt=prompt, tenant=Tenant("a"))
            if not row:
                counts[prompt] = name
            row.append(name)
        elif row:
            name = row.pop(which % len(row))
            getattr(backlog, "has_begun" if move == "begin" else "has_ended")(name)
            if counts.get(prompt) == name:
                counts[prompt] = row[0] if row and move == "end" else None
        num_prompts = sum(name is not None for name in counts.values())
        assert backlog.waiting.tokens == 60 * num_prompts + 100 * sum(map(len, rows.values()))


def test_each_of_several_front_ends_keeps_its_part():
    assert shared(Bounds(10, 3, None), 4) == Bounds(3, 1, None)
    assert share_of_tenant(ALICE, 3) == Tenant("alice", max_families=1, max_queued_tokens=34)


# ---- when to come back ---------------------------------------------------------------------


def _refused(backlog):
    with pytest.raises(Overloaded) as caught:
        backlog.arrive(Visit(Tenant()))
    return caught.value.retry_after_s


def test_who_is_refused_is_told_when_as_much_will_have_ended(clock):
    """One a second ends; who comes is one too many, each behind who was refused before."""
    backlog = _backlog(clock, families=5)
    for number in range(40):
        _enter(backlog, f"run{number}")
        backlog.has_begun(f"run{number}")
    for number in range(30):
        clock.now += 1
        backlog.has_ended(f"run{number}")
    for number in range(5):
        _enter(backlog, f"wait{number}")
    assert [_refused(backlog) for _ in range(4)] == [1, 2, 3, 4]
    for number in (30, 31):
        clock.now += 1
        backlog.has_ended(f"run{number}")
    assert _refused(backlog) == 3  # two have had their turn


def test_slower_means_later_and_nobody_is_sent_away_for_longer_than_clients_wait(clock):
    backlog = _backlog(clock, families=1)
    _enter(backlog, "a")
    assert _refused(backlog) == FIRST_RETRY_S
    clock.now += 1000
    backlog.has_ended("a")
    _enter(backlog, "b")
    assert [_refused(backlog) for _ in range(3)] == [20, 40, MAX_RETRY_S]
    assert _refused(backlog) == MAX_RETRY_S


def test_a_quiet_hour_does_not_make_it_look_slow(clock):
    backlog = _backlog(clock, families=1)
    for number in range(10):
        _enter(backlog, f"{number}")
        clock.now += 1
        backlog.has_ended(f"{number}")
    clock.now += 3600
    _enter(backlog, "a")
    assert _refused(backlog) <= 2


# ---- accounts ------------------------------------------------------------------------------

MOVES = st.lists(
    st.tuples(
        st.sampled_from(["arrive", "enter", "leave", "begin", "end"]),
        st.integers(0, 9),
        st.integers(1, 3),
        st.integers(0, 60),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(MOVES)
def test_after_any_moves_what_is_counted_is_what_is_there(moves):
    clock = Clock()
    backlog = _backlog(clock, families=6, threads=30, tokens=900)
    tenants = [Tenant("a", max_families=3, max_queued_tokens=90), Tenant("b"), Tenant()]
    visits, entered, names, seconds = [], {}, iter(range(10**6)), []
    for move, which, num, prompt in moves:
        clock.now += num / 7
        try:
            if move == "arrive":
                visit = Visit(tenants[which % 3], num_families=num)
                backlog.arrive(visit)
                visits.append(visit)
            elif move == "enter" and visits:
                visit = visits[which % len(visits)]
                name = f"{next(names)}"
                backlog.enter(name, visit, prompt, 100 - prompt)
                entered[name] = [visit.tenant.id, Load(1, 4, 100), prompt, True]
            elif move == "leave" and visits:
                backlog.leave(visits.pop(which % len(visits)))
            elif entered:
                name = sorted(entered)[which % len(entered)]
                getattr(backlog, {"begin": "has_begun"}.get(move, "has_ended"))(name)
                entered[name][3] = False
                if move != "begin":
                    del entered[name]
        except Overloaded as error:
            seconds.append(error.retry_after_s)
        at_the_door = [v for v in visits if not v.is_in and v.refused is None]
        waiting = Load(families=len(at_the_door))
        for _, load, _, waits in entered.values():
            waiting += load if waits else Load()
        assert backlog.waiting.families == waiting.families
        assert backlog.waiting.threads == waiting.threads
        assert backlog.waiting.tokens == waiting.tokens
        for tenant in tenants:
            own = [e for e in entered.values() if e[0] == tenant.id]
            account = backlog._tenants.get(tenant.id)
            families = len(own) + sum(v.tenant.id == tenant.id for v in at_the_door)
            queued = sum(e[2] for e in own if e[3])
            assert (
                (account.families, account.queued_tokens) == (families, queued) if account else not families
            )
    assert all(1 <= s <= MAX_RETRY_S for s in seconds)


def test_a_salt_of_ones_own_never_names_anothers_cache():
    made = {salted(cache, given) for cache in ("a", "ab", "") for given in (None, "b", "x", "1:a", "\ud800")}
    assert len(made) == 15
    assert all(len(salt) == 64 and salt.isalnum() for salt in made)
