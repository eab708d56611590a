"""Control tokens in the prompts of chats, as the operator says (see ``control_tokens.py``).

``neutralise``: they are text. ``refuse``: they are a 400, but in an assistant's message, where they are text.
``allow``: they are control tokens, as in vLLM. Prompts of /v1/completions have no template and stay raw.

Patch: where each renderer of vLLM's makes a chat's prompt, on whatever route the chat comes.
Symptom without it: a model reads ``<Thread>`` in a question about Java as the beginning of a thread.
Upstream: most renderers tokenise the whole text of a template, and can't tell who wrote what. Remove when
they can.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from forkjoin_scheduler.errors import BadRequestOptions, UsageError
from forkjoin_scheduler.excerpt import cut
from forkjoin_server.request.control_tokens import ControlTokens, Marked, check_has_none

#: What templates and tokenizers are told, which is no text of a prompt.
_NO_TEXT = (
    "chat_template",
    "padding",
    "return_dict",
    "return_tensors",
    "template_id",
    "template_jinja",
    "tokenize",
)

Template = Callable[..., Awaitable[Any]]


@dataclass(frozen=True)
class Policy:
    """What becomes of ``tokens`` in chats. ``instruction``: the end of a message that the server writes."""

    tokens: ControlTokens
    refuses: bool
    instruction: str | None

    def check(self, conversation: Any, tools: Any) -> None:
        """Raise BadRequestOptions if they are refused, and one is spelled."""
        if self.refuses:
            check_has_none(self.tokens, conversation, tools, kept=self.instruction)

    def marked(self, value: Any) -> Any:
        """``value`` with what a client spells in it marked."""
        return self.tokens.marked(value, kept=self.instruction)


def install(renderer: Any, policy: Policy) -> None:
    """Let ``renderer``, one of vLLM's, do with control tokens in chats as ``policy`` says."""
    _WAYS[_known(type(renderer))](renderer, policy)


def check_known(renderer: type) -> None:
    """Raise UsageError if no control token can be kept out of the prompts that ``renderer`` makes."""
    _known(renderer)


def _known(renderer: type) -> str:
    for cls in renderer.__mro__:
        if cls.__name__ in _WAYS:
            return cls.__name__
    raise UsageError(
        f"--control-tokens-in-prompts: expected one of vLLM's own renderers, got {renderer.__name__}, out of "
        "whose prompts no control token can be kept: serve with --control-tokens-in-prompts allow"
    )


# ---- renderers that write text, which is tokenised after them ----------------------------------


def _hf(renderer: Any, policy: Policy) -> None:
    apply = renderer._apply_chat_template_async

    async def apply_chat_template(model_config: Any, tokenizer: Any, conversation: Any, **kwargs: Any) -> Any:
        return await _filled_in(
            partial(apply, model_config, tokenizer), renderer, policy, conversation, **kwargs
        )

    renderer._apply_chat_template_async = apply_chat_template
    _tokenise_marked(renderer, policy)


def _deepseek(renderer: Any, policy: Policy) -> None:
    apply = renderer._apply_chat_template_async

    async def apply_chat_template(*, conversation: Any, **kwargs: Any) -> Any:
        beside: list[Any] = []  # vLLM 0.33 returns the order of a chat's images beside its text

        async def of(conversation: Any, **kwargs: Any) -> Any:
            made = await apply(conversation=conversation, **kwargs)
            if isinstance(made, tuple):
                made, *beside[:] = made
            return made

        made = await _filled_in(of, renderer, policy, conversation, **kwargs)
        return (made, *beside) if beside else made

    renderer._apply_chat_template_async = apply_chat_template
    _tokenise_marked(renderer, policy)


def _cohere(renderer: Any, policy: Policy) -> None:
    render = renderer._render_async

    async def render_config(kind: str, config: Mapping[str, Any]) -> Any:
        policy.check(config["messages"], config.get("available_tools"))
        texts = {name: value for name, value in config.items() if name not in _NO_TEXT}
        if not policy.tokens.may_be_spelled(texts):
            return await render(kind, config)
        return Marked(await render(kind, {**config, **policy.marked(texts)}))

    renderer._render_async = render_config
    _tokenise_marked(renderer, policy)


