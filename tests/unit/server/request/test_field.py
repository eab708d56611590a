from __future__ import annotations

import json

import pytest

from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.publish.feed import new_key
from forkjoin_scheduler.request.options import RequestOptions, parse_options
from forkjoin_scheduler.settings import Settings
from forkjoin_server.request.field import count_answers, options_in, prepare
from forkjoin_server.routes import BATCH, CHAT, COMPLETIONS, GENERATE, MESSAGES, PATHS, RESPONSES

SHOWN = {"include_threads": True}


def test_what_a_request_shares_is_known_before_it_is_prepared():
    body = {"forkjoin": {"group_id": "g", "keep": 5}, "previous_response_id": "resp_1"}
    settings = Settings.of(load("threadweaver"), {})
    options = options_in(body, RESPONSES, settings)
    assert (options.group_id, options.keep, options.continues) == ("g", 5, "resp_1")
    assert options == prepare(body, RESPONSES, "k", settings)[1]
    assert body["forkjoin"] == {"group_id": "g", "keep": 5}
    with pytest.raises(BadRequestOptions, match="group_id"):
        options_in({"forkjoin": {"group_id": ""}}, CHAT, settings)


def test_the_field_is_taken_out_of_what_vllm_reads():
    body, options = prepare({"forkjoin": {"max_forks": 1}, "vllm_xargs": {"a": 1}}, CHAT, "k")
    assert body == {"vllm_xargs": {"a": 1}}
    assert options == parse_options({"max_forks": 1})


@pytest.mark.parametrize(("name", "route"), [("ssft", CHAT), ("threadweaver", COMPLETIONS)])
def test_a_beam_search_does_not_fork(name, route):
    settings = Settings.of(load(name), {})
    assert prepare({}, route, "k", settings)[1].enabled
    assert prepare({"use_beam_search": False}, route, "k", settings)[1].enabled
    assert not prepare({"use_beam_search": True}, route, "k", settings)[1].enabled


def test_include_threads_in_stream_options_is_taken_out_of_them():
    body, options = prepare({"stream_options": SHOWN | {"include_usage": True}}, CHAT, "k")
    assert options.include_threads
    assert body["stream_options"] == {"include_usage": True}


def test_a_body_that_says_nothing_of_fork_join_passes_as_it_is():
    given = {"model": "m", "messages": [], "n": 3, "stream_options": {"include_usage": True}}
    assert prepare(given, CHAT, "k") == (given, RequestOptions())


def test_the_clients_own_body_is_not_changed():
    given = {
        "forkjoin": {"max_forks": 1},
        "stream_options": SHOWN,
        "vllm_xargs": {},
        "input": [{"id": "th_fj1"}],
    }
    before = json.dumps(given)
    prepare(given, RESPONSES, "k")
    assert json.dumps(given) == before


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"forkjoin": {"bogus": 1}}, r"forkjoin\.bogus"),
        ({"forkjoin": 3}, "expected an object, got int"),
        ({"forkjoin": []}, "expected an object, got list"),
        ({"forkjoin": "{}"}, "forkjoin: expected an object, got str"),
        ({"forkjoin": "[" * 100_000}, "forkjoin: expected an object, got str"),
        ({"forkjoin": {"enabled": None}}, r"forkjoin\.enabled"),
        ({"forkjoin": {"max_forks": {"a": None}}}, r"forkjoin\.max_forks"),
        ({"stream_options": {"include_threads": "yes"}}, r"forkjoin\.include_threads.*'yes'"),
        ({"stream_options": {"include_threads": None}}, r"forkjoin\.include_threads.*None"),
        ({"vllm_xargs": {"forkjoin": "{"}}, r"vllm_xargs\.forkjoin"),
        ({"vllm_xargs": {"forkjoin_any_switch": 0}}, r"^vllm_xargs\.forkjoin_any_switch: expected no key that"),
        ({"vllm_xargs": {"forkjoin_compiled": {}}}, r"^vllm_xargs\.forkjoin_compiled: expected no key that"),
        ({"sampling_params": {"extra_args": {"forkjoin_tenant": 1}}}, r"extra_args\.forkjoin_tenant: expected no"),
        ({"vllm_xargs": {"kv_transfer_params": "{}"}}, r"vllm_xargs\.kv_transfer_params: expected an object"),
        ({"sampling_params": {"extra_args": {"ec_transfer_params": 1}}}, "ec_transfer_params: expected an object"),
    ],
)  # fmt: skip
def test_a_wrong_body_is_refused_by_name(body, message):
    with pytest.raises(BadRequestOptions, match=message):
        prepare(body, CHAT, "k")


