"""Every published dialect, driven by forced tokens through the real engine in its published format.

The embedded model stands in for theirs, with their control tokens in the place of its own.
"""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest

from forkjoin_scheduler.dialects.dialect import Dialect, Sampling
from forkjoin_scheduler.dialects.files import load
from tests.engine.malformed_cases import TRACE, call
from tests.engine.renamed import APAR, ASPD, HPD, MEDVERSE, NPR, PARALLEL_R1, dialect_for, with_tokens

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def text_engine():
    """An engine for dialects whose tags are text; ``speak`` tells it which."""
    from tests.engine.harness import Engine

    return Engine(load("explicit"))


@pytest.fixture
def speak(text_engine):
    with ExitStack() as until_the_end:
        yield lambda dialect: until_the_end.enter_context(text_engine.speaking(dialect))


@pytest.fixture(autouse=True)
def nothing_left(text_engine):
    yield
    text_engine.drain()
    assert text_engine.snapshot() == text_engine.baseline


def run(engine, script, *, prompt=None, **options):
    """Run a request in which the model writes, behind each context that ends with a text, another text."""
    encode = engine.tokenizer.encode
    extra = {"script": [[encode(end), None if t is None else encode(t)] for end, t in script.items()]}
    params = engine.params(extra_args=extra | {"eos": engine.eos}, **options)
    (answer,) = engine.run([prompt or engine.prompt("q")], params)
    assert engine.snapshot() == engine.baseline
    return answer


def thread_prompts(engine):
    """The tokens of each thread's first step, by its index."""
    first: dict[str, int] = {}
    for step in engine.steps:
        for request_id, num in step.items():
            if "#" in request_id and "#fill" not in request_id:
                first.setdefault(request_id.partition("#")[2], num)
    return first


# ---- Parallel-R1 -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parallel_r1(tmp_path_factory):
    from tests.engine.harness import Engine

    return Engine(load("parallel-r1"), with_tokens(tmp_path_factory.mktemp("r1"), PARALLEL_R1))


def _script(engine, path, **options):
    behind = {"</Parallel>\n<Summary>": "both</Summary>end"}
    return engine.scripted("think<Parallel>", {"1": path}, behind=behind, **options)


def test_parallel_r1_forks_into_two_equal_prompts_and_joins_them_under_a_summary(parallel_r1):
    engine = parallel_r1
    engine.steps.clear()
    (answer,) = engine.run([engine.prompt("q")], _script(engine, "abc</Path>"))
    assert answer.text == (
        "think<Parallel><Path>abc</Path><Path>abc</Path></Parallel>\n<Summary>both</Summary>end"
    )
    assert thread_prompts(engine) == dict.fromkeys("01", engine.num_late + 1)  # the trigger and <Path>
    joined = next(s for s in reversed(engine.steps) if max(s.values(), default=0) > 1)
    # the end tag of the first path, the second path whole, and what is injected
    assert list(joined.values()) == [1 + 5 + len(engine.tokenizer.encode("</Parallel>\n<Summary>"))]
    assert engine.snapshot() == engine.baseline


def test_the_paths_of_parallel_r1_part_by_their_seeds_and_a_seed_repeats_them(parallel_r1):
    engine = parallel_r1
    prompt = engine.prompt("a=482*731")
    script = [[prompt[-1:], engine.tokenizer.encode("<Parallel>")]]
    params = engine.params(
        temperature=2.0, max_tokens=60, seed=7, forkjoin={"max_tokens_per_thread": 20, "max_forks": 1},
        extra_args={"script": script, "eos": engine.eos},
    )  # fmt: skip
    # as hot as the request is: at 1, which the dialect sets, the model is sure
    with engine.speaking(load("parallel-r1").model_copy(update={"sampling": Sampling()})):
        first, again = (engine.run([prompt], params)[0].text for _ in range(2))
    assert first == again
    one, other = first.partition("</Parallel>")[0].split("<Path>")[1:]
    assert one != other


# ---- NPR ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def npr(tmp_path_factory):
    from tests.engine.harness import Engine

    return Engine(load("npr"), with_tokens(tmp_path_factory.mktemp("npr"), NPR))