async def _filled_in(
    template: Template, renderer: Any, policy: Policy, conversation: Any, *, tools: Any = None, **kwargs: Any
) -> Any:
    """What ``template`` makes of a chat: text, which is marked if the client spells any; or its tokens."""
    policy.check(conversation, tools)
    # What the client gives for the template to write, documents say, is its text, too.
    texts = {name: value for name, value in kwargs.items() if name not in _NO_TEXT}
    if not policy.tokens.may_be_spelled([conversation, tools, texts]):
        return await template(conversation, tools=tools, **kwargs)
    kwargs |= policy.marked(texts)
    is_tokenised = kwargs.get("tokenize", True)
    text = await template(
        policy.marked(conversation), tools=policy.marked(tools), **kwargs | {"tokenize": False}
    )
    if not is_tokenised:
        return Marked(text)
    plain, starts = policy.tokens.plain(text)
    encode = partial(renderer.get_tokenizer().encode, plain, add_special_tokens=False)
    ids = await asyncio.get_running_loop().run_in_executor(renderer._executor, encode)
    return [i for ids in policy.tokens.neutralised(ids, plain, starts) for i in ids]


def _tokenise_marked(renderer: Any, policy: Policy) -> None:
    tokenize, tokens = renderer._tokenize_prompt_async, policy.tokens

    async def tokenize_prompt(prompt: Any, params: Any) -> Any:
        marked = prompt["prompt"]
        if not isinstance(marked, Marked):
            return await tokenize(prompt, params)
        plain, starts = tokens.plain(marked)
        result = await tokenize({**prompt, "prompt": plain}, params)
        pieces = tokens.neutralised(result["prompt_token_ids"], plain, starts)
        if (offsets := result.get("prompt_token_offsets")) is not None:
            spread = zip(offsets, pieces, strict=True)
            result["prompt_token_offsets"] = [span for span, ids in spread for _ in ids]
        result["prompt_token_ids"] = [i for ids in pieces for i in ids]
        return result

    renderer._tokenize_prompt_async = tokenize_prompt


# ---- renderers that write tokens ----------------------------------------------------------------


def _inkling(renderer: Any, policy: Policy) -> None:
    """It tokenises each text by itself, and writes its own tokens between them."""
    render, tokenizer = renderer._render_async, renderer._inkling_tokenizer
    encode = tokenizer.encode_text

    async def render_chat(messages: Any, params: Any) -> Any:
        policy.check(messages, (params.chat_template_kwargs or {}).get("tools"))
        return await render(messages, params)

    def encode_text(text: str) -> list[int]:
        end = policy.instruction if policy.instruction and text.endswith(policy.instruction) else ""
        own = policy.tokens.as_text(encode(text.removesuffix(end)))
        return own + (encode(end) if end else [])

    renderer._render_async = render_chat
    tokenizer.encode_text = encode_text


def _kimi_k3(renderer: Any, policy: Policy) -> None:
    """Its tokenizer, which comes with the model, is to keep what clients write as text: that is checked."""
    apply = renderer._apply_chat_template_async

    async def apply_chat_template(conversation: Any, params: Any) -> Any:
        kwargs = params.chat_template_kwargs or {}
        policy.check(conversation, kwargs.get("tools"))
        ids = await apply(conversation, params)
        texts = {name: value for name, value in kwargs.items() if name not in _NO_TEXT}
        response_format = _plain(params.response_format)
        given = [conversation, texts, response_format]
        if not policy.tokens.may_be_spelled(given):
            return ids
        marked = replace(
            params,
            chat_template_kwargs=kwargs | policy.marked(texts),
            response_format=policy.marked(response_format),
        )
        without = await apply(policy.marked(conversation), marked)
        if policy.tokens.spelled_by(ids) != policy.tokens.spelled_by(without):
            tag = policy.tokens.first_in(given) or "one in several parts"
            raise BadRequestOptions(
                f"messages: expected no control token of the model's dialect in them, got {cut(tag)}, which "
                "this model's tokenizer can't keep as text: leave it out"
            )
        return ids

    renderer._apply_chat_template_async = apply_chat_template


def _plain(value: Any) -> Any:
    """A model of pydantic's as a dict; anything else as it is."""
    dump = getattr(value, "model_dump", None)
    return dump(mode="json", exclude_none=True) if callable(dump) else value


def _mistral(renderer: Any, policy: Policy) -> None:
    """Nothing is to be done: its tokenizers make control tokens of no text.

    So no dialect binds to one but those whose tags are text, and these have no control tokens.
    """


#: By the name of vLLM's class, what makes text of control tokens in its prompts.
_WAYS: dict[str, Callable[[Any, Policy], None]] = {
    "HfRenderer": _hf,
    "DeepseekV32Renderer": _deepseek,
    "DeepseekV4Renderer": _deepseek,
    "CohereRenderer": _cohere,
    "InklingRenderer": _inkling,
    "KimiK3Renderer": _kimi_k3,
    "MistralRenderer": _mistral,
}
