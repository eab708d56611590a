"""What a body may be made of. It takes its reader time by the values in it, not by its bytes.

All of it is read on the event loop, where nobody else is served meanwhile.
"""

from __future__ import annotations

import json
from typing import Any

from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.excerpt import cut
from forkjoin_server.asgi import Json

#: Commas of a body, those in its texts included: more than a prompt of a million token ids has.
MAX_COMMAS = 1_500_000
#: Of a request's id, which goes with each token of each of its threads to the engine and back.
MAX_ID_CHARS = 256
#: What the engine gets of a request beside its prompt, with each answer again.
MAX_BESIDE_PROMPT_BYTES = 64 << 20
#: Of a number that is sent to an engine, beside its sign.
MAX_BITS = 63
#: Where a body has its prompt.
_PROMPTS = (
    "messages", "prompt", "input", "token_ids", "tools", "prompt_embeds", "features", "content_parts",
    "query", "items",
)  # fmt: skip

#: What JSON calls what Python reads of it.
_KINDS = {
    list: "a list", str: "a string", int: "a number", float: "a number", bool: "a boolean", type(None): "null"
}  # fmt: skip


def read_json(raw: bytes, max_objects: int) -> Json | None:
    """The object that ``raw`` is as JSON, None if it is no JSON.

    Raises BadRequestOptions for one of too many values, for JSON that is no object, of which some of vLLM's
    routes would make a 500, and for JSON that Python does not read: of another encoding, with numbers of
    thousands of digits, nested too deeply.
    """
    if raw.count(b",") > MAX_COMMAS:
        raise BadRequestOptions(f"the body: expected at most {MAX_COMMAS} values in it, got more: send fewer")
    try:
        given = json.loads(raw)
    except json.JSONDecodeError:
        return None
    except (ValueError, RecursionError) as error:
        raise BadRequestOptions(
            "the body: expected JSON in UTF-8, with lists and objects in fewer of each other and numbers of "
            f"fewer digits, got {cut(str(error), 100)}"
        ) from error
    if not isinstance(given, dict):
        raise BadRequestOptions(f"the body: expected a JSON object, got {_KINDS[type(given)]}: send {{…}}")
    # A brace or a colon in a text is none of an object: most bodies have fewer of either.
    if max(raw.count(b"{"), raw.count(b":")) > max_objects:
        _check_objects(given, max_objects)
    return given


def _check_objects(given: Json, most: int) -> None:
    """Raise BadRequestOptions if ``given`` has too many objects in it, or one of too many keys."""
    num = num_keys = 0
    left: list[Any] = [given]
    while left:  # no recursion: how deep it nests is the client's choice
        item = left.pop()
        if isinstance(item, dict):
            num, num_keys = num + 1, max(num_keys, len(item))
        left += [
            i for i in (item.values() if isinstance(item, dict) else item) if isinstance(i, (dict, list))
        ]
    if max(num, num_keys) > most:
        raise BadRequestOptions(
            f"the body: expected at most {most} objects in it, messages and their parts, and as many keys of "
            f"each (the server's --max-body-objects), got {num} and {num_keys} keys: send fewer"
        )


def check_request_id(request_id: object) -> None:
    """Raise BadRequestOptions if the id that a client gives is too long, or can't be printed."""
    if isinstance(request_id, str) and len(request_id) > MAX_ID_CHARS:
        raise BadRequestOptions(
            f"the request's id: expected at most {MAX_ID_CHARS} characters, got {len(request_id)}"
        )
    if isinstance(request_id, str) and not request_id.isprintable():
        raise BadRequestOptions("the request's id: expected characters that can be printed, got others")


def check_beside_prompt(body: Json, num_bytes: int, num_answers: int) -> None:
    """Raise BadRequestOptions if ``body``, of ``num_bytes``, says too much beside its prompt."""
    if num_bytes * num_answers <= MAX_BESIDE_PROMPT_BYTES:
        return
    beside = len(json.dumps({name: value for name, value in body.items() if name not in _PROMPTS}))
    if beside * num_answers > MAX_BESIDE_PROMPT_BYTES:
        raise BadRequestOptions(
            f"the body: expected at most {MAX_BESIDE_PROMPT_BYTES} bytes beside the prompt, for each answer "
            f"again, got {beside} for {num_answers} answers: ask for fewer answers, or say less"
        )
