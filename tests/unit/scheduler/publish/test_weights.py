from __future__ import annotations

from forkjoin_scheduler.publish.weights import FIRST, Weights


def test_weights_that_nobody_has_named_have_a_version_of_their_own():
    weights = Weights()
    assert [weights.version, weights.load(), weights.load()] == [FIRST, "default+1", "default+2"]
    assert weights.version == "default+2"


def test_the_name_after_a_load_is_of_what_was_loaded():
    weights = Weights()
    weights.load()
    assert not weights.name("a")
    assert weights.version == "a"
    assert weights.load() == "a+1"
    assert not weights.name("a"), "by the old name, too"
    assert weights.version == "a"


def test_a_name_without_a_load_tells_of_others_unless_it_is_the_same():
    weights = Weights()
    assert weights.name("a")
    assert not weights.name("a")
    assert weights.name("b")