def _plans(*numbers):
    return "<guideline>\n" + "".join(f"<plan>{n}: p{n}</plan>\n" for n in numbers) + "</guideline>"


def test_npr_joins_its_steps_as_published_and_writes_a_takeaway(npr):
    root = "go\n" + _plans(1, 2)
    script = {"": root, "<step>\n1:": " one</step>", "<step>\n2:": " two two</step>"}
    answer = run(npr, script | {"</step>\n<takeaway>\n": "so</takeaway>end"})
    steps = "<step>\n1: one</step>\n<step>\n2: two two</step>\n"
    assert answer.text == f"{root}\n{steps}<takeaway>\nso</takeaway>end"


def test_npr_does_not_fork_with_fewer_than_1024_tokens_left(npr, events):
    prompt = npr.prompt("q" * (4096 - 1024 - 10))
    root = "go\n" + _plans(1, 2) + "on"
    answer = run(npr, {"": root}, prompt=prompt, max_tokens=200)
    assert answer.text == root
    assert [e["reason"] for e in events("refused")] == ["no_room"]


def test_the_repetition_penalty_of_a_step_of_npr_counts_nothing_that_stands_before_it(npr, monkeypatch):
    from vllm.v1.sample import sampler

    counted = []
    apply = sampler.apply_all_penalties

    def noted(logits, prompt_token_ids, *penalties):
        vocab_size = logits.shape[-1]
        counted.extend(sorted(set(row) - {vocab_size}) for row in prompt_token_ids.tolist())
        counted.extend(map(list, penalties[-1]))
        return apply(logits, prompt_token_ids, *penalties)

    monkeypatch.setattr(sampler, "apply_all_penalties", noted)
    run(npr, {"": _plans(1), "<step>\n1:": "xyx</step>", "</step>\n<takeaway>\n": "y"})
    encode = npr.tokenizer.encode
    found = [ids for ids in counted if ids]
    wrote = [encode("xyx")[:n] for n in (1, 2, 3)]
    in_flight = [
        *encode("xyx"),
        encode("</step>")[0],
    ]  # with steps in flight one more is computed, for nothing
    assert found in (wrote, [*wrote, in_flight])


def test_npr_penalises_repetition_inside_steps_only(npr):
    seen = []
    start = npr.scheduler._starting.start

    def noted(live, thread, parent):
        start(live, thread, parent)
        seen.append(npr.scheduler.requests[thread.request_id].sampling_params.repetition_penalty)

    npr.scheduler._starting.start = noted
    run(npr, {"": _plans(1), "<step>\n1:": "x</step>", "</step>\n<takeaway>\n": "y"})
    del npr.scheduler._starting.start
    assert seen == [1.02]


# ---- ParaThinker -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parathinker(model_of):
    from tests.engine.harness import Engine

    return Engine(dialect_for("parathinker"), model_of("parathinker"))


def test_parathinker_forks_behind_the_prompt_and_the_first_path_to_end_cuts_the_others_off(parathinker):
    script = {"<think1>": "aaaaaaaaaaaa</think1>", "<think2>": "bbb</think2>", "<think3>": "ccccc</think3>"}
    summary = (
        "<summary>By analyzing multiple reasoning processes above, I concluded that: The final answer is"
    )
    answer = run(parathinker, script | {summary: " 7</summary>"})
    # the step in which the second path ends is the others' fourth, too
    assert answer.text == f"<think1>aaaa<think2>bbb</think2><think3>cccc{summary} 7"


def test_parathinker_goes_on_from_the_longest_path(parathinker):
    script = {f"<think{n}>": "x" * n + f"</think{n}>" for n in (1, 2, 3)}
    offsets = []
    begin = parathinker.scheduler._placing.start_stitched

    def noted(request, stitched, of_slots):
        ((_, offset),) = of_slots
        offsets.append((stitched.num_tokens, offset))
        begin(request, stitched, of_slots)

    parathinker.scheduler._placing.start_stitched = noted
    prompt = parathinker.prompt("q")
    run(parathinker, script, prompt=prompt, max_tokens=40)
    del parathinker.scheduler._placing.start_stitched
    # the first ends with its second token, when the others have two, too: three slots each
    assert offsets == [(len(prompt) + 9, len(prompt) + 3 - (len(prompt) + 9))]