@pytest.mark.parametrize("field", ["vllm_xargs", "stream_options"])
@pytest.mark.parametrize("wrong", ["x", [], 3])
def test_what_is_wrong_with_vllms_own_fields_is_left_for_it_to_say(field, wrong):
    assert prepare({field: wrong}, CHAT, "k")[0] == {field: wrong}


@pytest.mark.parametrize("n", [2, "2", 0, "x", [], {}, 1.5, 10**30])
def test_threads_of_anything_but_one_choice_are_refused(n):
    with pytest.raises(BadRequestOptions, match="expected n = 1, got n = "):
        prepare({"n": n, "forkjoin": SHOWN}, CHAT, "k")


@pytest.mark.parametrize("n", [None, 1, 1.0])
def test_threads_of_one_choice_are_shown(n):
    assert prepare({"n": n, "forkjoin": SHOWN}, CHAT, "k")[1].include_threads


def test_several_choices_may_fork_unseen():
    body, options = prepare({"n": 2, "forkjoin": {"max_forks": 1}}, CHAT, "k")
    assert (body["n"], options.include_threads) == (2, False)


@pytest.mark.parametrize("path", [p for p in PATHS if p not in (CHAT, RESPONSES, GENERATE)])
@pytest.mark.parametrize("body", [{"forkjoin": SHOWN}, {"stream": True, "stream_options": SHOWN}])
def test_a_route_that_shows_no_threads_says_which_do(path, body):
    with pytest.raises(BadRequestOptions, match=f"expected {CHAT}, {RESPONSES} or {GENERATE}, got {path}"):
        prepare(body, path, "k")


@pytest.mark.parametrize("path", PATHS)
def test_every_route_takes_the_other_options(path):
    _, options = prepare({"forkjoin": {"max_forks": 1, "include_threads": False}}, path, "k")
    assert (options.max_forks, options.include_threads) == (1, False)


@pytest.mark.parametrize("body", [{"forkjoin": SHOWN}, {"stream": True, "stream_options": SHOWN}])
def test_responses_show_threads(body):
    assert prepare(body, RESPONSES, "k")[1].include_threads


def test_threads_of_a_response_in_the_background_are_refused():
    with pytest.raises(BadRequestOptions, match="background"):
        prepare({"background": True, "forkjoin": SHOWN}, RESPONSES, "k")


@pytest.mark.parametrize(
    ("given", "id_"),
    [
        ({}, "resp_k"),
        ({"request_id": None}, "resp_k"),
        ({"request_id": "mine"}, "mine_k"),
        ({"request_id": "mine", "background": True}, "mine"),
        ({"request_id": 5}, 5),
    ],
)
def test_the_key_goes_into_the_id_of_a_response(given, id_):
    assert prepare(given, RESPONSES, "k")[0]["request_id"] == id_


def test_a_response_in_the_background_may_not_have_the_id_of_another_of_ours():
    with pytest.raises(BadRequestOptions, match="request_id: expected a new id"):
        prepare({"request_id": f"resp_{new_key()}", "background": True}, RESPONSES, "k")


def test_threads_that_a_client_gives_back_are_taken_out_of_its_input():
    own = [{"role": "user", "content": "x"}, {"type": "reasoning", "id": "rs_1"}, None]
    thread = {"type": "reasoning", "id": "th_fj0_1", "summary": [], "thread": {"index": 1}}
    assert prepare({"input": [*own, thread]}, RESPONSES, "k")[0]["input"] == own
    assert prepare({"input": "x"}, RESPONSES, "k")[0]["input"] == "x"
    assert prepare({"input": [thread]}, COMPLETIONS, "k")[0]["input"] == [thread]


@pytest.mark.parametrize(
    ("path", "body", "num_answers"),
    [
        (CHAT, {"messages": [{"role": "user"}]}, 1),
        (CHAT, {"messages": [{"role": "user"}] * 5, "n": 3}, 3),
        (BATCH, {"messages": [[{"role": "user"}], [{"role": "user"}]]}, 2),
        (BATCH, {"messages": [[{"role": "user"}]] * 3, "prompt": None, "prompt_embeds": "x", "n": 2}, 6),
        (CHAT, {"messages": None, "prompt": ["x", "y"]}, 2),
        (COMPLETIONS, {"prompt": "x", "n": 2}, 2),
        (COMPLETIONS, {"prompt": ["x", "y"], "n": 2}, 4),
        (COMPLETIONS, {"prompt": [1, 2, 3]}, 1),
        (COMPLETIONS, {"prompt": [[1], [2]]}, 2),
        (COMPLETIONS, {"prompt": "x", "prompt_embeds": ["a", "b"]}, 3),
        (COMPLETIONS, {"prompt": None, "prompt_embeds": "a"}, 1),
        (COMPLETIONS, {"prompt_embeds": ["a", "b"], "n": 2}, 4),
        (RESPONSES, {"input": "x"}, 1),
    ],
)
def test_the_answers_of_a_response_are_choices_times_prompts(path, body, num_answers):
    assert count_answers(body, path)[0] == num_answers


