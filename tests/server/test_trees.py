"""Trees of answers over HTTP are those that the same requests have offline."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor, wait

import httpx
import pytest

from forkjoin import LLM, Client, Tree
from tests.server import unhurried
from tests.server.conftest import start_server

pytestmark = pytest.mark.server

CHAT, COMPLETIONS, BATCH = "/v1/chat/completions", "/v1/completions", "/v1/chat/completions/batch"
RESPONSES, GENERATE, MESSAGES = "/v1/responses", "/inference/v1/generate", "/v1/messages"
LIMIT_S = 300
#: With vLLM's routes for trainers.
DEV = {"VLLM_SERVER_DEV_MODE": "1"}
MESSAGES_OF = [{"role": "user", "content": "a=482*731, b=64*28"}]
DRAWN = {"temperature": 1.0, "seed": 7, "max_tokens": 600}
ASKED = {"return_tree": True}
VOTE = {"best_of": 3, "vote": r"\d+", "max_tokens_per_thread": 40}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    log = tmp_path_factory.mktemp("trees") / "log"
    flags = (
        "--enable-scale-out",
        "--max-tree-tokens",
        "20000",
        "--max-continued-tokens",
        "20000",
        *unhurried.FLAGS,
    )
    with start_server(log, *flags, env=DEV | unhurried.ENV) as (address, _):
        yield address


@pytest.fixture(scope="module")
def llm():
    import tests.engine.harness  # noqa: F401 - an engine in this process, none to be ended

    return LLM(max_model_len=4096, block_size=32, enforce_eager=True)


def offline(llm, *, forkjoin=None, prompt=None, **more):
    """The trees that the same request has without a server."""
    from vllm import SamplingParams

    params = SamplingParams(**DRAWN | more)
    if prompt is None:
        (output,) = llm.chat([MESSAGES_OF], params, forkjoin=forkjoin, use_tqdm=False)
    else:
        (output,) = llm.generate([prompt], params, forkjoin=forkjoin, use_tqdm=False)
    return [answer.tree for answer in output.outputs]


def post(address, path, body):
    return httpx.post(address + path, json=body, timeout=LIMIT_S)


def ask(address, path, body):
    response = post(address, path, body)
    assert response.status_code == 200, response.text
    return response.json()


def events(address, path, body):
    with httpx.stream("POST", address + path, json=body | {"stream": True}, timeout=LIMIT_S) as response:
        return [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]


def chat(**more):
    return {"model": "abacus", "messages": MESSAGES_OF, "forkjoin": ASKED} | DRAWN | more


def same(given, tree):
    """Whether a tree of an answer is one of another engine, whose last bits may differ."""
    mine, other = Tree.from_dict(given), Tree.from_dict(json.loads(json.dumps(tree.to_dict())))
    for segment, theirs in zip(mine.segments, other.segments, strict=True):
        assert segment.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
        segment.logprobs = theirs.logprobs = None
        for row, their_row in zip(segment.top_logprobs or [], theirs.top_logprobs or [], strict=True):
            assert row == pytest.approx(their_row, abs=1e-4)
        segment.top_logprobs = theirs.top_logprobs = None
        segment.weight_version = theirs.weight_version
    return mine == other


def test_the_tree_of_a_chat_is_the_one_that_it_has_offline(address, llm):
    (expected,) = offline(llm)
    assert len(expected.segments) > 2, "it forks"
    choice = ask(address, CHAT, chat())["choices"][0]
    assert same(choice["tree"], expected)
    assert choice["logprobs"] is None
    assert "threads" not in choice["message"]


def test_a_stream_has_it_once_in_the_chunk_that_ends_the_answer(address, llm):
    (expected,) = offline(llm, logprobs=2)
    body = chat(
        logprobs=True, top_logprobs=2, stream_options={"include_threads": True, "include_usage": True}
    )
    chunks = events(address, CHAT, body)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    (last,) = [choice for choice in choices if "tree" in choice]
    assert last["finish_reason"] == "stop"
    assert last is choices[-1]
    assert same(last["tree"], expected)
    assert any("threads" in choice["delta"] for choice in choices)
    assert chunks[-1]["usage"]["forkjoin"]["num_threads"] == 2


def test_each_choice_has_its_own(address, llm):
    expected = offline(llm, n=2)
    whole = ask(address, CHAT, chat(n=2))["choices"]
    assert [same(c["tree"], tree) for c, tree in zip(whole, expected, strict=True)] == [True, True]
    ends = [c for chunk in events(address, CHAT, chat(n=2)) for c in chunk["choices"] if "tree" in c]
    assert [Tree.from_dict(c["tree"]) for c in sorted(ends, key=lambda c: c["index"])] == [
        Tree.from_dict(c["tree"]) for c in whole
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_each_prompt_of_a_completion_has_its_own(address, llm, stream):
    prompts = ["a=7*8", "a=64*28"]
    body = {"model": "abacus", "prompt": prompts, "n": 2, "forkjoin": ASKED | {"enabled": False}}
    body |= DRAWN | {"max_tokens": 40}
    told = events(address, COMPLETIONS, body) if stream else [ask(address, COMPLETIONS, body)]
    trees = {c["index"]: c["tree"] for part in told for c in part["choices"] if "tree" in c}
    for number, prompt in enumerate(prompts):
        for index, tree in enumerate(
            offline(llm, prompt=prompt, n=2, max_tokens=40, forkjoin={"enabled": False})
        ):
            assert same(trees[2 * number + index], tree)
    assert len(trees) == 4


def test_branches_and_votes_have_trees(address, llm):
    branches = {"branches": [{"text": "a="}, {"text": "b=6"}], "closing": "\nso", "max_tokens_per_thread": 40}
    for forkjoin in (branches, VOTE):
        (expected,) = offline(llm, forkjoin=forkjoin, max_tokens=150)
        choice = ask(address, CHAT, chat(forkjoin=ASKED | forkjoin, max_tokens=150))["choices"][0]
        assert same(choice["tree"], expected)
    assert choice["tree"]["voted"] is not None


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_has_it_and_its_threads_beside_it(address, llm, stream):
    (expected,) = offline(llm)
    body = {"model": "abacus", "input": MESSAGES_OF, "temperature": 1.0, "seed": 7, "max_output_tokens": 600}
    body["forkjoin"] = ASKED | {"include_threads": True}
    if stream:
        told = events(address, RESPONSES, body)
        assert [e["type"] for e in told if "tree" in e.get("response", {})] == [told[-1]["type"]]
        response = told[-1]["response"]
    else:
        response = ask(address, RESPONSES, body)
    assert same(response["tree"], expected)
    assert any("thread" in item for item in response["output"])


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_in_and_tokens_out_have_it(address, llm, stream):
    (expected,) = offline(llm)
    prompt_ids = expected.segments[0].token_ids[: expected.segments[0].num_injected]
    body = {"model": "abacus", "token_ids": prompt_ids, "sampling_params": DRAWN, "forkjoin": ASKED}
    told = events(address, GENERATE, body) if stream else [ask(address, GENERATE, body)]
    (choice,) = [c for part in told for c in part["choices"] if "tree" in c]
    assert same(choice["tree"], expected)
    assert not choice.get("logprobs")


def test_an_answer_that_a_stop_string_ends_has_its_tree_so_far(address, llm):
    (expected,) = offline(llm, stop=["p4q8"], seed=1)
    choice = ask(address, CHAT, chat(stop=["p4q8"], seed=1))["choices"][0]
    assert choice["stop_reason"] == "p4q8"
    assert same(choice["tree"], expected)


def test_a_batch_of_chats_has_one_each(address):
    body = chat(messages=[MESSAGES_OF, [{"role": "user", "content": "a=7*8"}]])
    choices = ask(address, BATCH, body)["choices"]
    assert [len(choice["tree"]["segments"]) > 1 for choice in choices] == [True, False]


def test_who_does_not_ask_gets_none(address):
    answer = ask(address, CHAT, chat(forkjoin={}))
    assert "tree" not in answer["choices"][0]
    assert not any("tree" in c for e in events(address, CHAT, chat(forkjoin={})) for c in e["choices"])


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        (
            CHAT,
            chat(forkjoin={"return_tree": "yes"}),
            "forkjoin.return_tree: Input should be a valid boolean",
        ),
        (MESSAGES, chat(), f"forkjoin.return_tree: expected one of {CHAT}"),
        (RESPONSES, {"input": "a=7*8", "background": True, "forkjoin": ASKED}, "background = false"),
        (CHAT, chat(use_beam_search=True), "without use_beam_search"),
        (
            CHAT,
            chat(max_tokens=3000, n=7),
            "at most 20000 tokens over all answers (the server's --max-tree-t",
        ),
        (CHAT, chat(logprobs=True, top_logprobs=20, max_tokens=1000), "20 likeliest ones beside each"),
    ],
)
def test_what_can_not_have_it_is_refused(address, path, body, says):
    response = post(address, path, {"model": "abacus"} | body)
    assert response.status_code == 400
    assert says in response.text


def test_our_client_reads_it(address):
    with Client(address) as client:
        asked = DRAWN | {"model": "abacus", "forkjoin": ASKED}
        whole = client.ask(MESSAGES_OF[0]["content"], **asked)
        with client.stream(MESSAGES_OF[0]["content"], **asked) as stream:
            for _ in stream:
                pass
    assert isinstance(whole.tree, Tree)
    assert whole.tree == stream.answer.tree
    assert whole.tree.segments[-1].finish_reason == "stop"


def test_the_openai_sdk_takes_it_as_one_field_more(address):
    from openai import OpenAI

    with OpenAI(base_url=f"{address}/v1", api_key="none", timeout=LIMIT_S) as client:
        answer = client.chat.completions.create(
            model="abacus", messages=MESSAGES_OF, extra_body={"forkjoin": ASKED}, **DRAWN
        )
        response = client.responses.create(
            model="abacus", input="a=7*8", extra_body={"forkjoin": ASKED, "seed": 7}, max_output_tokens=200
        )
    assert Tree.from_dict(answer.choices[0].tree).segments
    assert Tree.from_dict(response.tree).segments
    assert answer.choices[0].message.content


def in_the_middle(address, body, do):
    """The chunks of a stream; ``do`` is called once when all its threads write."""
    chunks, has_done = [], False
    body |= {"stream": True, "stream_options": {"include_threads": True}}
    with httpx.stream("POST", address + CHAT, json=body, timeout=LIMIT_S) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunks.append(json.loads(line[6:]))
            threads = [
                e for c in chunks for choice in c["choices"] for e in choice["delta"].get("threads", ())
            ]
            if not has_done and {e["index"] for e in threads if e.get("content")} == {0, 1}:
                do()
                has_done = True
    assert has_done
    return chunks


def trainer(address, *, clear_cache, version):
    """What changes the weights of a server as a trainer does; here they stay what they are."""

    def update():
        given = {"mode": "keep", "clear_cache": clear_cache}
        assert httpx.post(f"{address}/pause", params=given, timeout=LIMIT_S).status_code == 200
        named = {"new_version": version}
        assert httpx.post(f"{address}/update_weight_version", json=named, timeout=LIMIT_S).status_code == 200
        assert httpx.post(f"{address}/resume", timeout=LIMIT_S).status_code == 200

    return update


@pytest.mark.parametrize("clear_cache", [True, False])
def test_an_answer_over_an_update_of_the_weights_says_which_wrote_what(address, llm, clear_cache):
    (before,) = offline(llm)
    version = f"step-{clear_cache}"
    chunks = in_the_middle(address, chat(), trainer(address, clear_cache=clear_cache, version=version))
    tree = Tree.from_dict(chunks[-1]["choices"][0]["tree"])
    threads = [[s for s in tree.segments if s.thread == index] for index in range(2)]
    assert any([s.weight_version for s in of_thread][1:] == [version] for of_thread in threads)
    after = [s for s in tree.segments if s.weight_version == version]
    assert {s.has_old_kv for s in after} == {not clear_cache}
    assert tree.linear() == before.linear(), "they are the same weights, by another name"


def test_a_family_that_a_pause_aborts_has_its_tree_so_far(address):
    def abort():
        assert httpx.post(f"{address}/pause", params={"mode": "abort"}, timeout=LIMIT_S).status_code == 200
        assert httpx.post(f"{address}/resume", timeout=LIMIT_S).status_code == 200

    chunks = in_the_middle(address, chat(), abort)
    (last,) = [choice for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    assert last["finish_reason"] == "abort"
    tree = Tree.from_dict(last["tree"])
    assert [s.finish_reason for s in tree.segments] == ["abort", "cancelled", "cancelled"]
    assert all(len(s.token_ids) > s.num_injected for s in tree.segments)
    (engine,) = httpx.get(f"{address}/v1/forkjoin/families", timeout=LIMIT_S).json()["engines"]
    assert engine["num_families"] == 0
    assert ask(address, CHAT, chat())["choices"][0]["finish_reason"] == "stop"


GREEDY = {"temperature": 0.0, "seed": None, "max_tokens": 1500}


@pytest.fixture(scope="module")
def whole(address):
    """The answer that nobody cuts off."""
    return ask(address, CHAT, chat(**GREEDY))["choices"][0]


def test_a_stream_may_have_each_segment_as_it_ends(address, whole):
    body = chat(**GREEDY, forkjoin=ASKED | {"stream_segments": True})
    choices = [choice for chunk in events(address, CHAT, body) for choice in chunk["choices"]]
    shown = [segment for choice in choices for segment in choice.get("segments", ())]
    last = choices[-1]["tree"]
    assert len(shown) == last["segments"].count(None) == len(last["segments"]) - 1
    first = next(n for n, choice in enumerate(choices) if choice.get("segments"))
    texts = [choice["delta"].get("content") for choice in choices]
    assert any(texts[:first])
    assert any(texts[first:])
    for segment in shown:
        last["segments"][segment["number"]] = segment["segment"]
    assert same(last, Tree.from_dict(whole["tree"]))
    with Client(address) as client:
        forkjoin = ASKED | {"stream_segments": True}
        asked = GREEDY | {"model": "abacus", "forkjoin": forkjoin}
        with client.stream(MESSAGES_OF[0]["content"], **asked) as stream:
            kinds = [event.type for event in stream]
    assert kinds.count("segment_ended") == len(shown)
    assert stream.answer.tree.linear() == whole["tree"]["answer_ids"]


@pytest.mark.parametrize("forkjoin", [{"stream_segments": True}, ASKED | {"stream_segments": True}])
def test_segments_are_refused_where_no_stream_has_them(address, forkjoin):
    response = post(address, CHAT, chat(forkjoin=forkjoin))
    assert response.status_code == 400
    assert "stream_segments" in response.text


# ---- pauses and sleep ------------------------------------------------------------------------

#: What holds an engine, and what lets it go on. On CPUs vLLM's workers keep their memory while they sleep.
HOLDS = {"/pause": "/resume", "/sleep": "/wake_up"}


def holding(address, route, mode, seen):
    """What holds the engine and lets it go on; ``seen``: the families that were there meanwhile."""

    def hold():
        assert httpx.post(address + route, params={"mode": mode}, timeout=LIMIT_S).status_code == 200
        if route == "/sleep":
            assert httpx.get(f"{address}/is_sleeping", timeout=LIMIT_S).json() == {"is_sleeping": True}
        (engine,) = httpx.get(f"{address}/v1/forkjoin/families", timeout=LIMIT_S).json()["engines"]
        seen.append(engine["num_families"])
        assert httpx.post(address + HOLDS[route], timeout=LIMIT_S).status_code == 200

    return hold


@pytest.mark.parametrize("route", HOLDS)
@pytest.mark.parametrize(("mode", "num_families"), [("wait", 0), ("keep", 1)])
def test_a_family_outlives_a_pause_and_a_sleep(address, whole, route, mode, num_families):
    seen = []
    chunks = in_the_middle(address, chat(**GREEDY), holding(address, route, mode, seen))
    (last,) = [choice for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    assert seen == [num_families]
    assert last["finish_reason"] == "stop"
    assert last["tree"]["answer_ids"] == whole["tree"]["answer_ids"]


@pytest.mark.parametrize("mode", ["abort", "wait", "keep"])
def test_a_request_that_comes_in_a_pause_is_answered_after_it_or_told_to_come_again(address, mode):
    from vllm.v1.engine.core import EngineCoreProc

    is_refused = hasattr(EngineCoreProc, "pause_generation") and mode != "keep"  # since vLLM 0.33
    with ThreadPoolExecutor() as pool:
        assert httpx.post(f"{address}/pause", params={"mode": mode}, timeout=LIMIT_S).status_code == 200
        try:
            asked = pool.submit(post, address, CHAT, chat())
            if is_refused:
                assert asked.result(LIMIT_S).status_code == 503
                assert "Generation is paused. Please retry" in asked.result().text
            else:
                wait([asked], timeout=2)
                assert not asked.done()
        finally:
            assert httpx.post(f"{address}/resume", timeout=LIMIT_S).status_code == 200
        if not is_refused:
            assert asked.result().json()["choices"][0]["finish_reason"] == "stop"
    (engine,) = httpx.get(f"{address}/v1/forkjoin/families", timeout=LIMIT_S).json()["engines"]
    assert engine["num_families"] == 0
    assert ask(address, CHAT, chat())["choices"][0]["finish_reason"] == "stop"


# ---- going on from a tree --------------------------------------------------------------------


def going_on(tree, **more):
    return chat(forkjoin=ASKED | {"continues_tree": tree} | more.pop("forkjoin", {}), **GREEDY | more)


def told(tree):
    """The tokens of each thread in order, and how it ended."""
    rows = {}
    for segment in Tree.from_dict(tree).segments:
        tokens, _ = rows.get(segment.thread, ([], None))
        rows[segment.thread] = ([*tokens, *segment.token_ids], segment.finish_reason)
    return rows


@pytest.mark.parametrize("route", HOLDS)
def test_an_answer_that_a_pause_or_a_sleep_aborts_goes_on_from_its_tree(address, whole, route):
    chunks = in_the_middle(address, chat(**GREEDY), holding(address, route, "abort", []))
    (last,) = [choice for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    assert last["finish_reason"] == "abort"
    answer = ask(address, CHAT, going_on(last["tree"]))
    (choice,) = answer["choices"]
    assert choice["message"]["content"] == whole["message"]["content"]
    assert told(choice["tree"]) == told(whole["tree"])
    assert same(choice["tree"] | {"segments": []}, Tree.from_dict(whole["tree"] | {"segments": []}))
    streamed = events(address, CHAT, going_on(last["tree"]))
    text = "".join(c["delta"].get("content") or "" for chunk in streamed for c in chunk["choices"])
    assert text == whole["message"]["content"]


@pytest.mark.parametrize("max_tokens", [5, 60, 200])
def test_an_answer_that_ran_into_its_limit_goes_on_from_its_tree(address, whole, max_tokens):
    cut = ask(address, CHAT, chat(**GREEDY | {"max_tokens": max_tokens}))["choices"][0]
    assert cut["finish_reason"] == "length"
    answer = ask(address, CHAT, going_on(cut["tree"], logprobs=True))
    sampled = [len(s.token_ids) - s.num_injected for s in Tree.from_dict(cut["tree"]).segments]
    assert answer["usage"]["forkjoin"]["given_tokens"] == sum(sampled)
    assert answer["choices"][0]["message"]["content"] == whole["message"]["content"]
    assert told(answer["choices"][0]["tree"]) == told(whole["tree"])
    assert len(answer["choices"][0]["logprobs"]["content"]) == len(whole["tree"]["answer_ids"])


def test_offline_it_goes_on_from_the_same_tree(address, llm, whole):
    cut = ask(address, CHAT, chat(**GREEDY | {"max_tokens": 200}))["choices"][0]
    asked = {"continues_tree": Tree.from_dict(cut["tree"])}
    (tree,) = offline(llm, forkjoin=asked, **GREEDY)
    assert told(tree.to_dict()) == told(whole["tree"])
    assert tree.linear() == whole["tree"]["answer_ids"]
    with pytest.raises(ValueError, match="expected the prompt of the tree"):
        offline(llm, prompt="a=7*8", forkjoin=asked, **GREEDY)


def test_tokens_in_go_on_from_a_tree_and_our_client_does(address, whole):
    cut = ask(address, CHAT, chat(**GREEDY | {"max_tokens": 200}))["choices"][0]
    first = cut["tree"]["segments"][0]
    body = {"model": "abacus", "token_ids": first["token_ids"][: first["num_injected"]]}
    body |= {"sampling_params": GREEDY, "forkjoin": ASKED | {"continues_tree": cut["tree"]}}
    assert told(ask(address, GENERATE, body)["choices"][0]["tree"]) == told(whole["tree"])
    with Client(address) as client:
        forkjoin = ASKED | {"continues_tree": Tree.from_dict(cut["tree"])}
        answer = client.ask(MESSAGES_OF[0]["content"], model="abacus", forkjoin=forkjoin, **GREEDY)
    assert answer.content == whole["message"]["content"]


@pytest.mark.parametrize(
    ("change", "more", "says"),
    [
        ({"segments": []}, {}, "expected segments, got none"),
        ({}, {"messages": [{"role": "user", "content": "a=7*8"}]}, "expected the prompt of the tree"),
        ({}, {"max_tokens": 20}, "raise max_tokens"),
        ({}, {"forkjoin": {"max_forks": 0}}, "may not fork where it has: too_many_forks"),
        ({}, {"forkjoin": {"enabled": False}}, "expected forkjoin.enabled = true"),
        ({}, {"response_format": {"type": "json_object"}}, "continues_tree: expected a request"),
        ({}, {"prompt_logprobs": 1}, "prompt_logprobs"),
    ],
)
def test_a_tree_that_can_not_be_gone_on_from_is_refused(address, change, more, says):
    cut = ask(address, CHAT, chat(**GREEDY | {"max_tokens": 200}))["choices"][0]
    response = post(address, CHAT, going_on(cut["tree"] | change, **more))
    assert response.status_code == 400
    assert says in response.text


def test_an_answer_that_has_ended_is_not_gone_on_with(address, whole):
    response = post(address, CHAT, going_on(whole["tree"]))
    assert response.status_code == 400
    assert "expected an answer that was cut off (abort, length), got one that ended by" in response.text