def test_parathinkers_weights_are_refused_without_a_class_that_adds_its_embeddings(parathinker):
    from forkjoin_scheduler.errors import DialectError
    from forkjoin_scheduler.vllm_seam import compat

    with pytest.raises(DialectError, match=r"seg_embeddings.*LlamaForCausalLM has none"):
        compat.check_model(load("parathinker"), parathinker.scheduler.vllm_config.model_config)


# ---- ASPD --------------------------------------------------------------------------------------


def test_what_follows_branches_of_aspd_has_the_positions_of_a_text_in_a_row(tmp_path_factory):
    from tests.engine.harness import Engine

    engine = Engine(load("aspd"), with_tokens(tmp_path_factory.mktemp("aspd"), ASPD))
    root = "Two: <|title|>Cats<|/title|><|title|>Dogs<|/title|><|para|>"
    branches = {"<|branch|>Cats: ": "purr and sleep<|/branch|>", "<|branch|>Dogs: ": "bark<|/branch|>"}
    offsets = []
    begin = engine.scheduler._placing.start_stitched

    def noted(request, stitched, of_slots):
        offsets.append(of_slots)
        begin(request, stitched, of_slots)

    engine.scheduler._placing.start_stitched = noted
    answer = run(engine, {"": root, "<|/branch|><|/para|>\n": "That is all."} | branches)
    shown = "".join(header + text for header, text in branches.items())
    assert answer.text == f"{root}{shown}<|/para|>\nThat is all."
    assert offsets == [((0, 0),)]
    assert engine.snapshot() == engine.baseline


# ---- MedVerse ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def medverse(tmp_path_factory):
    from tests.engine.harness import Engine

    return Engine(load("medverse"), with_tokens(tmp_path_factory.mktemp("medverse"), MEDVERSE))


def _plan(*steps):
    outlines = (f"<Outline> Transient Step {n}: s{n}; Dependency: [{d}] </Outline>\n" for n, d in steps)
    return f"<Plan>\n{''.join(outlines)}</Plan>"


def _steps(*texts):
    return "\n".join(f"<Step> Transient Step {n}: s{n}\n{t}\n</Step>" for n, t in enumerate(texts, 1))


def test_a_step_of_medverse_starts_when_what_it_depends_on_has_been_joined(medverse, events):
    texts = ("a" * 9, "bb", "ccc", "d" * 8, "e")
    root = _plan((1, ""), (2, ""), (3, "1"), (4, "2"), (5, "3, 4"))
    script = {f" Transient Step {n}: s{n}\n": f"{t}\n</Step>" for n, t in enumerate(texts, 1)}
    medverse.steps.clear()
    answer = run(medverse, script | {"": root, "</Execution>\n<Conclusion>\n": "so</Conclusion>end"})
    shown = f"{root}\n<Execution>\n{_steps(*texts)}\n</Execution>\n<Conclusion>\nso</Conclusion>end"
    assert answer.text == shown
    (forked,) = events("forked")
    assert [t["number"] for t in forked["threads"]] == list("12345")
    assert forked["num_later"] == 3
    assert [e["threads"] for e in events("threads_started")] == [[2, 3], [4]]
    assert [e["index"] for e in events("thread_ended")] == [1, 0, 2, 3, 4]
    assert len(events("joined")) == 3
    assert medverse.snapshot() == medverse.baseline


# ---- APAR and HPD ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def apar(tmp_path_factory):
    from tests.engine.harness import Engine

    return Engine(load("apar"), with_tokens(tmp_path_factory.mktemp("apar"), APAR))


def test_apar_goes_on_while_its_threads_run_and_splices_them_in(apar):
    apar.steps.clear()
    script = {
        "": "1. one[SplitMask]\n\n2. two[SplitMask]\n\nend",
        "1. one[SplitMask][SplitSop]": ": first detail",
        "2. two[SplitMask][SplitSop]": ": second",
    }
    answer = run(apar, script)
    # the model leaves the line to the thread, which the answer breaks
    assert answer.text == (
        "1. one[SplitMask][SplitSop]\n: first detail\n\n2. two[SplitMask][SplitSop]\n: second\n\nend"
    )
    assert answer.finish_reason == "stop"
    together = [s for s in apar.steps if any("#" in i for i in s) and any("#" not in i for i in s)]
    assert len(together) > 10
    assert thread_prompts(apar)["0"] <= 2  # the trigger and [SplitSop]


