"""A small random Qwen2.5-VL, and prompts with images for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import (
    BatchFeature,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.utils import is_torchvision_available

from tests.engine.renamed import with_more_tokens
from tests.engine.stitched_reference import Fork, Run, flatten

TAGS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
#: Frames, rows and columns of patches; 2 x 2 of them make a token.
GRID = (1, 8, 6)
NUM_TOKENS = 12


def image_model(folder: Path, renamed: dict[str, str] | None = None) -> Path:
    """A checkpoint in ``folder``: the embedded model's tokenizer, a vision tower of two layers, a model of two.

    ``renamed``: control tokens of the tokenizer that another dialect calls otherwise.
    """
    model = with_more_tokens(folder, TAGS)
    tokenizer = (model / "tokenizer.json").read_text()
    for own, other in (renamed or {}).items():
        tokenizer = tokenizer.replace(f'"{own}"', f'"{other}"')
    (model / "tokenizer.json").write_text(tokenizer)
    tokens = json.loads((model / "tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in tokens}
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": -(-(max(ids.values()) + 1) // 32) * 32, "hidden_size": 128, "intermediate_size": 192,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 4096, "initializer_range": 0.2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": None, "eos_token_id": ids["<|end|>"], "pad_token_id": None,
        },
        vision_config={
            "depth": 2, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2, "out_hidden_size": 128,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 56,
            "fullatt_block_indexes": [1], "initializer_range": 0.2,
        },
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"], tie_word_embeddings=False,
    )  # fmt: skip
    random = Qwen2_5_VLForConditionalGeneration(config)
    random.lm_head.weight.data[list(ids.values())] = 0  # it writes no tags by itself
    random.save_pretrained(model)
    return model


class _Absent(ModuleType):
    """Stands for a module that is imported and not used: every name in it is another."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(name)


def do_without_torchvision(monkeypatch: Any) -> None:
    """Let vLLM load the model without torchvision, which its modules import for images that we do not process."""
    assert is_torchvision_available() in (True, False)  # asked before there is a stand-in, and remembered
    for name in ("", ".transforms", ".transforms.v2", ".transforms.v2.functional"):
        monkeypatch.setitem(sys.modules, f"torchvision{name}", _Absent(f"torchvision{name}"))
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.qwen2_5_vl import (
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessingInfo,
    )

    # by name, vLLM would look at the class in a process without the stand-in
    name = Qwen2_5_VLForConditionalGeneration.__name__
    monkeypatch.setitem(ModelRegistry.models, name, ModelRegistry.models[name])  # which comes back in the end
    ModelRegistry.register_model(name, Qwen2_5_VLForConditionalGeneration)

    monkeypatch.setattr(
        Qwen2_5_VLProcessingInfo, "get_mm_max_tokens_per_item", lambda *args, **kwargs: {"image": NUM_TOKENS}
    )


def _prompt(engine: Any, text: str, behind: list[int] | None = None) -> tuple[list[int], int]:
    """The tokens of a prompt with an image, and the place of its first placeholder."""
    start, end, pad = (engine.tokenizer.token_id(tag) for tag in TAGS[:3])
    before = [*engine.tokenizer.encode("<|user|>"), start]
    after = [end, *engine.tokenizer.encode(f"{text}<|assistant|>"), *(behind or ())]
    return [*before, *[pad] * NUM_TOKENS, *after], len(before)


def _pixels(image: int) -> torch.Tensor:
    return torch.randn(GRID[1] * GRID[2], 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(image))


def with_image(engine: Any, text: str, image: int, behind: list[int] | None = None) -> Any:
    """A prompt of a random ``image`` (its number is the seed) and ``text``, then the tokens ``behind``."""
    from vllm.inputs.engine import mm_input
    from vllm.model_executor.models.qwen2_vl import _create_qwen2vl_field_factory
    from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange

    ids, first = _prompt(engine, text, behind)
    values = BatchFeature({"pixel_values": _pixels(image), "image_grid_thw": torch.tensor([GRID])})
    return mm_input(
        ids,
        MultiModalKwargsItems.from_hf_inputs(values, _create_qwen2vl_field_factory(2)(values)),
        {"image": [f"image {image}"]},
        {"image": [PlaceholderRange(offset=first, length=NUM_TOKENS)]},
    )


class ImageReference:
    """The checkpoint in ``folder`` in transformers, with explicit positions and masks."""

    def __init__(self, folder: Path) -> None:
        self._model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
        ).eval()

    @torch.inference_mode()
    def logprobs(
        self, engine: Any, text: str, image: int, context: list[Run | Fork], *, ignores_forks: bool = False
    ) -> torch.Tensor:
        """What the model says after each slot of ``context``, whose prompt is that of ``with_image``.

        ``ignores_forks``: the control, whose positions are those of tokens in a row.
        """
        flat = flatten(context)
        positions = torch.arange(len(flat.token_ids)) if ignores_forks else torch.tensor(flat.position_ids)
        _, first = _prompt(engine, text)
        rows, columns = GRID[1] // 2, GRID[2] // 2
        each = positions.expand(3, -1).clone()
        each[:, first:] += max(rows, columns) - NUM_TOKENS  # text goes on after the longer side of the image
        place = torch.arange(NUM_TOKENS)
        image_at = torch.stack([torch.zeros(NUM_TOKENS), place // columns, place % columns])
        each[:, first : first + NUM_TOKENS] = first + image_at.long()
        additive = torch.zeros(flat.mask.shape).masked_fill(~flat.mask, torch.finfo(torch.float32).min)
        logits = self._model(
            input_ids=torch.tensor([flat.token_ids]), position_ids=each[:, None],
            attention_mask=additive[None, None], pixel_values=_pixels(image),
            image_grid_thw=torch.tensor([GRID]), use_cache=False,
        ).logits  # fmt: skip
        return logits[0].log_softmax(-1)
