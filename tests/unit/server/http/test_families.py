"""What ``GET /v1/forkjoin/families`` asks of the engines, and what it shows to whom."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.policy.backlog import Tenant
from forkjoin_scheduler.settings import KEY as KEY_OF_SETTINGS
from forkjoin_scheduler.settings import Settings
from forkjoin_server.access.keys import Key, unnamed
from forkjoin_server.http import families
from forkjoin_server.http.families import Families, NoAnswer
from forkjoin_server.http.middleware import ForkJoinMiddleware

KEY = "fj" + "0" * 32


def engine(number: int, *request_ids: str, tenant: str = "") -> dict[str, Any]:
    rows = [{"request_id": f"{i}-0123abcd", "tenant": tenant, "state": "forked"} for i in request_ids]
    answers = [{"request_id": f"{i}-0123abcd", "tenant": tenant, "tokens": 64} for i in request_ids]
    kept = {"kv_blocks": 4, "num_answers": len(answers), "answers": answers}
    return {"engine": number, "num_families": len(rows), "families": rows, "kept": kept}


class Core:
    """Two engines, which answer when they are let."""

    def __init__(self, *answers: Any, answers_at_once: bool = True) -> None:
        self.answers = answers
        self.num_asked = 0
        self.answering = asyncio.Event()
        if answers_at_once:
            self.answering.set()

    async def call_utility_all_async(self, method: str) -> list[Any]:
        assert method == "forkjoin_overview"
        self.num_asked += 1
        await self.answering.wait()
        if isinstance(self.answers[0], Exception):
            raise self.answers[0]
        return list(self.answers)


def test_the_families_of_all_engines_are_shown_by_the_ids_of_their_answers():
    core = Core(engine(1, f"chatcmpl-mine-{KEY}"), engine(0, f"chatcmpl-{KEY}"))
    seen = asyncio.run(Families(core).shown_to(Tenant()))
    ids = [[family["request_id"] for family in e["families"]] for e in seen["engines"]]
    assert ids == [[f"chatcmpl-{KEY}"], [f"chatcmpl-mine-{KEY}"]]


@pytest.mark.parametrize(
    ("key", "sees"),
    [(Key("alice", b""), ["a", None]), (Key("bob", b""), [None, "b"]), (unnamed([b""])[0], ["a", "b"])],
    ids=["alice", "bob", "operator"],
)
def test_a_key_of_the_file_sees_no_ids_of_others(key, sees):
    tenants = {name: Key(name, b"").tenant(1, has_own_cache=False).id for name in ("alice", "bob")}
    core = Core(engine(0, "a", tenant=tenants["alice"]), engine(1, "b", tenant=tenants["bob"]))
    seen = asyncio.run(Families(core).shown_to(key.tenant(1, has_own_cache=False)))
    for rows in (
        [family for e in seen["engines"] for family in e["families"]],
        [answer for e in seen["engines"] for answer in e["kept"]["answers"]],
    ):
        assert [row["request_id"] for row in rows] == sees
        assert not [row for row in rows if "tenant" in row]


def test_whoever_asks_at_the_same_time_or_a_moment_later_gets_the_same_answer():
    clock = [1000.0]

    async def ask():
        core = Core(engine(0, "a"), answers_at_once=False)
        shown = Families(core, lambda: clock[0])
        asking = [asyncio.ensure_future(shown.shown_to(Tenant())) for _ in range(5)]
        await asyncio.sleep(0)
        core.answering.set()
        await asyncio.gather(*asking)
        clock[0] += families.GOOD_FOR_S / 2
        late = await shown.shown_to(Tenant())
        assert (core.num_asked, late["age_s"]) == (1, families.GOOD_FOR_S / 2)
        clock[0] += families.GOOD_FOR_S
        assert (await shown.shown_to(Tenant()))["age_s"] == 0
        return core.num_asked

    assert asyncio.run(ask()) == 2


def test_an_engine_that_hangs_is_asked_once_and_answers_when_it_goes_on(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(families, "LIMIT_S", 0.01)

    async def ask():
        core = Core(engine(0, "a"), answers_at_once=False)
        shown = Families(core, lambda: clock[0])
        for _ in range(3):
            with pytest.raises(NoAnswer, match="expected every engine to answer within"):
                await shown.shown_to(Tenant())
        assert core.num_asked == 1
        clock[0] += families.PATIENCE_S  # the engine may have been exchanged for another
        with pytest.raises(NoAnswer):
            await shown.shown_to(Tenant())
        assert core.num_asked == 2
        core.answering.set()
        monkeypatch.setattr(families, "LIMIT_S", 60)  # the next answer comes at once, on an idle machine
        return await shown.shown_to(Tenant())

    assert asyncio.run(ask())["engines"][0]["num_families"] == 1


def test_who_waits_when_the_question_is_put_again_gets_no_error_of_the_servers():
    clock = [1000.0]

    async def ask():
        core = Core(engine(0, "a"), answers_at_once=False)
        shown = Families(core, lambda: clock[0])
        early = asyncio.ensure_future(shown.shown_to(Tenant()))
        await asyncio.sleep(0)
        clock[0] += families.PATIENCE_S
        late = asyncio.ensure_future(shown.shown_to(Tenant()))
        with pytest.raises(NoAnswer, match="so the server asks again"):
            await early
        core.answering.set()
        return await late

    assert asyncio.run(ask())["engines"][0]["num_families"] == 1


def test_an_engine_that_answers_with_an_error_is_named_and_asked_again():
    clock = [1000.0]

    async def ask():
        core = Core(RuntimeError("Server shutting down"))
        shown = Families(core, lambda: clock[0])
        with pytest.raises(NoAnswer, match="got an error: Server shutting down"):
            await shown.shown_to(Tenant())
        core.answers = (engine(0),)
        clock[0] += families.GOOD_FOR_S
        return await shown.shown_to(Tenant())

    assert asyncio.run(ask())["engines"][0]["families"] == []


def asked(core: Any, dialect: str | None = "threadweaver") -> tuple[int, dict[str, Any]]:
    """The status and the body that a client of the middleware is sent, who asks for the families."""
    settings = (
        {} if dialect is None else {KEY_OF_SETTINGS: Settings.of(load(dialect), {}).model_dump(mode="json")}
    )
    state = SimpleNamespace(
        engine_client=SimpleNamespace(engine_core=core),
        vllm_config=SimpleNamespace(additional_config=settings),
    )
    scope = {
        "type": "http",
        "method": "GET",
        "path": families.PATH,
        "headers": [],
        "app": SimpleNamespace(state=state),
    }
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def nothing(*_: Any) -> Any:
        raise AssertionError("vLLM is not asked, and no body is read")

    asyncio.run(ForkJoinMiddleware(nothing)(scope, nothing, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


def test_the_route_shows_what_the_engines_say():
    async def answer(*_: Any) -> list[Any]:
        return [engine(0, "a")]

    status, body = asked(SimpleNamespace(call_utility_all_async=answer))
    assert (status, body["object"]) == (200, "forkjoin.families")
    assert body["engines"][0]["families"] == [{"request_id": "a", "state": "forked"}]


def test_the_route_is_a_503_while_an_engine_gives_no_answer(monkeypatch):
    monkeypatch.setattr(families, "LIMIT_S", 0.01)

    async def never(*_: Any) -> list[Any]:
        return await asyncio.Future()

    status, body = asked(SimpleNamespace(call_utility_all_async=never))
    assert (status, body["error"]["code"]) == (503, 503)
    assert "expected every engine to answer" in body["error"]["message"]


def test_the_route_is_a_404_where_nothing_forks():
    status, body = asked(None, dialect=None)
    assert status == 404
    assert "--dialect none" in body["error"]["message"]
