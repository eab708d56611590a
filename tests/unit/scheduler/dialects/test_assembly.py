"""APR's rule, against traces worked out by hand after the published client."""

from __future__ import annotations

import pytest

from forkjoin_scheduler.dialects.assembly import RULES, countdown_node

ROOT = "Moving to Node #0\nCurrent State: 39:[36, 50, 25, 2], Operations: []\n"
#: Node 0,1 is shown, 0,1,2 and 0,0 are only generated, 0,0,3 from a node that is not shown.
TRACE = (
    f"{ROOT}"
    "Exploring Operation: 36-25=11, Resulting Numbers: [50, 2, 11]\n"
    "Generated Node #0,0: 39:[36, 2, 2] Operation: 50/25=2\n"
    "Generated Node #0,1: 39:[50, 2, 11] Operation: 36-25=11\n"
    "Generated Node #0,0,3: 39:[36, 4] Operation: 2+2=4\n"
    "Moving to Node #0,1\n"
    "Current State: 39:[50, 2, 11], Operations: ['36-25=11']\n"
    "Generated Node #0,1,2: 39:[11, 25] Operation: 50/2=25\n"
    "Generated Node #0,1,2,0: 39:[36] Operation: 11+25=36\n"
)


def _child(node: str, state: str, operations: str) -> str:
    return f"Moving to Node #{node}\nCurrent State: 39:{state}, Operations: {operations}"


@pytest.mark.parametrize(
    ("node", "state", "operations"),
    [
        ("0", "[36, 50, 25, 2]", "[]"),
        ("0,1", "[50, 2, 11]", "['36-25=11']"),
        ("0,0", "[36, 2, 2]", "['50/25=2']"),
        ("0,1,2", "[11, 25]", "['36-25=11', '50/2=25']"),
        ("0,0,3", "[36, 4]", "['50/25=2', '2+2=4']"),
        ("0,1,2,0", "[36]", "['36-25=11', '50/2=25', '11+25=36']"),
    ],
)
def test_a_child_begins_with_its_nodes_state_and_all_operations_that_led_there(node, state, operations):
    assert countdown_node(TRACE)(node) == _child(node, state, operations)


def test_nested_nodes_under_a_root_that_is_not_called_0():
    trace = (
        "Moving to Node #1\nCurrent State: 39:[36, 25, 2], Operations: []\n"
        "Generated Node #1,1: 39:[11, 2] Operation: 36-25=11\n"
        "Generated Node #1,1,2: 39:[13] Operation: 11+2=13\n"
    )
    assert countdown_node(trace)("1,1,2") == _child("1,1,2", "[13]", "['36-25=11', '11+2=13']")


def test_what_is_shown_of_a_node_wins_over_what_it_was_generated_from():
    moved = f"{TRACE}Moving to Node #0,1,2\nCurrent State: 39:[7], Operations: ['x']\n"
    assert countdown_node(moved)("0,1,2") == _child("0,1,2", "[7]", "['x']")
    assert countdown_node(moved)("0,1,2,0") == _child("0,1,2,0", "[36]", "['x', '11+25=36']")


@pytest.mark.parametrize("node", ["0,9", "1", "0,1,2,0,0", "", "x", "0,", "00"])
def test_of_a_node_that_the_trace_does_not_know_nothing_is_made(node):
    assert countdown_node(TRACE)(node) is None


@pytest.mark.parametrize("text", ["", "Generated Node #0,9", "Moving to Node #0,9\nCurrent State: none"])
def test_of_a_broken_trace_nothing_is_made(text):
    assert countdown_node(text)("0,9") is None


def test_a_call_alone_is_no_state():
    call = "<Start Sub Search 0 at level 1> Moving to Node #0,9\n<End Calling Sub Searches>\n"
    assert countdown_node(TRACE + call)("0,9") is None


def test_space_round_a_message_does_not_count():
    assert countdown_node(TRACE)(" 0,1\r") == countdown_node(TRACE)("0,1")


@pytest.mark.parametrize(
    ("before", "given"),
    [
        ("Token Budget: 512 ", "Token Budget: 512 "),
        ("<s>Token Budget: 512 ", "Token Budget: 512 "),
        ("<s><s>Token Budget: 512 ", "Token Budget: 512 "),
        ("Sub Call Budget: 10 ", ""),
        ("<s>Sub Call Budget: 10 ", ""),
        ("<s>", ""),
    ],
)
def test_a_token_budget_goes_to_each_child_and_a_budget_of_calls_does_not(before, given):
    assert countdown_node(before + TRACE)("0,1") == given + _child("0,1", "[50, 2, 11]", "['36-25=11']")


def test_a_budget_further_on_in_the_trace_is_none():
    assert countdown_node(f"{ROOT}Token Budget: 512 {TRACE}")("0").startswith("Moving")


def test_targets_and_results_may_be_negative_and_lists_empty():
    trace = "Moving to Node #0\nCurrent State: -3:[], Operations: []\n"
    assert countdown_node(trace)("0") == "Moving to Node #0\nCurrent State: -3:[], Operations: []"


def test_a_node_that_is_generated_twice_is_the_first_as_in_the_published_client():
    again = f"{TRACE}Generated Node #0,0: 39:[1] Operation: 9-8=1\n"
    assert countdown_node(again)("0,0") == _child("0,0", "[36, 2, 2]", "['50/25=2']")


def test_of_a_node_whose_parent_is_unknown_nothing_is_made_as_in_the_published_client():
    assert countdown_node(f"{TRACE}Generated Node #0,7,1: 39:[1] Operation: 9-8=1\n")("0,7,1") is None


def test_the_rules_are_those_that_a_dialect_may_name(make_dialect):
    assert list(RULES) == ["countdown_node"]
    for name in RULES:
        assert make_dialect(thread={"header": "x", "resolve": name}).thread.resolve == name
    with pytest.raises(ValueError, match="'countdown_node'"):
        make_dialect(thread={"header": "x", "resolve": "another"})
