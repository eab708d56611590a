"""Which dialects fit a model, by what its files say: each alone, those that share tags, a user's own."""

from __future__ import annotations

import pytest

from forkjoin_scheduler.dialects.files import builtin_names, load, parse
from forkjoin_scheduler.dialects.fitting import ModelFacts, candidates_of_model, fitting, listed, marks

BUILT_IN = [load(name) for name in builtin_names()]
OF_TOKENS = [d for d in BUILT_IN if d.tags_are == "tokens" and d.variant_of is None]
OWN = """
name: own
source: ours
trigger: "[GO]"
outline: {opens: "<Outlines>", pattern: '(?P<number>[0-9]+)'}
thread: {header: "<Thread>", end: "</Thread>"}
"""


def names(facts, dialects=BUILT_IN):
    return [candidate.dialect.name for candidate in fitting(candidates_of_model(dialects, facts))]


def seen(name, facts, dialects=BUILT_IN):
    (candidate,) = [c for c in candidates_of_model(dialects, facts) if c.dialect.name == name]
    return candidate


def tokens_of(*dialects, more=()):
    return ModelFacts(added_tokens=frozenset(more).union(*(d.control_tokens for d in dialects)))


@pytest.mark.parametrize("dialect", OF_TOKENS, ids=lambda dialect: dialect.name)
def test_each_built_in_dialect_alone_fits_the_tokenizer_that_has_its_tags(dialect):
    assert names(tokens_of(dialect, more=("<think>", "</think>"))) == [dialect.name]


@pytest.mark.parametrize("dialect", OF_TOKENS, ids=lambda dialect: dialect.name)
def test_one_tag_less_and_it_does_not_fit_and_the_tag_is_named(dialect):
    for token in dialect.control_tokens:
        facts = ModelFacts(added_tokens=frozenset(dialect.control_tokens) - {token})
        assert dialect.name not in names(facts)
        assert seen(dialect.name, facts).speaks_against == (f"no added tokens: {token}",)


def test_a_variant_is_recognised_as_the_dialect_that_it_is_one_of():
    threadweaver = load("threadweaver")
    variant = threadweaver.model_copy(update={"name": "other", "variant_of": "threadweaver"})
    assert names(tokens_of(threadweaver), [variant, threadweaver]) == ["threadweaver"]
    without = threadweaver.model_copy(update={"name": "other"})
    assert names(tokens_of(threadweaver), [without, threadweaver]) == ["other", "threadweaver"]


def test_a_dialect_that_explains_fewer_of_the_tags_gives_way():
    more = parse(OWN.replace("name: own", 'name: more\ntags: ["<More>"]'), "more")
    own = parse(OWN, "own")
    assert names(tokens_of(own), [own, more]) == ["own"]
    assert names(tokens_of(own, more), [own, more]) == ["more"]


def test_tags_of_two_dialects_of_which_neither_has_all_fit_both():
    facts = tokens_of(load("threadweaver"), load("multiverse"))
    assert names(facts) == ["multiverse", "threadweaver"]


def test_a_numbered_tag_is_explained_by_the_dialect_that_numbers_it_as_far_as_it_may_go():
    """A tokenizer with more paths than the built-in width is still ParaThinker's, not one of six thoughts."""
    six = parse(
        'name: six\nsource: ours\nfork_at: prompt\nwidth: 6\nthread: {header: "<think{n}>", end: "</think{n}>"}',
        "six",
    )
    more = [f"<think{n}>" for n in range(5, 9)] + [f"</think{n}>" for n in range(5, 9)]
    assert names(tokens_of(load("parathinker"), more=more), [*BUILT_IN, six]) == ["parathinker"]
    assert names(tokens_of(six), [*BUILT_IN, six]) == ["six"]


def test_a_dialect_whose_tags_are_text_fits_only_what_is_called_like_its_models():
    facts = ModelFacts(names=("llama-apr_cond10_grpo", "LlamaForCausalLM"), added_tokens=frozenset({"<s>"}))
    assert names(facts) == ["apr"]
    assert seen("apr", facts).speaks_for == ("it is called llama-apr_cond10_grpo",)
    assert names(ModelFacts(names=("april-llama", "LlamaForCausalLM"))) == []


def test_a_name_that_the_tokenizer_contradicts_makes_nothing_fit():
    facts = ModelFacts(names=("Multiverse-32B",), added_tokens=tokens_of(load("npr")).added_tokens)
    assert names(facts) == ["npr"]
    assert seen("multiverse", facts).speaks_for == ("it is called Multiverse-32B",)
    assert seen("multiverse", facts).speaks_against


def test_what_a_model_is_called_decides_between_two_with_equal_tags():
    threadweaver = load("threadweaver")
    other = threadweaver.model_copy(update={"name": "other", "model_names": "otherweaver"})
    facts = ModelFacts(("OtherWeaver-8B",), tokens_of(threadweaver).added_tokens)
    assert names(facts, [threadweaver, other]) == ["other"]


def test_a_chat_template_with_the_tags_speaks_for_the_dialect():
    npr = load("npr")
    facts = ModelFacts((), tokens_of(npr).added_tokens, "{{ messages }} write <plan>1: and </guideline>")
    assert seen("npr", facts).speaks_for[1] == "the chat template has </guideline>, <plan>"
    facts = ModelFacts(chat_template="Give what you find between <RETURN> and </RETURN>.")
    assert names(facts) == ["asyncthink"]


def test_a_dialect_that_speaks_in_turns_needs_a_chat_template():
    facts = ModelFacts(names=("AsyncThink-4B",))
    assert names(facts) == []
    assert seen("asyncthink", facts).speaks_against == ("it speaks in turns, and there is no chat template",)


def test_a_plain_model_fits_none_not_even_those_that_any_tokenizer_writes():
    facts = ModelFacts(("Qwen3-8B", "Qwen3ForCausalLM"), frozenset({"<think>", "</think>"}), "{{ messages }}")
    assert names(facts) == []
    assert [d.name for d in BUILT_IN if not marks(d)] == ["explicit", "pacore", "skeleton", "ssft"]


def test_a_dialect_whose_tags_stand_in_no_file_is_known_by_the_models_name():
    assert names(ModelFacts(("stepfun-ai/PaCoRe-8B", "Qwen3ForCausalLM"))) == ["pacore"]
    assert names(ModelFacts(("shengjia-toronto/ssft-32B-N6", "Qwen2ForCausalLM"))) == ["ssft"]


def test_a_list_of_tags_is_short():
    assert listed([f"<{n}>" for n in range(8)]) == "<0>, <1>, <2>, <3>, <4>, <5> and 2 more"
