from __future__ import annotations

import doctest
import re
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from rich.console import Console

from forkjoin import Client, NotConnected
from forkjoin import load as load_module
from forkjoin.families import PATH, Families, Family, waits_for
from forkjoin.load import Look, load
from forkjoin.terminal import commands, families_table, kept_table, top
from scripts.metrics_page import VLLMS, ours


def metrics(**values):
    return "".join(f"{name.replace('__', ':')} {value}\n" for name, value in values.items())


BEFORE = metrics(
    forkjoin__forks_total=10, forkjoin__fork_latency_seconds_sum=1, forkjoin__fork_latency_seconds_count=10
)
NOW = metrics(
    forkjoin__forks_total=14,
    forkjoin__fork_latency_seconds_sum=1.2,
    forkjoin__fork_latency_seconds_count=14,
    vllm__num_requests_running=3,
    forkjoin__threads_running=2,
)


def between(before, now, seconds=2.0):
    return load(Look.of(before, 100.0), Look.of(now, 100.0 + seconds))


def test_rates_are_those_since_the_look_before():
    seen = between(BEFORE, NOW)
    assert (seen.forks_rate, seen.running, seen.threads) == (2.0, 3, 2)
    assert seen.fork_s == pytest.approx(0.05)


def test_what_a_server_does_not_say_is_none_and_shown_as_a_dash():
    seen = between("", "vllm:num_requests_running 1\n")
    assert (seen.forks_rate, seen.kv_used, seen.join_s) == (None, None, None)
    assert top.line(seen) == (
        "running 1 · threads – · waiting – requests – threads · KV – · – tokens/s · – forks/s · – joins/s"
    )


def test_a_server_that_was_started_again_counts_from_zero():
    assert between(metrics(forkjoin__joins_total=90), metrics(forkjoin__joins_total=4)).joins_rate == 2


def test_engines_are_added_up_and_the_fullest_cache_counts():
    text = 'vllm:kv_cache_usage_perc{engine="0"} 0.25\nvllm:kv_cache_usage_perc{engine="1"} 0.5\n'
    text += 'forkjoin:threads_waiting{engine="0"} 1\nforkjoin:threads_waiting{engine="1"} 2\n'
    seen = between("", text)
    assert (seen.kv_used, seen.threads_waiting) == (0.5, 3)


def test_what_is_no_finite_number_says_nothing():
    assert (
        between("", metrics(vllm__num_requests_running="NaN", forkjoin__forks_total="+Inf")).running is None
    )


def test_it_reads_what_prometheus_client_writes():
    registry = CollectorRegistry()
    awkward = 'a"} 9\\\n'
    Gauge("vllm:num_requests_running", "x", ["model_name"], registry=registry).labels(awkward).set(1e20)
    Counter("forkjoin:forks", "x", registry=registry).inc(3)
    look = Look.of(generate_latest(registry).decode() + "no sample at all\n", 0)
    assert look.total("vllm:num_requests_running") == 1e20
    assert look.total("forkjoin:forks_total") == 3
    assert look.models == (r"a\"} 9\\\n",)


def test_each_metric_that_it_looks_for_is_documented():
    looked_for = set(re.findall(r'"((?:vllm|forkjoin):\w+)"', Path(load_module.__file__).read_text()))
    documented = {row.name for row in [*ours(), *VLLMS]}
    documented |= {f"{name}_{part}" for name in documented for part in ("sum", "count")}
    assert looked_for - documented == {"vllm:prompt_tokens_total"}
    assert len(looked_for) > 15


def test_the_example_of_bars_is_right():
    assert doctest.testmod(top).failed == 0


# ---- the command ---------------------------------------------------------------------------


def served(*answers, families=None):
    """A client whose server answers so, one after another; then comes Ctrl-C."""
    families = families or httpx.Response(404, json={"error": {"message": "it has no families"}})
    left = list(answers)

    def answer(request):
        if request.url.path == PATH:
            return families
        assert request.url.path == "/metrics"
        if not left:
            raise KeyboardInterrupt
        given = left.pop(0)
        if isinstance(given, Exception):
            raise given
        return httpx.Response(200, text=given)

    return Client("http://s", http=httpx.Client(transport=httpx.MockTransport(answer)))


def test_into_a_pipe_it_writes_one_line(capsys):
    top.run(served(BEFORE, NOW), 0)
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith("running 3 · threads 2")