def test_apars_threads_may_outlive_their_parent_and_fork_themselves(apar):
    script = {
        "": "a[SplitMask]z",
        "a[SplitMask][SplitSop]": "b[SplitMask]y" + "." * 30,
        "b[SplitMask][SplitSop]": "c" * 50,
    }
    answer = run(apar, script)
    inner = "b[SplitMask][SplitSop]" + "c" * 50 + "\n\ny" + "." * 30
    assert answer.text == f"a[SplitMask][SplitSop]{inner}\n\nz"
    assert apar.snapshot() == apar.baseline


@pytest.mark.parametrize("num_steps", range(3, 60, 6))
def test_an_abort_of_apar_ends_its_threads_even_when_their_parent_has_ended(apar, num_steps):
    script = {"": "a[SplitMask]z", "a[SplitMask][SplitSop]": "b" * 60}
    encode = apar.tokenizer.encode
    extra = {"script": [[encode(k), encode(v)] for k, v in script.items()], "eos": apar.eos}
    request_id = apar.add(apar.prompt("q"), apar.params(extra_args=extra))
    for _ in range(num_steps):
        apar.core.step()
    apar.core.abort_request([request_id])
    apar.drain()
    assert apar.snapshot() == apar.baseline


def test_a_stop_token_in_a_spliced_thread_ends_the_answer(apar):
    stop = apar.tokenizer.token_id("Z")
    script = {"": "a[SplitMask]" + "z" * 50, "a[SplitMask][SplitSop]": "bbbZ"}
    answer = run(apar, script, stop_token_ids=[stop])
    assert answer.text == "a[SplitMask][SplitSop]bbb"
    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)


def test_a_limit_in_a_spliced_thread_is_no_stop_though_the_request_itself_has_stopped(apar):
    stop = apar.tokenizer.token_id("Z")
    script = {"": "a[SplitMask]zZ", "a[SplitMask][SplitSop]": "b" * 50}
    answer = run(apar, script, stop_token_ids=[stop], max_tokens=20)
    assert answer.text == "a[SplitMask][SplitSop]" + "b" * 16 + "\n\nz"
    assert (answer.finish_reason, answer.stop_reason) == ("length", None)


@pytest.mark.parametrize(
    ("before", "thread", "behind", "shown", "shown_behind"),
    [
        ("1. a", "\nx", "\n\nb", "\nx", "\n\nb"),
        ("1. a", "x", "b", "\nx", "\n\nb"),
        ("1. a", "x", "\nb", "\nx", "\n\nb"),
        ("1. a", "\n\nx", "\n\n\nb", "\n\nx", "\n\n\nb"),
        ("a", "x", "b", "x", "\n\nb"),
        ("1. a", "", "", "", ""),
    ],
    ids=["as_trained", "none", "one_of_two", "more", "no_number", "nothing_written"],
)
def test_apars_answer_has_the_newlines_that_the_model_left_out_and_its_contexts_have_not(
    apar, before, thread, behind, shown, shown_behind
):
    fork, child = "[SplitMask]", "[SplitSop]"
    contexts = {"": f"{before}{fork}{behind}{fork}end", f"{before}{fork}{child}": thread}
    answer = run(apar, contexts | {f"{before}{fork}{behind}{fork}{child}": "y"})
    assert answer.text == f"{before}{fork}{child}{shown}{shown_behind or chr(10) * 2}{fork}{child}y\n\nend"