@pytest.mark.parametrize(
    "n", [2, "2", "300.0", "3.000", " 2 ", "+2", 3.0, True, None, 0, -1, "x", "1e2", 1.5, [], {}, "9" * 5000]
)
def test_choices_are_counted_as_vllm_reads_them(n):
    from pydantic import ValidationError
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    try:
        expected = CompletionRequest(prompt="x", n=n).n
    except ValidationError:
        expected = 1
    assert count_answers({"prompt": "x", "n": n}, COMPLETIONS) == (max(expected or 1, 1),) * 2


THREADWEAVER = Settings.of(load("threadweaver"), {})
AT_MOST_50 = Settings.of(load("multiverse"), {})
BRANCHES = {"branches": [{"title": "a"}, {"text": "b"}]}
VOTE = {"best_of": 3, "vote": "[0-9]+"}


@pytest.mark.parametrize("asked", [BRANCHES, BRANCHES | {"closing": "So:"}, VOTE])
@pytest.mark.parametrize("path", PATHS)
def test_a_fork_that_a_request_asks_for_goes_to_the_engine(path, asked):
    body, options = prepare({"forkjoin": asked}, path, "k", THREADWEAVER)
    assert "forkjoin" not in json.dumps(body)
    assert options == parse_options(asked)


IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]


@pytest.mark.parametrize(
    ("dialect", "rounds", "sentence"),
    [
        ("pacore", [32, 4], None),
        ("pacore", [33], r"forkjoin\.rounds: expected at most max_threads_per_fork = 32 .*, got 33"),
        ("pacore", [32] * 8, None),
        ("ssft", [4], "expected a server whose dialect joins in rounds .* --dialect ssft"),
        (None, [4], "--dialect none"),
    ],
)
def test_a_request_says_how_many_answers_each_round_has_where_there_are_rounds(dialect, rounds, sentence):
    settings = Settings() if dialect is None else Settings.of(load(dialect), {})
    body = {"messages": [], "forkjoin": {"rounds": rounds}}
    if sentence is None:
        assert prepare(body, "/v1/chat/completions", "k", settings)[1].rounds == rounds
    else:
        with pytest.raises(BadRequestOptions, match=sentence):
            prepare(body, "/v1/chat/completions", "k", settings)


def test_all_rounds_count_among_the_threads_of_a_request():
    settings = Settings.of(load("pacore"), {}, max_request_threads=35)
    body = {"messages": [], "forkjoin": {"rounds": [32, 4]}}
    with pytest.raises(BadRequestOptions, match=r"forkjoin\.rounds: expected at most 35 threads .* of 36"):
        prepare(body, "/v1/chat/completions", "k", settings)


@pytest.mark.parametrize(
    ("asked", "more", "message"),
    [
        ({"enabled": False}, {}, "expected forkjoin.enabled = true"),
        ({"max_forks": 1}, {}, r"expected max_forks = 2 or more beside it, got 1 \(the request's own"),
        ({}, {"prompt_logprobs": 0}, "expected no prompt_logprobs and no echo"),
    ],
)
def test_rounds_that_the_engine_would_not_do_are_refused(asked, more, message):
    body = {"messages": [], "forkjoin": {"rounds": [3, 2]} | asked} | more
    with pytest.raises(BadRequestOptions, match=rf"^forkjoin\.rounds: {message}"):
        prepare(body, CHAT, "k", Settings.of(load("pacore"), {}))


@pytest.mark.parametrize(("asked", "name"), [(BRANCHES, "branches"), (VOTE, "best_of")])
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"prompt_logprobs": 0}, "expected no prompt_logprobs and no echo"),
        ({"echo": True}, "expected no prompt_logprobs and no echo"),
        ({"use_beam_search": True}, "not with beam search"),
    ],
)
def test_a_fork_that_the_engine_would_not_do_is_refused_where_it_is_asked_for(asked, name, more, message):
    with pytest.raises(BadRequestOptions, match=rf"^forkjoin\.{name}: .*{message}"):
        prepare({"forkjoin": asked} | more, CHAT, "k", THREADWEAVER)
    prepare(more, CHAT, "k", THREADWEAVER)


