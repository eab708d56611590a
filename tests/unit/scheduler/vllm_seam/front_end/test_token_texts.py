from __future__ import annotations

from forkjoin_scheduler.vllm_seam.front_end.token_texts import TokenTexts, decode_alternatives_once


class Tokenizer:
    """Writes numbers."""

    def __init__(self, base):
        self.base, self.decoded = base, []


def _decode(tokenizer, token_ids):
    tokenizer.decoded += token_ids
    return [str(tokenizer.base + i) for i in token_ids]


def test_each_token_is_decoded_once_by_each_tokenizer():
    texts, tokenizers = TokenTexts(_decode), (Tokenizer(0), Tokenizer(100))
    for tokenizer in tokenizers:
        for token_ids in ([3, 1, 3], [], [1, 2]):
            assert texts(tokenizer, token_ids) == [str(tokenizer.base + i) for i in token_ids]
        assert tokenizer.decoded == [3, 1, 2]


def test_vllm_decodes_the_alternatives_of_its_logprobs_so(monkeypatch):
    from vllm.v1.engine import logprobs
    from vllm.v1.outputs import LogprobsLists

    monkeypatch.setattr(logprobs, "convert_ids_list_to_tokens", _decode)
    decode_alternatives_once()
    tokenizer, rows = Tokenizer(0), [[7, 8], [8, 7], [7, 9]]
    processor = logprobs.LogprobsProcessor(
        tokenizer,
        logprobs=[],
        prompt_logprobs=None,
        cumulative_logprob=0.0,
        num_logprobs=1,
        num_prompt_logprobs=None,
    )
    for row in rows:
        processor._update_sample_logprobs(LogprobsLists(*_row(row)))
    assert [[alternative.decoded_token for alternative in row.values()] for row in processor.logprobs] == [
        [str(i) for i in row] for row in rows
    ]
    assert tokenizer.decoded == [7, 8, 9]


def _row(token_ids):
    import numpy as np

    return np.array([token_ids]), np.array([[-1.0] * len(token_ids)]), np.array([1])