def test_apar_never_samples_its_child_token(apar):
    child = apar.tokenizer.token_id("[SplitSop]")
    wanted = {"logit_bias": {child: 100.0}, "max_tokens": 20}
    (plain,) = apar.run([apar.prompt("q")], apar.params(forkjoin={"enabled": False}, **wanted))
    assert plain.token_ids == [child] * 20
    script = {"[SplitSop]": None, "": "a[SplitMask]z"}
    encode = apar.tokenizer.encode
    extra = {"script": [[encode(k), v and encode(v)] for k, v in script.items()], "eos": apar.eos}
    (forked,) = apar.run([apar.prompt("q")], apar.params(extra_args=extra, **wanted))
    assert forked.text.startswith("a[SplitMask][SplitSop]")
    assert forked.token_ids.count(child) == 1  # the header of the thread
    (sequential,) = apar.run([apar.prompt("q")], apar.params(**wanted))
    assert sequential.token_ids.count(child) == sequential.text.count("[SplitMask]")


def test_apar_samples_no_two_forks_side_by_side(apar):
    fork = apar.tokenizer.token_id("[SplitMask]")
    params = apar.params(logit_bias={fork: 100.0}, max_tokens=20, forkjoin={"max_forks": 0})
    (answer,) = apar.run([apar.prompt("q")], params)
    assert [t == fork for t in answer.token_ids] == [True, False] * 10


def test_hpds_threads_see_child_in_the_place_of_fork(tmp_path):
    from tests.engine.harness import Engine

    engine = Engine(load("hpd"), with_tokens(tmp_path, HPD))
    prompts = []
    start = engine.scheduler._starting.start

    def noted(live, thread, parent):
        start(live, thread, parent)
        request = engine.scheduler.requests[thread.request_id]
        prompts.append(engine.tokenizer.decode(list(request.prompt_token_ids)))

    engine.scheduler._starting.start = noted
    script = {"": "title [1]<FORK>box [2]<FORK>.", "title [1]<CHILD>": "Hello", "box [2]<CHILD>": "World"}
    answer = run(engine, script)
    assert [p.rpartition("<|assistant|>")[2] for p in prompts] == [
        "title [1]<CHILD>",
        "title [1]<FORK>box [2]<CHILD>",
    ]
    assert answer.text == "title [1]<FORK><CHILD>Hellobox [2]<FORK><CHILD>World."


# ---- AsyncThink --------------------------------------------------------------------------------


def _asyncthink():
    fields = load("asyncthink").model_dump()
    fields["thread"]["header"] = "[work]{message}[go]"
    return Dialect.model_validate(fields)


@pytest.mark.parametrize("thinking", [2, 80], ids=["done_before_asked", "asked_before_done"])
def test_asyncthink_goes_on_and_gets_a_result_where_it_asks_for_it(speak, thinking):
    engine = speak(_asyncthink())
    root = "<FORK-1>add 1 and 2</FORK-1> meanwhile, <JOIN-1>"
    script = {
        "": root,
        "[work]add 1 and 2[go]": "h" + "m" * thinking + "<RETURN>3</RETURN>",
        "<JOIN-1>3</JOIN-1>": " so 3",
    }
    engine.steps.clear()
    answer = run(engine, script)
    assert answer.text == f"{root}3</JOIN-1> so 3"
    first = next(s for s in engine.steps if any("#" in i for i in s))
    assert any("#" not in i for i in first)


def test_two_workers_run_side_by_side_and_return_in_the_order_asked(speak):
    engine = speak(_asyncthink())
    root = "<FORK-1>a</FORK-1><FORK-2>b</FORK-2><JOIN-2>"
    script = {
        "": root,
        "[work]a[go]": "<RETURN>A</RETURN>",
        "[work]b[go]": "." * 20 + "<RETURN>B</RETURN>",
        "<JOIN-2>B</JOIN-2>": "<JOIN-1>",
        "<JOIN-1>A</JOIN-1>": "end",
    }
    assert run(engine, script).text == f"{root}B</JOIN-2><JOIN-1>A</JOIN-1>end"


# ---- APR ---------------------------------------------------------------------------------------

CALL = call((0, 1), (1, 2))
FOUND = "Exploring Operation: 4+7=11\n11,11 equal: Goal Reached"