@pytest.mark.parametrize("asked", [BRANCHES, VOTE])
def test_a_request_with_images_may_ask_for_a_fork(asked):
    body, options = prepare({"forkjoin": asked, "messages": IMAGE}, CHAT, "k", THREADWEAVER)
    assert body["messages"] == IMAGE
    assert options == parse_options(asked)


@pytest.mark.parametrize(
    ("asked", "settings", "message"),
    [
        (VOTE | {"enabled": False}, THREADWEAVER, "expected forkjoin.enabled = true beside it"),
        (VOTE, Settings(), "it runs with --dialect none"),
        (VOTE | {"best_of": 51}, AT_MOST_50, "expected at most max_threads_per_fork = 50 .*, got 51"),
        (VOTE | {"max_forks": 0}, THREADWEAVER, "expected max_forks = 1 or more beside it, got 0"),
    ],
)
def test_a_fork_is_refused_where_there_is_none(asked, settings, message):
    with pytest.raises(BadRequestOptions, match=rf"forkjoin\.best_of: .*{message}"):
        prepare({"forkjoin": asked}, CHAT, "k", settings)


TELLING = Settings.of(load("threadweaver").model_copy(update={"instruction": "\n\nFork!"}), {})
QUESTION = {"messages": [{"role": "user", "content": "x"}]}


def _told(settings=TELLING, path=CHAT, **more):
    return prepare(QUESTION | more, path, "k", settings)[0]["messages"][0]["content"]


def test_a_dialects_instruction_is_added_to_a_chat():
    assert _told() == _told(forkjoin={"max_forks": 1}) == "x\n\nFork!"


@pytest.mark.parametrize(
    "more",
    [{"forkjoin": {"enabled": False}}, {"forkjoin": VOTE}, {"response_format": {"type": "json_object"}}],
    ids=["off", "explicit", "left_alone"],
)
def test_a_request_in_which_the_model_will_not_fork_is_not_told_to(more):
    assert _told(**more) == "x"


def test_a_dialect_without_an_instruction_adds_none():
    assert _told(THREADWEAVER) == _told(Settings()) == "x"


@pytest.mark.parametrize(
    ("asked", "body", "num_answers"),
    [
        (VOTE | {"best_of": 50}, {"n": 10, "max_tokens": 60}, 10),
        (VOTE | {"best_of": 50}, {"prompt": ["x"] * 6}, 6),
        (VOTE | {"best_of": 2}, {"n": 10**30}, 1 << 31),
        (VOTE | {"best_of": 2}, {"n": "9" * 4300, "prompt": ["x"] * 20}, 20 << 31),
        ({"branches": [{"text": "a"}] * 50}, {"n": 3, "prompt": ["x"] * 2}, 6),
    ],
    ids=["choices", "prompts", "huge", "digits", "branches"],
)
def test_the_threads_over_all_answers_to_a_request_are_limited(asked, body, num_answers):
    with pytest.raises(BadRequestOptions, match=rf"at most 256 threads.*max-request-threads.*{num_answers}"):
        prepare({"forkjoin": asked} | body, COMPLETIONS, "k", THREADWEAVER)
    prepare({"forkjoin": asked | {"max_forks": 1}}, COMPLETIONS, "k", THREADWEAVER)
    more = THREADWEAVER.model_copy(update={"max_request_threads": 10**40})
    prepare({"forkjoin": asked} | body, COMPLETIONS, "k", more)


def test_answers_that_do_not_fork_by_themselves_are_as_many_as_vllm_allows():
    prepare({"n": 300}, CHAT, "k", THREADWEAVER)
    prepare({"prompt": ["x"] * 3000}, COMPLETIONS, "k", THREADWEAVER)


def test_tokens_in_tokens_out_has_its_sampling_parameters_in_an_object():
    sampling = {"max_tokens": 5, "extra_args": {"a": 1}}
    body, options = prepare({"sampling_params": sampling, "forkjoin": SHOWN}, GENERATE, "k")
    assert (body, options.include_threads) == ({"sampling_params": sampling}, True)
    for wrong in ({"n": 2}, {"extra_args": {"forkjoin": "{}"}}):
        with pytest.raises(BadRequestOptions):
            prepare({"sampling_params": wrong, "forkjoin": SHOWN}, GENERATE, "k")
    structured = {"sampling_params": {"structured_outputs": {"regex": "a"}}, "forkjoin": BRANCHES}
    with pytest.raises(BadRequestOptions, match="structured output"):
        prepare(structured, GENERATE, "k", THREADWEAVER)


