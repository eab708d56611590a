from __future__ import annotations

import asyncio
from dataclasses import replace
from io import StringIO

import pytest
from aiohttp import web
from rich.console import Console

from forkjoin_bench.overload.clients import ask_all
from forkjoin_bench.overload.plan import Plan
from forkjoin_bench.overload.result import Result, problems, spread
from forkjoin_bench.progress import working

PLAN = Plan(requests=10)
GOOD = Result(
    outcomes={"finished": 6, "refused": 3, "failed": 0, "cancelled": 1, "lost": 0},
    health_s={"max": 0.9},
    memory_mib={"engine": {"before": 100, "peak": 500, "after": 400}},
    left={"vllm:num_requests_running": 0.0},
)


def test_what_holds_is_no_problem():
    assert problems(PLAN, GOOD) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"outcomes": GOOD.outcomes | {"refused": 2}}, "expected 10 outcomes, got 9"),
        ({"outcomes": GOOD.outcomes | {"refused": 2, "lost": 1}}, "no request lost, got 1"),
        ({"outcomes": GOOD.outcomes | {"refused": 2, "failed": 1}}, "no request failed, got 1"),
        ({"outcomes": {"refused": 10}}, "expected requests to finish"),
        ({"health_s": {"max": 1.0}}, "/health within"),
        ({"num_health_failed": 1}, "1 failures"),
        ({"num_tracebacks": 2}, "no traceback in the server's log, got 2"),
        ({"memory_mib": {"api": {"before": 100, "peak": 900, "after": 100}}}, "expected api to grow"),
        ({"left": {"forkjoin:threads_running": 2.0}}, "forkjoin:threads_running to be 0 after it, got 2"),
        ({"left": {}}, "expected the server to answer after it, but it had ended"),
    ],
)
def test_what_does_not_hold_is_told(change, said):
    (found,) = problems(PLAN, replace(GOOD, **change))
    assert said in found


def test_a_spread_leaves_out_what_is_not_known():
    assert spread([3.0, None, 1.0, 2.0]) == {"min": 1.0, "p50": 2.0, "p90": 3.0, "p99": 3.0, "max": 3.0}
    assert spread([None]) == {}


async def _answer(request: web.Request) -> web.StreamResponse:
    asked = await request.json()
    if asked.get("logprobs"):  # by a client that never reads
        return web.Response(status=503)
    response = web.StreamResponse()
    await response.prepare(request)
    for data in ['{"choices": []}'] * 20 + ['{"choices": [{"finish_reason":"stop"}]}', "[DONE]"]:
        await response.write(f"data: {data}\n\n".encode())
    return response


def test_the_bar_counts_every_request_however_it_ends():
    plan = Plan(requests=8, stalled=2, cancelled=1)
    console = Console(file=StringIO(), force_terminal=True, width=100)

    async def ask():
        app = web.Application()
        app.router.add_post("/v1/chat/completions", _answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        with working(plan.name, plan.requests, console=console) as work:
            told = await ask_all(plan, port, work.done)
        await runner.cleanup()
        return told

    told = asyncio.run(ask())
    assert [len(told), sum(t.outcome == "finished" for t in told)] == [plan.requests, 5]
    assert f"{plan.requests}/{plan.requests}" in console.file.getvalue()