def in_a_terminal(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr(top, "Console", lambda: Console(width=120, height=30, force_terminal=True))


def test_in_a_terminal_it_shows_the_load_and_goes_on_while_the_server_is_gone(monkeypatch, capsys):
    in_a_terminal(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        top.run(served(BEFORE, NOW, httpx.ReadTimeout("slow"), NOW), 0)
    said = capsys.readouterr().out
    assert "fork to first token" in said
    assert "50 ms" in said
    assert said.index("expected an answer of http://s, got ReadTimeout") < said.rindex("forks/s")


def family(name, state="forked", *, waits_for=(), waiting=0, tokens=0, blocks=(0, None, None), **more):
    threads = {"running": 0, "waiting": waiting, "parked": 0, "ended": 0}
    now, most, expected = blocks
    counts = {"total_tokens": tokens, "critical_path_tokens": tokens}
    counts |= {"kv_blocks": now, "peak_kv_blocks": most, "expected_kv_blocks": expected}
    about = {"request_id": name, "age_s": 3.21, "state": state, "waits_for": waits_for}
    return about | {"threads": threads | more, **counts}


def engine(*families, left_out=0):
    waiting = {"requests": 1, "threads": 1, "for_room": 0}
    num = len(families) + left_out
    return {
        "engine": 0,
        "waiting": waiting,
        "num_families": num,
        "num_left_out": left_out,
        "families": families,
    }


def shown(engines, most=30):
    return said_by(families_table.table(Families.model_validate({"engines": engines}), most))


def said_by(table):
    console = Console(width=140, force_terminal=False)
    with console.capture() as text:
        console.print(table)
    return [re.split(r"  +", line.strip()) for line in text.get().splitlines()]


def test_each_family_has_its_threads_its_blocks_and_what_it_waits_for():
    forked = family("chat-1", waits_for=["turn"], waiting=2, running=1, tokens=1234, blocks=(7, 9, 12.3))
    _, first, other, more = shown([engine(forked, family(None, "decoding"), left_out=3)])
    assert first == [
        "chat-1", "3.2 s", "forked", "1 running, 2 waiting", "its turn: 2 threads", "1,234", "7, 9, 12",
    ]  # fmt: skip
    assert other == ["another key's", "3.2 s", "decoding", "–", "0", "0, –, –"]
    assert more == ["… 3 more"]


def kept(*answers, num_answers=None, blocks=12):
    return {
        "kv_blocks": blocks,
        "max_kv_blocks": 250,
        "num_answers": len(answers) if num_answers is None else num_answers,
        "answers": answers,
    }


def kept_answer(name, expires_in_s=7.25):
    return {
        "request_id": name, "tokens": 1200, "kv_blocks": 75, "expires_in_s": expires_in_s, "num_continued": 3
    }  # fmt: skip


def test_kept_answers_are_shown_with_what_they_hold_and_those_that_end_first():
    engines = [
        engine() | {"kept": kept(kept_answer("chat-1", 150), kept_answer(None, 151), num_answers=4)},
        engine() | {"kept": kept(kept_answer("chat-2"), blocks=75)},
        engine(),  # of a server from before
    ]
    title, _, *rows, more = said_by(kept_table.table(Families.model_validate({"engines": engines}), 2))
    assert title == ["kept answers: 5, which hold 87 of 500 KV blocks"]
    assert rows == [["chat-2", "7.2 s", "1,200", "75", "3"], ["chat-1", "2 min", "1,200", "75", "3"]]
    assert more == ["… 3 more"]


def test_no_table_says_that_nothing_is_kept():
    engines = [engine() | {"kept": kept(blocks=0)}, engine()]
    assert kept_table.table(Families.model_validate({"engines": engines}), 5) is None


def test_more_families_than_fit_are_counted():
    *_, more = shown([engine(*(family(f"chat-{n}") for n in range(5))), engine(family("b"))], most=2)
    assert more == ["… 4 more"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (family("a", "waiting", waits_for=["turn"]), "its turn"),
        (family("a", "waiting", waits_for=["room"], tokens=5), "room"),
        (family("a", waits_for=["room"], waiting=1), "room: 1 thread"),
        (family("a", waits_for=["wave", "turn"], waiting=5), "its wave, its turn: 5 threads"),
        (family("a", waits_for=["what is new"], waiting=1), "what is new: 1 thread"),
        (family("a", "decoding"), ""),
    ],
)
def test_a_family_waits_for_what_the_server_says(row, expected):
    assert waits_for(Family.model_validate(row)) == expected


def test_a_request_is_found_by_the_name_that_it_was_given():
    seen = Families.model_validate(
        {"engines": [engine(family(None)), engine(family("chatcmpl-ab-fj1"), family("chatcmpl-a-fj2"))]}
    )
    assert seen.named("a").request_id == "chatcmpl-a-fj2"
    assert seen.named("b") is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (httpx.Response(200, json={"engines": [engine(family("chat-7", running=3))]}), "chat-7"),
        (httpx.Response(200, json={"engines": [engine() | {"kept": kept(kept_answer("chat-8"))}]}), "chat-8"),
        (httpx.Response(404, json={"error": {"message": "it has no families"}}), "it has no families"),
        (httpx.Response(200, json={"engines": 3}), "got other JSON: engines: "),
        (httpx.Response(200, text="<html>"), "families: expected JSON"),
    ],
    ids=["families", "kept", "none", "other_json", "no_json"],
)
def test_below_the_load_it_shows_the_families_or_why_not(monkeypatch, capsys, answer, expected):
    in_a_terminal(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        top.run(served(BEFORE, NOW, families=answer), 0)
    said = capsys.readouterr().out
    assert said.index("forks/s") < said.index(expected)


def test_without_a_server_it_ends_with_its_reason():
    with pytest.raises(NotConnected):
        top.run(served(httpx.ReadTimeout("slow")), 0)


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "9999"])
def test_an_interval_that_can_not_be_is_refused(seconds, capsys):
    with pytest.raises(SystemExit, match="1"):
        commands.main(["top", "http://s", "--interval", seconds])
    assert "--interval: expected 0.1 to 3600 seconds" in capsys.readouterr().err
