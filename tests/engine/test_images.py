"""Forks after prompts with images: a small random Qwen2.5-VL, against plain requests with the same images."""

from __future__ import annotations

import pytest

from tests.engine.processes import case_of

pytestmark = pytest.mark.engine

OUTLINES = "<Parallel><Outlines><Outline>1: x</Outline><Outline>2: y</Outline></Outlines>"


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    from tests.engine.harness import Engine
    from tests.engine.image_model import do_without_torchvision, image_model

    with pytest.MonkeyPatch.context() as patch:
        do_without_torchvision(patch)
        return Engine(
            model=image_model(tmp_path_factory.mktemp("images")), max_num_batched_tokens=256,
            limit_mm_per_prompt={"image": 1, "video": 0}, skip_mm_profiling=True, mm_processor_cache_gb=0,
        )  # fmt: skip


@pytest.fixture(autouse=True)
def all_comes_back(engine):
    yield
    assert engine.snapshot() == engine.baseline


def plain(engine, prompt, num_tokens):
    """What the model writes after ``prompt`` without forks."""
    off = engine.params(forkjoin={"enabled": False}, max_tokens=num_tokens, ignore_eos=True)
    return engine.run([prompt], off)[0].token_ids


def forking(engine):
    """Parameters under which the model forks into two threads that are told it, and goes on as it likes."""
    threads = {"1": "ab" * 30 + "</Thread>", "2": "c1" * 10 + "</Thread>"}
    return engine.scripted(OUTLINES, threads, None, max_tokens=240, ignore_eos=True)


def check(engine, text, image, answer):
    """The answer stands after its image, to its end as one plain request writes it."""
    from tests.engine.image_model import with_image

    joined = engine.tokenizer.encode("</Thread>\n")
    ids = answer.token_ids
    end = next(n for n in range(len(ids), 0, -1) if ids[n - len(joined) : n] == joined)
    assert len(ids) - end > 60
    assert ids[end:] == plain(engine, with_image(engine, text, image, ids[:end]), len(ids) - end)
    return ids[:end]


def test_a_joined_context_with_an_image_goes_on_as_a_plain_one(engine):
    from tests.engine.image_model import with_image

    for image in (1, 2):
        (answer,) = engine.run([with_image(engine, "q", image)], forking(engine))
        told = check(engine, "q", image, answer)
        assert answer.text.count("<Thread>") == 2
    # of another image the model writes something else: the comparison would see it
    other = with_image(engine, "q", 1, told)
    assert plain(engine, other, 60) != answer.token_ids[len(told) : len(told) + 60]


def test_threads_share_the_images_kv_and_encode_it_once(engine):
    from tests.engine.image_model import with_image

    encoded, schedule = [], engine.scheduler.schedule

    def recorded(*args, **kwargs):
        output = schedule(*args, **kwargs)
        encoded.append(dict(output.scheduled_encoder_inputs))
        return output

    engine.steps.clear()
    engine.scheduler.schedule = recorded
    engine.run([with_image(engine, "never seen", 3)], forking(engine))
    engine.scheduler.schedule = schedule
    assert [list(inputs.values()) for inputs in encoded if inputs] == [[[0]]]
    first = next(s for s in engine.steps if any("#" in i for i in s))
    assert list(first.values()) == [engine.num_late + len(engine.tokenizer.encode("\n<Thread>\n1:"))] * 2


def test_branches_after_an_image_are_what_plain_requests_write(engine):
    from tests.engine.image_model import with_image

    headers = [engine.tokenizer.encode(text) for text in ("1:a", "2:bb")]
    prompt = with_image(engine, "q", 4)
    asked = {"branches": [{"text": "1:a"}, {"text": "2:bb"}], "closing": "\nso", "max_tokens_per_thread": 20}
    params = engine.params(forkjoin=asked, max_tokens=60, ignore_eos=True)
    (answer,) = engine.run([prompt], params)
    bodies = [plain(engine, with_image(engine, "q", 4, header), 20) for header in headers]
    joined = [t for h, b in zip(headers, bodies, strict=True) for t in (*h, *b)]
    joined += engine.tokenizer.encode("\nso")
    assert answer.token_ids[: len(joined)] == joined
    behind = answer.token_ids[len(joined) :]
    assert len(behind) == 20
    assert behind == plain(engine, with_image(engine, "q", 4, joined), 20)


def test_a_family_that_loses_its_kv_at_any_step_computes_it_again_with_its_image(engine):
    from tests.engine.image_model import with_image

    for num_steps in (1, 30, 60, 100, 140, 170):
        request_id = engine.add(with_image(engine, "lost", 5), forking(engine))
        for _ in range(num_steps):
            engine.step()
        assert engine.scheduler.requests
        engine.scheduler.reset_prefix_cache(reset_running_requests=True)
        engine.core.engine_core.engine_core.reset_encoder_cache()
        check(engine, "lost", 5, engine.drain()[request_id])


def test_a_thread_that_sees_its_header_only_has_no_image(engine):
    from forkjoin_scheduler.vllm_seam.starts.requests import new_request
    from tests.engine.image_model import with_image

    request_id = engine.add(with_image(engine, "q", 6), forking(engine))
    (root,) = engine.scheduler.requests.values()
    params = engine.params()
    ids = list(root._all_token_ids)
    assert new_request(root, "sees all", [*ids, 1], params).mm_features == root.mm_features != []
    assert new_request(root, "sees its header", ids[-5:], params).mm_features == []
    assert new_request(root, "as long", [1] * len(ids), params).mm_features == []
    engine.core.abort_request([request_id])
    engine.drain()


def test_forks_after_images_are_exact_on_the_v2_runner_with_steps_in_flight():
    case = case_of("tests.engine.images_case", timeout_s=600)
    assert case.pop("max_delta") <= 1e-4
    assert case == {
        "runner": ["v2"], "async": True, "branches": True, "others": 0, "again": True, "returned": True,
    }  # fmt: skip
