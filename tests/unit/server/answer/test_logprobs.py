from __future__ import annotations

import json

import numpy as np

from forkjoin_scheduler.publish.injected import INJECTED_LOGPROB
from forkjoin_server.answer.logprobs import has_injected, marked

OWN = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [{"token": "a", "logprob": -0.5}]}
INJECTED = {"token": "b", "logprob": INJECTED_LOGPROB, "top_logprobs": [{"token": "b", "logprob": INJECTED_LOGPROB}]}  # fmt: skip


def test_the_mark_survives_32_bits_and_json():
    value = float(np.array([INJECTED_LOGPROB], dtype=np.float32)[0])
    assert has_injected(json.dumps({"logprob": value}).encode())


def test_an_entry_of_an_injected_token_says_so_and_has_no_alternatives():
    chunk = {"choices": [{"logprobs": {"content": [OWN, INJECTED]}}]}
    own, injected = marked(chunk)["choices"][0]["logprobs"]["content"]
    assert own == OWN
    assert injected == {"token": "b", "logprob": 0.0, "top_logprobs": [], "injected": True}


def test_completions_say_it_in_a_list_of_its_own():
    logprobs = {
        "tokens": ["a", "b"],
        "token_logprobs": [-0.5, INJECTED_LOGPROB],
        "top_logprobs": [{"a": -0.5, "c": -1.0}, {"b": INJECTED_LOGPROB}],
        "text_offset": [0, 1],
    }
    assert marked({"logprobs": logprobs})["logprobs"] == logprobs | {
        "token_logprobs": [-0.5, 0.0],
        "top_logprobs": [{"a": -0.5, "c": -1.0}, {}],
        "injected": [False, True],
    }