def test_apr_searches_from_the_nodes_that_it_names_and_gets_what_they_found_in_place_of_the_call(speak):
    engine = speak(load("apr"))
    child = "Moving to Node #{}\nCurrent State: 11:[{}], Operations: [{}]"
    one, two = child.format(1, "4, 7", "'3+4=7'"), child.format(2, "4, 1", "'4-3=1'")
    clean = f"{one}\n{FOUND}"
    block = (
        f"<Sub Searches>\n<Goal Reached in Sub Search 0 at level 1 at Node #1>\n{clean}\n"
        "<No Solution in Sub Search 1 at level 1 at Node #2>\n<End Sub Searches>\n"
    )
    script = {
        "<|assistant|>": TRACE + CALL,
        one: f"\ntrying\n11,11 equal: Goal Reached\n{clean}",
        two: "\nNo solution found.\n",
        "<End Sub Searches>\n": "11,11 equal: Goal Reached\n",
    }
    contexts = []
    resume = engine.scheduler._resuming.resume

    def noted(live, effect):
        resume(live, effect)
        request = engine.scheduler.requests[effect.branch.request_id]
        contexts.append(
            engine.tokenizer.decode(list(request.prompt_token_ids)).rpartition("<|assistant|>")[2]
        )

    engine.scheduler._resuming.resume = noted
    answer = run(engine, script)
    del engine.scheduler._resuming.resume
    assert contexts == [TRACE + block]
    assert answer.text == TRACE + CALL + block + "11,11 equal: Goal Reached\n"


def test_a_turn_of_apr_without_a_call_ends_as_it_would(speak):
    engine = speak(load("apr"))
    answer = run(engine, {"<|assistant|>": TRACE})
    assert (answer.text, answer.finish_reason) == (TRACE, "stop")


SWAPPED = {"<|assistant|>": f"{TRACE}<Sub Searches>", "<Calling Sub Searches>": None}


def test_behind_a_swap_apr_decodes_as_behind_the_swapped_text(speak):
    engine = speak(load("apr"))
    answer = run(engine, SWAPPED, max_tokens=300)
    behind = answer.text.removeprefix(f"{TRACE}<Sub Searches><Calling Sub Searches>")
    context = [*engine.prompt("q"), *engine.tokenizer.encode(f"{TRACE}<Calling Sub Searches>")]
    num_left = 300 - len(engine.tokenizer.encode(f"{TRACE}<Sub Searches>"))
    plain = engine.params(forkjoin={"enabled": False}, max_tokens=num_left)
    (expected,) = engine.run([context], plain)
    assert len(behind) > 5
    assert behind == expected.text
    # and again, now that vLLM may find what it has kept of the first
    assert run(engine, SWAPPED, max_tokens=300) == answer


@pytest.mark.parametrize("num_more", range(4))
def test_an_abort_around_a_swap_leaves_nothing(speak, num_more):
    engine = speak(load("apr"))
    encode = engine.tokenizer.encode
    extra = {"script": [[encode(k), v and encode(v)] for k, v in SWAPPED.items()], "eos": engine.eos}
    request_id = engine.add(engine.prompt("q"), engine.params(extra_args=extra))
    for _ in range(len(encode(f"{TRACE}<Sub Searches>")) - 1 + num_more):
        engine.core.step()
    engine.core.abort_request([request_id])


def test_where_a_swap_finds_no_room_the_text_stays(speak, events):
    engine = speak(load("apr"))
    own = len(engine.tokenizer.encode(f"{TRACE}<Sub Searches>"))
    prompt = engine.prompt("q" * (4096 - own - 1 - len(engine.prompt("")) - 4))
    answer = run(engine, {"<|assistant|>": f"{TRACE}<Sub Searches>and on"}, prompt=prompt)
    assert answer.text == f"{TRACE}<Sub Searches>and o"
    assert (answer.finish_reason, events("refused")) == ("length", [])


# ---- skeleton ----------------------------------------------------------------------------------


def test_skeleton_expands_every_point_and_the_answer_is_the_outline_and_the_points(speak):
    engine = speak(load("skeleton"))
    outline = "1. First\n2. Second thing"
    script = {"<|assistant|>": outline, "1. First: ": "aaa.", "2. Second thing: ": "bb."}
    engine.steps.clear()
    answer = run(engine, script)
    assert answer.text == f"{outline}\n\n1. First: aaa.\n\n2. Second thing: bb."
    assert answer.finish_reason == "stop"
    assert max(sum("#" in i for i in s) for s in engine.steps) == 2


