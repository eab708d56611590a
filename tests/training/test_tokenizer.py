from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkjoin_scheduler.dialects.files import load
from training import tokenizer as tok
from training.model import ModelConfig

TOKENIZER = tok.build()


@given(st.text())
def test_any_text_comes_back(text):
    ids = tok.encode(TOKENIZER, text)
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("token", [*tok.SPECIAL, *tok.TAGS])
def test_a_tag_is_one_id_wherever_it_stands(token):
    found = tok.token_id(TOKENIZER, token)
    assert tok.encode(TOKENIZER, token) == [found]
    assert tok.encode(TOKENIZER, f"a{token}{token}\n").count(found) == 2


def test_every_other_byte_is_one_id_so_the_engine_tokenizes_as_the_training_did():
    text = "\n<Thread>\n12: é"
    assert len(tok.encode(TOKENIZER, text)) == 1 + 1 + len("\n12: é".encode())


def test_tags_survive_where_special_tokens_are_skipped():
    ids = tok.encode(TOKENIZER, "<Thread>1<|end|>")
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "<Thread>1"


def test_every_id_fits_the_models_vocabulary():
    assert TOKENIZER.get_vocab_size() == 256 + len(tok.SPECIAL) + len(tok.TAGS)
    assert max(TOKENIZER.get_vocab().values()) < ModelConfig().vocab_size


def test_the_dialect_that_it_is_served_with_has_all_its_control_tokens():
    assert all(
        tok.encode(TOKENIZER, t) == [tok.token_id(TOKENIZER, t)] for t in load("threadweaver").control_tokens
    )


def test_an_unknown_token_is_an_error():
    with pytest.raises(ValueError, match="<Nope>"):
        tok.token_id(TOKENIZER, "<Nope>")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    tok.save(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "content",
    ["a=3*4", [{"type": "text", "text": "a=3"}, {"type": "text", "text": "*4"}]],
    ids=["text", "parts"],
)
def test_the_chat_template_renders_what_the_training_saw(saved, content):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": content}]
    text = saved.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == tok.chat_prompt("a=3*4")


def test_the_saved_tokenizer_gives_the_same_ids(saved):
    text = tok.chat_prompt("a=3*4\nb=é") + "<think>\n<Parallel>"
    assert saved.encode(text, add_special_tokens=False) == tok.encode(TOKENIZER, text)
    assert saved.eos_token_id == tok.token_id(TOKENIZER, tok.EOS)
