"""The one library that compiles grammars, and the errors for grammars that it does not take."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from forkjoin_scheduler.errors import BadRequestOptions, Overloaded
from forkjoin_scheduler.excerpt import cut
from forkjoin_scheduler.request.visits import VISIT, refuse
from forkjoin_scheduler.settings import COMPILED
from forkjoin_server.request.grammar_trials import Grammar, Trials, Verdict, block_reason
from forkjoin_server.vllm_seam.patching import put_in_place

#: What xgrammar puts before its messages: the time, and the place in its source.
_ORIGIN = re.compile(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ")
_MAX_CHARS = 150
_FIELD = "structured_outputs"


def keep_to_one_library(client: Any) -> None:
    """Let ``client``, vLLM's engine client, check all grammars for the library that its engine will use.

    Patch: the backend of its config for structured outputs, where that is ``auto``.
    Symptom without it: ``auto`` checks a grammar for xgrammar, and if xgrammar does not take it, for another
    library. The engine compiles every grammar with the library of the first request that it ever had. So
    what only another library takes is a 500, and one request for another library makes the grammars of all
    later requests fail.
    Upstream: vLLM's engine has one library for its life. Remove when it has one for each request.
    """
    from vllm.utils.mistral import is_mistral_tokenizer

    config = client.vllm_config.structured_outputs_config
    if config.backend != "auto":
        return
    tokenizer = client.renderer.get_tokenizer()
    # As ``auto`` would: only llguidance knows the special tokens of Mistral's tokenizers.
    is_tekken = is_mistral_tokenizer(tokenizer) and tokenizer.is_tekken
    config.backend = "guidance" if is_tekken else "xgrammar"


def refuse_what_it_does_not_take() -> None:
    """Refuse a grammar with a status, and a sentence, of its own.

    Patch: ``SamplingParams._validate_structured_outputs``.
    Symptom without it: what the libraries raise is a 500 where it is no ValueError; the client is told a file
    and a line of a library, or "Invalid grammar specification."; and a stream has begun with a 200 by then.
    Upstream: so in stock ``vllm serve``, too. Remove when vLLM checks grammars before it begins a stream.
    """
    from vllm.sampling_params import SamplingParams

    check = SamplingParams._validate_structured_outputs
    if check.__module__ == __name__:
        return

    def _validate_structured_outputs(self: Any, model_config: Any, config: Any, tokenizer: Any) -> None:
        try:
            check(self, model_config, config, tokenizer)
        except Exception as error:  # of whatever kind the libraries raise of a client's grammar
            refusal = BadRequestOptions(_refusal(_said(error), config.backend), field=_FIELD)
            refuse(refusal)
            raise refusal from error

    put_in_place(SamplingParams, _validate_structured_outputs)


def _said(error: Exception) -> str:
    """What ``error`` says, and its cause where it keeps that to itself."""
    said, cause = str(error).rstrip(". "), str(error.__cause__ or "")
    return said if cause in said else f"{said}: {cause}"


def _refusal(said: str, library: str) -> str:
    brief = cut(" ".join(_ORIGIN.sub("", said).split()), _MAX_CHARS)
    return (
        f"the grammar: expected a JSON schema, regex, EBNF or structural tag that {library}, this server's "
        f"library, takes, got one that it does not: {brief}. Say it in words that it knows, or serve with "
        "another library (--structured-outputs-config)"
    )


def try_grammars(client: Any) -> Trials | None:
    """Let ``client``, vLLM's engine client, try each grammar before its engine compiles it.

    Patch: ``add_request`` of the client.
    Symptom without it: an EBNF grammar of 600 characters holds the compiler of the engine for a minute of CPU
    time, longer ones for any time; nothing ends that, and all other new grammars wait.
    Upstream: vLLM stops waiting for a regex after some seconds, whose thread goes on. Remove when it bounds
    what each grammar takes. None where another library than xgrammar compiles them.
    """
    if client.vllm_config.structured_outputs_config.backend != "xgrammar":
        return None
    trials, add = Trials(partial(_vocabulary, client)), client.add_request

    async def add_request(request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        if grammars := list(_grammars(client, params)):
            visit = VISIT.get()
            tenant = "" if visit is None else visit.tenant.id
            verdicts: list[Verdict] = []
            try:
                for grammar in grammars:
                    verdicts.append(await asyncio.wrap_future(trials.of(grammar, tenant)))
                    _check(verdicts)  # not after the last: a request may have hundreds
            except (BadRequestOptions, Overloaded) as error:
                refuse(error)
                raise
        return await add(request_id, prompt, params, *args, **kwargs)

    client.add_request = add_request
    return trials


def _check(verdicts: list[Verdict]) -> None:
    for verdict in verdicts:
        if verdict.error:
            raise BadRequestOptions(_refusal(verdict.error, "xgrammar"), field=_FIELD)
    if reason := block_reason(verdicts):
        raise BadRequestOptions(f"the grammar: {reason}", field=_FIELD)


def _grammars(client: Any, params: Any) -> Iterator[Grammar]:
    """What xgrammar is to compile for a request and its branches, as vLLM's engine will ask it to."""
    from vllm.v1.structured_output.utils import grammar_is_likely_lark

    asked = (getattr(params, "extra_args", None) or {}).get(COMPILED, {})
    wanted = [branch.get("structured") or {} for branch in asked.get("branches") or ()]
    if (own := getattr(params, "structured_outputs", None)) is not None:
        wanted.append(vars(own))
    is_compact = client.vllm_config.structured_outputs_config.disable_any_whitespace
    options = (("any_whitespace", not is_compact), ("separators", (",", ":") if is_compact else None))
    for fields in wanted:
        if (schema := fields.get("json")) is not None:
            yield Grammar("json_schema", schema if isinstance(schema, str) else json.dumps(schema), options)
        if (regex := fields.get("regex")) is not None:
            yield Grammar("regex", regex)
        if (grammar := fields.get("grammar")) is not None:
            yield Grammar("lark" if grammar_is_likely_lark(grammar) else "grammar", grammar)
        if (tag := fields.get("structural_tag")) is not None:
            yield from _of_tag(tag, options)


def _of_tag(text: str, options: tuple[tuple[str, Any], ...]) -> Iterator[Grammar]:
    """Those of a structural tag: in its older form, the schemas in it. vLLM refuses what is neither."""
    with suppress(ValueError, TypeError, KeyError):
        tag = json.loads(text)
        if "structures" not in tag:
            yield Grammar("structural_tag", text)
        else:
            for part in tag["structures"]:
                yield Grammar("json_schema", json.dumps(part["schema"]), options)


def _vocabulary(client: Any) -> list[bytes]:
    """The tokens of the model as bytes; none where xgrammar does not read its tokenizer."""
    import xgrammar

    size = client.model_config.get_vocab_size()
    try:
        info = xgrammar.TokenizerInfo.from_huggingface(client.renderer.get_tokenizer(), vocab_size=size)
    except Exception:  # of whatever kind: it does not know the tokenizer
        return []
    return list(info.decoded_vocab)
