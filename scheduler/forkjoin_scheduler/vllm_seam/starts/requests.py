"""What fork/join does to vLLM ``Request`` objects: start one, fold tokens in, take tokens off."""

from __future__ import annotations

from collections.abc import Sequence

from vllm.multimodal.inputs import MultiModalFeatureSpec
from vllm.sampling_params import SamplingParams
from vllm.v1.core.kv_cache_utils import BlockHash
from vllm.v1.request import Request


def new_request(
    root: Request,
    request_id: str,
    token_ids: list[int],
    params: SamplingParams,
    known_hashes: Sequence[BlockHash] = (),
) -> Request:
    """A request of the same client, adapter and priority as ``root`` on ``token_ids``, which nobody changes.

    Its parameters for KV connectors are those of ``root``, too. The tokens are not copied, but once by vLLM:
    contexts are long, and each slice of a prefill is a request.
    ``known_hashes``: of its first blocks, as another request of the family has them: the others alone are
    computed.
    """
    request = Request(
        request_id=request_id,
        prompt_token_ids=token_ids,
        sampling_params=params,
        pooling_params=None,
        mm_features=_media_in(token_ids, root),
        client_index=root.client_index,
        arrival_time=root.arrival_time,
        lora_request=root.lora_request,
        cache_salt=root.cache_salt,
        priority=root.priority,
        trace_headers=root.trace_headers,
    )
    request.block_hashes.extend(known_hashes)
    request._block_hasher = root._block_hasher
    request.update_block_hashes()
    request.kv_transfer_params = root.kv_transfer_params
    request.prefill_stats = None  # vLLM would count the blocks of each, for a front end that hears of none
    return request


def _media_in(token_ids: Sequence[int], root: Request) -> list[MultiModalFeatureSpec]:
    """The images and other media of ``root`` that a context has: all, if it begins with their placeholders.

    A thread that sees its header only has none.
    """
    end = max((f.mm_position.offset + f.mm_position.length for f in root.mm_features), default=0)
    return root.mm_features if token_ids[:end] == root._all_token_ids[:end] else []


def rebase_prompt(request: Request, token_ids: Sequence[int], params: SamplingParams) -> None:
    """Append ``token_ids`` and make all that stands before the next token the prompt.

    The V1 runner builds a resumed request from its prompt alone, so the outputs so far become
    part of it; ``params`` carry what is left of max_tokens and min_tokens.
    """
    request._all_token_ids.extend(token_ids)
    request.prompt_token_ids = list(request._all_token_ids)
    request.num_prompt_tokens = len(request.prompt_token_ids)
    request._output_token_ids.clear()
    request.update_block_hashes()
    request.sampling_params = params
    assert params.max_tokens is not None
    request.max_tokens = params.max_tokens


def truncate(request: Request, num_tokens: int, hashes: list[BlockHash]) -> None:
    """Forget all but the first ``num_tokens`` tokens; for a request that will be folded.

    ``hashes``: of the blocks that these tokens decide.
    """
    num_cut = request.num_tokens - num_tokens
    del request._all_token_ids[num_tokens:]
    del request._output_token_ids[max(len(request._output_token_ids) - num_cut, 0) :]
    request.block_hashes[:] = hashes
    request.update_block_hashes()


def forget_in_flight(request: Request) -> None:
    """Drop the samples in flight."""
    request.spec_token_ids = []
    request.drop_stale_output = True
    request.num_stale_output_tokens = request.num_in_flight_tokens
    request.num_output_placeholders = 0
