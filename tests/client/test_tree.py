"""The tree of an answer, on trees that are worked out by hand."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

from forkjoin import JoinedThread, Segment, Tree, read_jsonl, write_parquet

REQUEST, LONG, SHORT = -1, 0, 1


def stitched():
    """A request forks after 10 11 into 20 21 and, of the header 30 31, 31 32; the join skips 30."""
    return Tree(
        [
            Segment(REQUEST, [10, 11], 1, 0, logprobs=[None, -0.5], seed=7),
            Segment(LONG, [20, 21, 22], 1, 2, 0, 2, forked_by=0, title="long", finish_reason="eos"),
            Segment(SHORT, [30, 31, 32], 2, 2, 0, 2, forked_by=0, finish_reason="stop"),
            Segment(
                REQUEST,
                [40, 41],
                1,
                5,
                0,
                2,
                joined=[JoinedThread(1, 2), JoinedThread(2, 3, 1)],
                finish_reason="stop",
            ),
        ],
        [11, 20, 21, 31, 32, 40, 41],
    )


def nested():
    """A thread forks in its turn; each join is prefilled."""
    return Tree(
        [
            Segment(REQUEST, [1, 2], 1, 0),
            Segment(0, [3, 4], 1, 2, 0, 2, forked_by=0),
            Segment(1, [5, 6], 1, 4, 1, 2, forked_by=1),
            Segment(0, [5, 6, 7], 2, 4, 1, 2),
            Segment(REQUEST, [3, 4, 5, 6, 7, 8], 5, 2, 0, 2),
        ],
        [2, 3, 4, 5, 6, 7, 8],
    )


def drawn(mask):
    return ["".join(".x"[seen] for seen in row) for row in mask]


def test_a_stitched_join_sees_its_threads_but_for_what_it_leaves_out():
    assert drawn(stitched().attention_mask()) == [
        "x.........",  # 10
        "xx........",  # 11
        "xxx.......",  # 20
        "xxxx......",  # 21
        "xxxxx.....",  # 22, an end of sequence, which is not joined
        "xx...x....",  # 30
        "xx...xx...",  # 31
        "xx...xxx..",  # 32
        "xxxx..xxx.",  # 40
        "xxxx..xxxx",  # 41
    ]
    assert stitched().positions() == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6]


def test_a_prefilled_join_reads_all_of_its_threads_again():
    rows = drawn(nested().attention_mask())
    assert rows[7:9] == ["xxxx..xx.......", "xxxx..xxx......"]  # 6 and 7 of the thread that goes on
    assert rows[-1] == "xx.......xxxxxx"
    assert nested().positions() == [0, 1, 2, 3, 4, 5, 4, 5, 6, 2, 3, 4, 5, 6, 7]


def test_a_token_is_predicted_by_the_one_before_it_in_its_context():
    layout = stitched().layout
    assert layout.predictors == [-1, 0, 1, 2, 3, 1, 5, 6, -1, 8]
    assert nested().layout.predictors[6] == 3
    assert [t for t, is_sampled in zip(layout.token_ids, layout.sampled, strict=True) if is_sampled] == [
        11, 21, 22, 32, 41,
    ]  # fmt: skip
    assert layout.logprobs[:3] == [None, -0.5, None]


@pytest.mark.parametrize("tree", [stitched(), nested()], ids=["stitched", "nested"])
def test_the_mask_for_flex_attention_is_the_dense_one(tree):
    torch = pytest.importorskip("torch")
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    num = len(tree.positions())
    mask = flex.create_mask(tree.layout.mask_mod(torch.tensor), 1, 1, num, num, device="cpu")
    assert mask[0, 0].tolist() == tree.attention_mask()


def test_a_segment_that_sees_a_later_one_is_refused():
    tree = Tree([Segment(REQUEST, [1], 1, 0, parent=1, fork_offset=1), Segment(0, [2], 1, 1)], [])
    with pytest.raises(ValueError, match="segment 0: expected to see earlier segments only"):
        tree.positions()


def test_a_file_of_lines_holds_what_was_written(tmp_path):
    path = tmp_path / "trees.jsonl"
    first, second = stitched(), nested()
    first.segments[0].top_logprobs = [{}, {11: -0.5, 12: -1.5}]
    for tree in (first, second):
        tree.to_jsonl(path)
    assert read_jsonl(path) == [first, second]
    assert json.loads(path.read_text().splitlines()[1])["answer_ids"] == second.linear()


def test_a_drawing_has_threads_beneath_what_called_for_them():
    lines = nested().draw(lambda ids: "-".join(map(str, ids))).splitlines()
    assert [len(line) - len(line.lstrip()) for line in lines] == [0, 4, 8, 4, 0]
    assert lines[3] == "    3: thread 0 at 4: 2 given, 1 sampled: '7'"
    assert stitched().draw().splitlines()[1] == "    1: thread 0 'long' at 2: 1 given, 2 sampled, eos"
    assert stitched().draw().splitlines()[-1] == "3: request at 5: 1 given, 1 sampled, joins 1, 2, stop"


def test_parquet_has_a_row_a_segment(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    write_parquet([stitched(), nested()], tmp_path / "trees.parquet")
    rows = pq.read_table(tmp_path / "trees.parquet").to_pylist()
    assert [(row["tree"], row["segment"]) for row in rows] == [
        *((0, n) for n in range(4)), *((1, n) for n in range(5)),
    ]  # fmt: skip
    assert rows[3]["joined"][1] == {"segment": 2, "num_tokens": 3, "num_skipped": 1}
    assert rows[0]["answer_ids"] == stitched().linear()


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is not None, reason="pyarrow is there")
def test_without_pyarrow_parquet_says_what_to_do(tmp_path):
    with pytest.raises(ImportError, match="expected the package pyarrow, found none: pip install pyarrow"):
        stitched().to_parquet(tmp_path / "trees.parquet")


def test_without_vllm_llm_says_what_to_install():
    code = """if True:
        import sys
        sys.modules["vllm"] = None
        import forkjoin
        assert forkjoin.Tree
        try:
            forkjoin.LLM
        except ImportError as error:
            print(error)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(
        "forkjoin.LLM: expected vllm-forkjoin and vLLM in this Python, found no vllm"
    )


def test_a_name_that_is_not_there_is_an_attribute_error():
    import forkjoin

    with pytest.raises(AttributeError, match="no attribute 'LMM'"):
        forkjoin.LMM  # noqa: B018
