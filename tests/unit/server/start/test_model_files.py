"""What is read of a model's files: of a folder, of the hub's cache, and where there is nothing to read."""

from __future__ import annotations

import json
import shutil

import pytest
from huggingface_hub import constants

from forkjoin_server.start.configuration import EMBEDDED_MODEL
from forkjoin_server.start.model_files import read


def _write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (folder / name.replace("__", ".")).write_text(text)
    return str(folder)


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer__json": {"added_tokens": [{"id": 9, "content": "<a>"}], "model": {}}},
        {"tokenizer_config__json": {"added_tokens_decoder": {"9": {"content": "<a>"}}}},
        {"added_tokens__json": {"<a>": 9}},
        {"special_tokens_map__json": {"additional_special_tokens": ["<a>"]}},
        {"special_tokens_map__json": {"additional_special_tokens": [{"content": "<a>"}]}},
    ],
    ids=lambda files: next(iter(files)),
)
def test_added_tokens_are_found_in_whichever_file_names_them(files, tmp_path):
    assert read(_write(tmp_path, **files)).added_tokens == {"<a>"}


@pytest.mark.parametrize(
    ("files", "template"),
    [
        ({"chat_template__jinja": "T"}, "T"),
        ({"chat_template__json": {"chat_template": "T"}}, "T"),
        ({"tokenizer_config__json": {"chat_template": "T"}}, "T"),
        ({"tokenizer_config__json": {"chat_template": [{"name": "x", "template": "</é>"}]}}, "</é>"),
        ({}, ""),
    ],
    ids=["jinja", "json", "config", "several", "none"],
)
def test_the_chat_template_is_found_wherever_it_is(files, template, tmp_path):
    facts = read(_write(tmp_path, added_tokens__json={"<a>": 9}, **files))
    assert template in facts.chat_template
    assert bool(facts.chat_template) == bool(template)


def test_a_chat_template_that_is_given_stands_in_the_place_of_the_models(tmp_path):
    (tmp_path / "mine.jinja").write_text("mine")
    given = str(tmp_path / "mine.jinja")
    assert read(str(EMBEDDED_MODEL), chat_template=given).chat_template == "mine"
    assert read(str(EMBEDDED_MODEL), chat_template="{{ x }}").chat_template == "{{ x }}"
    assert "<|user|>" in read(str(EMBEDDED_MODEL)).chat_template


def test_a_model_is_called_by_its_folder_its_base_and_its_architectures(tmp_path):
    config = {"_name_or_path": "org/Base-4B", "architectures": ["LlamaForCausalLM"]}
    folder = _write(tmp_path / "Mine-8B", config__json=config, added_tokens__json={"<a>": 9})
    assert read(folder).names == ("Mine-8B", "Base-4B", "LlamaForCausalLM")
    assert read(f"{folder}/").names[0] == "Mine-8B"


def test_a_tokenizer_of_its_own_is_read_in_the_place_of_the_models(tmp_path):
    model = _write(tmp_path / "model", config__json={"architectures": ["A"]}, added_tokens__json={"<a>": 9})
    tokenizer = _write(tmp_path / "tokenizer", added_tokens__json={"<b>": 9})
    facts = read(model, tokenizer=tokenizer)
    assert (facts.names, facts.added_tokens) == (("model", "A"), {"<b>"})


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000, "null", '{"added_tokens": 3, "x": [1]}'])
def test_files_that_are_not_what_they_should_be_name_nothing(text, tmp_path):
    facts = read(_write(tmp_path, tokenizer__json=text, config__json=text, added_tokens__json={"<a>": 9}))
    assert facts.added_tokens == {"<a>"}


def test_a_name_is_looked_up_in_the_hubs_cache(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--org--Mine-8B" / "snapshots" / ("0" * 40)
    _write(snapshot.parent.parent / "refs", main="0" * 40)
    shutil.copytree(EMBEDDED_MODEL, snapshot, ignore=shutil.ignore_patterns("*.safetensors"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    facts = read("org/Mine-8B")
    assert facts.names == ("Mine-8B", "LlamaForCausalLM")
    assert facts.added_tokens == read(str(EMBEDDED_MODEL)).added_tokens
    assert read(str(snapshot)).names == facts.names
    assert read("org/Mine-8B", revision="1" * 40) is None


@pytest.mark.parametrize("name", ["org/nothing", "s3://bucket/model", "org/model:Q4_0", "/nowhere", ""])
def test_of_what_is_not_there_nothing_is_known(name, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert read(name) is None


def test_a_hub_that_does_not_answer_is_asked_once(tmp_path, monkeypatch):
    asked = []

    def fail(name, file, **more):
        asked.append(file)
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    assert read("org/model") is None
    assert len(asked) == 1


def test_models_of_modelscope_are_not_sought_on_another_hub(monkeypatch):
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "True")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", None)
    assert read("org/model") is None
