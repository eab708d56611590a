from __future__ import annotations

import json

import pytest

from forkjoin_bench.inputs.script import Compiler, digest, find, write_script
from forkjoin_bench.inputs.traces import Family, Fork, Thread
from tests.unit.conftest import ByteTokenizer

TEXT = (
    "x<Parallel>\n<Outlines>\n<Outline>1:a</Outline>\n<Outline>2:b</Outline>\n</Outlines>"
    "\n<Thread>\n1:pp</Thread><Thread>\n2:qqqq</Thread>\n</Parallel>yz"
)


def test_the_transcript_is_threadweavers(family):
    assert family.text == TEXT


def test_each_context_goes_on_as_the_transcript_does(family, tokenizer):
    kinds = [(c.kind, tokenizer.decode(list(c.continuation))) for c in family.contexts]
    assert sorted(kinds) == [
        ("join", "</Parallel>yz"),
        ("prompt", family.text),
        ("thread", "pp</Thread>"),
        ("thread", "qqqq</Thread>"),
    ]


def test_the_longest_path_has_the_longest_thread_of_each_fork(family, tokenizer):
    short = len(tokenizer.encode("<Thread>\n1:pp</Thread>"))
    # each thread's newline counts, which the second has not in the transcript
    assert family.num_critical == len(family.token_ids) - short - 1


def test_the_longest_path_goes_through_forks_of_threads(tokenizer):
    inner = Fork((Thread("1.1", "c", ("k" * 30,)), Thread("1.2", "d", ("k",))))
    outer = Fork((Thread("1", "a", (inner,)), Thread("2", "b", ("m" * 50,))))
    compiled = Compiler(tokenizer).compile(Family("f", "ask:", ("x", outer)))
    short = "<Thread>\n1.2:k</Thread>", f"<Thread>\n2:{'m' * 50}</Thread>"
    critical = len(compiled.token_ids) - sum(len(tokenizer.encode(thread)) for thread in short)
    assert critical - len(short) <= compiled.num_critical <= critical


def test_contexts_are_known_by_the_digest_of_their_tokens(family, tokenizer):
    opening = "ask:" + family.text.partition("\n<Thread>")[0]
    (first, second) = [c for c in family.contexts if c.kind == "thread"]
    assert first.digest == digest(tokenizer.encode(f"{opening}\n<Thread>\n1:"))
    assert second.digest == digest(tokenizer.encode(f"{opening}\n<Thread>\n2:"))
    assert first.fork_len == len(tokenizer.encode(opening))


def test_a_text_that_does_not_give_its_tokens_back_is_refused():
    class Merging(ByteTokenizer):
        def encode(self, text: str) -> list[int]:
            return [1] if text == "ab" else super().encode(text)

    with pytest.raises(ValueError, match="f: its text has other tokens"):
        Compiler(Merging([])).compile(Family("f", "a", ("b",)))


def test_the_ideal_is_the_prefix_and_the_sum_of_the_threads(family):
    (fork,) = family.forks
    assert family.ideal_blocks(1) == max(
        fork.fork_len + sum(fork.thread_tokens), len(family.prompt_ids) + len(family.token_ids)
    )


def test_in_blocks_each_thread_has_the_partial_tail_of_the_prefix(family):
    (fork,) = family.forks
    assert fork.fork_len % 16 != 0
    tail = fork.fork_len % 16
    needed = fork.fork_len // 16 + sum(-(-(tail + n) // 16) for n in fork.thread_tokens)
    assert family.ideal_blocks(16) == needed


def test_threads_within_a_thread_count_beside_its_siblings(compile_):
    inner = Fork((Thread("1.1", "a", ("p" * 50,)), Thread("1.2", "b", ("q" * 70,))))
    outer = Fork((Thread("1", "a", ("r", inner)), Thread("2", "b", ("s" * 40,))))
    nested = compile_(Family("nested", "ask:", (outer,)))
    first, second = nested.forks
    expected = second.fork_len + sum(second.thread_tokens) + first.thread_tokens[1]
    assert nested.ideal_blocks(1) == max(expected, len(nested.prompt_ids) + len(nested.token_ids))


def test_the_script_has_every_context(family, tmp_path):
    write_script(tmp_path / "script.json", [family], 7)
    script = json.loads((tmp_path / "script.json").read_text())
    assert script["eos"] == 7
    assert script["continuations"] == {c.digest: list(c.continuation) for c in family.contexts}


def test_a_context_that_goes_on_in_two_ways_is_refused(compile_, tmp_path):
    both = [compile_(Family(name, "ask:", (name,))) for name in "fg"]
    with pytest.raises(ValueError, match="g: a prompt of another family has the same tokens"):
        write_script(tmp_path / "script.json", both, 7)


def test_a_prompt_of_several_samples_goes_on_as_the_one_that_the_seed_numbers(samples, tmp_path, tokenizer):
    write_script(tmp_path / "script.json", samples, 7)
    script = json.loads((tmp_path / "script.json").read_text())["continuations"]
    prompt = digest(tokenizer.encode("ask:"))
    for number, sample in enumerate(samples):
        assert find(script, prompt, number) == sample.token_ids
    assert find(script, prompt, 3) is find(script, prompt, None) is None


def test_the_other_contexts_of_a_sample_are_known_whatever_the_seed(samples):
    known = {c.digest: c for sample in samples for c in sample.contexts}
    for context in known.values():
        if context.kind != "prompt":
            assert find(known, context.digest, 1) is find(known, context.digest, None) is context


def test_a_sample_is_as_long_as_the_family_it_is_a_sample_of(family, samples):
    for sample in samples:
        assert (sample.num_critical, sample.ideal_blocks(16)) == (
            family.num_critical,
            family.ideal_blocks(16),
        )