# ---- what requests ask for ---------------------------------------------------------------------


def test_named_branches_run_as_threads_and_the_model_closes_over_all_of_them(text_engine):
    branches = [{"title": "pro", "text": "Pro:"}, {"text": "\nCon:"}]
    script = {"Pro:": " yes", "Con:": " no, never", "So:": " maybe"}
    options = {"forkjoin": {"branches": branches, "closing": "\nSo:"}}
    text_engine.steps.clear()
    answer = run(text_engine, script, **options)
    assert answer.text == "Pro: yes\nCon: no, never\nSo: maybe"
    assert thread_prompts(text_engine)["0"] == len("Pro:")


def test_without_a_closing_the_answer_ends_with_the_branches(text_engine):
    answer = run(text_engine, {"A:": "a", "B:": "b"}, forkjoin={"branches": [{"text": "A:"}, {"text": "B:"}]})
    assert (answer.text, answer.finish_reason) == ("A:aB:b", "stop")


def test_the_best_of_n_is_what_most_threads_answer(text_engine, events):
    prompt = text_engine.prompt("a=48*36")
    options = {"temperature": 1.0, "seed": 3, "max_tokens": 1500}
    vote = {"best_of": 5, "vote": r"a=(?P<result>[0-9]+) \("}
    answer = text_engine.run([prompt], text_engine.params(forkjoin=vote, **options))[0]
    assert "a=1728 (8)" in answer.text
    assert answer.finish_reason == "stop"
    assert [e["result"] for e in events("voted")] == ["1728"]


def test_a_vote_that_nobody_casts_takes_the_first_thread(text_engine, events):
    script = {"<|assistant|>": "nothing to see"}
    answer = run(text_engine, script, forkjoin={"best_of": 3, "vote": "[0-9]+"})
    assert answer.text == "nothing to see"
    assert [(e["index"], e["result"]) for e in events("voted")] == [(0, None)]


def test_each_thread_of_a_vote_has_the_tokens_and_the_stop_tokens_of_an_answer(text_engine, events):
    stop = text_engine.tokenizer.token_id("Z")
    vote = {"best_of": 3, "vote": "[0-9]+", "include_threads": True}
    answer = run(text_engine, {"<|assistant|>": "x7" + "." * 50}, forkjoin=vote, max_tokens=20)
    assert (answer.text, answer.finish_reason) == ("x7" + "." * 18, "length")
    assert [e["num_tokens"] for e in events("thread_ended")] == [20] * 3
    answer = run(text_engine, {"<|assistant|>": "x7Zyy"}, forkjoin=vote, stop_token_ids=[stop])
    assert (answer.text, answer.finish_reason) == ("x7", "stop")
    assert events("voted")[-1]["result"] == "7"


def test_fifty_branches_of_one_prompt_compute_it_once(text_engine):
    prompt = text_engine.prompt("q" * 500)
    branches = [{"text": f"{n}:"} for n in range(50)]
    text_engine.steps.clear()
    run(text_engine, {":": "x"}, prompt=prompt, forkjoin={"branches": branches})
    assert max(thread_prompts(text_engine).values()) == len("10:")


# ---- all of them -------------------------------------------------------------------------------


def test_a_thread_may_end_by_any_of_the_models_end_of_sequence_tokens(tmp_path):
    from tests.engine.harness import Engine

    second = 57  # "Z"
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, second]}))
    engine = Engine(generation_config=str(tmp_path))
    assert engine.tokenizer.encode("Z") == [second]
    two = "<Outlines><Outline>1: x</Outline><Outline>2: y</Outline></Outlines>"
    params = engine.scripted(two, {"1": "aZ", "2": "b</Thread>"})
    (answer,) = engine.run([engine.prompt("q")], params)
    assert answer.text == f"{two}\n<Thread>\n1:a\n</Thread><Thread>\n2:b</Thread>\n</Parallel>"
    assert (answer.finish_reason, answer.stop_reason) == ("stop", None)