KEEPS = Settings.of(load("threadweaver"), {})


def test_a_response_goes_on_from_its_previous_one_unless_the_field_names_another():
    body = {"input": "x", "previous_response_id": "resp_a", "forkjoin": {"keep": 60}}
    assert prepare(body, RESPONSES, "k", KEEPS)[1].continues == "resp_a"
    body["forkjoin"] = {"continues": "resp_b"}
    assert prepare(body, RESPONSES, "k", KEEPS)[1].continues == "resp_b"
    assert prepare({"input": "x"}, RESPONSES, "k", KEEPS)[1].continues is None


@pytest.mark.parametrize(
    ("body", "path", "settings", "message"),
    [
        ({"keep": 0}, CHAT, {}, "forkjoin.keep: .*greater than 0"),
        ({"keep": "1m"}, CHAT, {}, "forkjoin.keep: .*number.*'1m'"),
        ({"keep": 61}, CHAT, {"max_keep_s": 60}, "at most 60 seconds, the server's --max-keep-s, got 61"),
        ({"keep": 9}, CHAT, {"max_kept_share": 0}, "keeps answers, but it runs with --max-kept-share 0"),
    ],
)
def test_what_can_not_be_kept_is_refused(body, path, settings, message):
    settings = Settings.of(load("threadweaver"), {}, **settings)
    with pytest.raises(BadRequestOptions, match=message):
        prepare({"forkjoin": body}, path, "k", settings)


TREE = {"segments": [{"token_ids": [1, 2]}, {"token_ids": [3]}, {"token_ids": "no"}, None]}


@pytest.mark.parametrize(
    ("tree", "most", "message"),
    [
        ({}, 0, "takes trees, but it runs with --max-continued-tokens 0"),
        (TREE, 2, "at most 2 tokens in all segments, the server's --max-continued-tokens, got 3"),
    ],
)
def test_trees_are_refused_that_the_operator_does_not_allow(tree, most, message):
    settings = Settings.of(load("threadweaver"), {}, max_continued_tokens=most)
    with pytest.raises(BadRequestOptions, match=message):
        prepare({"forkjoin": {"continues_tree": tree}}, CHAT, "k", settings)


@pytest.mark.parametrize("tree", [TREE, {"segments": 3}, {}])
def test_what_a_tree_of_allowed_size_is_others_read(tree):
    settings = Settings.of(load("threadweaver"), {}, max_continued_tokens=3)
    _, options = prepare({"forkjoin": {"continues_tree": tree}}, CHAT, "k", settings)
    assert options.continues_tree == tree


def test_without_a_dialect_nothing_is_kept():
    with pytest.raises(BadRequestOptions, match="expected a server with a dialect"):
        prepare({"forkjoin": {"keep": 9}}, CHAT, "k")


@pytest.mark.parametrize(
    ("body", "path", "message"),
    [
        ({"n": 2}, CHAT, "expected one answer, got 2"),
        ({"prompt": ["a", "b", "c"]}, COMPLETIONS, "expected one answer, got 3"),
        ({"background": True, "request_id": "mine"}, RESPONSES, "no request_id beside background"),
    ],
)
def test_an_answer_is_kept_by_its_own_id(body, path, message):
    with pytest.raises(BadRequestOptions, match=message):
        prepare(body | {"forkjoin": {"keep": 60}}, path, "k", KEEPS)


@pytest.mark.parametrize("path", [CHAT, BATCH, COMPLETIONS, RESPONSES, GENERATE])
def test_each_route_with_a_place_for_it_gives_the_tree(path):
    assert prepare({"forkjoin": {"return_tree": True}}, path, "k")[1].return_tree


@pytest.mark.parametrize(
    ("body", "path", "message"),
    [
        ({}, MESSAGES, "expected one of /v1/chat/completions, .*, got /v1/messages"),
        ({"background": True}, RESPONSES, "expected background = false"),
        ({"use_beam_search": True}, CHAT, "expected a request without use_beam_search"),
        ({"prompt_embeds": "x"}, COMPLETIONS, "expected a request without prompt_embeds"),
    ],
)
def test_a_tree_that_can_not_be_is_refused(body, path, message):
    with pytest.raises(BadRequestOptions, match=rf"^forkjoin\.return_tree: {message}"):
        prepare(body | {"forkjoin": {"return_tree": True}}, path, "k")
