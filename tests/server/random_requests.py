"""Random requests of all routes that count, and what must hold of every answer to one, streamed or not."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

CHAT, BATCH, COMPLETIONS = "/v1/chat/completions", "/v1/chat/completions/batch", "/v1/completions"
RESPONSES = "/v1/responses"
PROMPTS = ("a=482*731, b=9047*36", "a=7*8", "a=48*36, b=57*18, c=12*34", "a=12*34, b=7*8, c=56*78")
#: From within the outlines, the threads and behind them; the last for all of it.
MAX_TOKENS = (1, 7, 40, 47, 60, 120, 200, 333, 489, 900)


@dataclass(frozen=True)
class Ask:
    """One request; ``budget``: tokens that all its answers together may have."""

    path: str
    body: Json
    num_answers: int
    budget: int
    can_stream: bool

    @classmethod
    def drawn(cls, seed: int) -> Ask:
        """The request of that number."""
        chance = random.Random(f"ask {seed}")
        path = chance.choice([CHAT, CHAT, CHAT, COMPLETIONS, BATCH, RESPONSES])
        forkjoin, num_per_answer, cap = _forkjoin(chance)
        max_tokens = chance.choice(MAX_TOKENS)
        prompts = chance.sample(PROMPTS, chance.choice([1, 2]) if path in (COMPLETIONS, BATCH) else 1)
        n = chance.choice([1, 1, 2]) if path in (CHAT, COMPLETIONS) else 1
        body: Json = {"temperature": 0, "forkjoin": forkjoin}
        body["max_output_tokens" if path == RESPONSES else "max_tokens"] = max_tokens
        if n > 1:
            body |= {"n": n, "temperature": 0.3, "seed": seed}  # vLLM refuses two greedy choices
        if path in (CHAT, COMPLETIONS, BATCH) and chance.random() < 0.25:
            body["stop"] = chance.choice([["352"], ["\n3"], ["8"]])
        if (path == CHAT and n == 1) or path == RESPONSES:
            forkjoin["include_threads"] = chance.random() < 0.5
        body |= _prompt(path, prompts)
        num_answers = n * len(prompts)
        each = min(max_tokens * num_per_answer, cap or max_tokens * num_per_answer)
        return cls(path, body, num_answers, each * num_answers, path != BATCH)


def _forkjoin(chance: random.Random) -> tuple[Json, int, int | None]:
    """The field, how many times max_tokens an answer may have, and its own limit."""
    best_of = chance.choice([1, 2, 3])
    kinds: list[tuple[Json, int]] = [
        ({}, 1),
        ({"best_of": best_of, "vote": r"\d+"}, best_of),
        ({"best_of": best_of, "vote": r"\d+", "confidence": 1.0, "prune": "agreement"}, best_of),
        ({"branches": [{"text": "a="}, {"title": "b"}]}, 1),
        ({"branches": [{"text": "a="}, {"title": "b"}], "closing": "So"}, 1),
        ({"enabled": False}, 1),
        ({"max_forks": 0}, 1),
    ]
    given, times = chance.choices(kinds, weights=[8, 2, 1, 2, 2, 1, 1])[0]
    cap = chance.choice([None, None, 1, 5, 52, 300])
    limits = {} if cap is None else {"max_total_tokens": cap}
    if chance.random() < 0.2:
        limits["max_tokens_per_thread"] = chance.choice([1, 20])
    return given | limits, times, cap


def _prompt(path: str, prompts: list[str]) -> Json:
    if path == RESPONSES:
        return {"input": prompts[0]}
    if path == COMPLETIONS:
        return {"prompt": [f"<|user|>{p}<|assistant|>" for p in prompts]}
    chats = [[{"role": "user", "content": p}] for p in prompts]
    return {"messages": chats if path == BATCH else chats[0]}


@dataclass
class Answers:
    """What came of a request: of each answer its text, and every end that it was told."""

    texts: dict[int, str] = field(default_factory=dict)
    ends: dict[int, list[str]] = field(default_factory=dict)
    threads: list[Json] = field(default_factory=list)
    usage: Json = field(default_factory=dict)

    def add(self, index: int, text: str | None, end: str | None) -> None:
        """``index`` goes on with ``text``, and ends so if ``end`` says how."""
        self.texts[index] = self.texts.get(index, "") + (text or "")
        self.ends.setdefault(index, []).extend([end] if end else [])

    def add_thread(self, entry: Json) -> None:
        """An entry of a thread, as it comes in a stream."""
        if entry["index"] == len(self.threads):
            self.threads.append({"content": "", "index": entry["index"]})
        thread = self.threads[entry["index"]]
        assert "finish_reason" not in thread, f"an entry behind the end of its thread: {entry}"
        more = {k: v for k, v in entry.items() if k not in ("id", "parent_id")}
        self.threads[entry["index"]] = (
            thread | more | {"content": thread["content"] + entry.get("content", "")}
        )


def _known(usage: Json) -> Json:
    """``usage`` without what vLLM leaves open: it writes ``null`` in whole answers, and nothing in chunks."""
    return {name: value for name, value in usage.items() if value is not None}


def read_whole(path: str, response: Json) -> Answers:
    """An answer that is not streamed."""
    answers = Answers(usage=_known(response["usage"]))
    if path == RESPONSES:
        _read_response(answers, response)
        return answers
    for choice in response["choices"]:
        message = choice.get("message", {})
        answers.add(choice["index"], choice.get("text", message.get("content")), choice["finish_reason"])
        for thread in message.get("threads") or []:
            answers.add_thread(thread)
    return answers


def read_chunks(path: str, chunks: list[Json]) -> Answers:
    """The chunks of a stream put together."""
    answers = Answers()
    for chunk in chunks:
        if path == RESPONSES:
            if chunk["type"] == "response.output_text.delta":
                answers.add(0, chunk["delta"], None)
            if chunk["type"] in ("response.completed", "response.incomplete", "response.failed"):
                final = read_whole(path, chunk["response"])
                said = answers.texts.get(0, "")
                assert final.texts[0] == said, "the deltas are not the text of the response"
                answers = final
            continue
        answers.usage = _known(chunk.get("usage") or answers.usage)
        for choice in chunk["choices"]:
            delta = choice.get("delta", {})
            answers.add(choice["index"], choice.get("text", delta.get("content")), choice["finish_reason"])
            for entry in delta.get("threads") or []:
                answers.add_thread(entry)
    return answers


def _read_response(answers: Answers, response: Json) -> None:
    text = ""
    for item in response["output"]:
        content = "".join(part["text"] for part in item["content"])
        if "thread" in item:
            answers.threads.append(item["thread"] | {"content": content})
        else:
            text += content
    answers.threads = [
        {k: v for k, v in t.items() if k not in ("id", "parent_id")}
        for t in sorted(answers.threads, key=lambda t: t["index"])
    ]
    answers.add(0, text, response["status"])


def check(ask: Ask, answers: Answers) -> None:
    """Raise AssertionError unless the counts and the ends of an answer are right in themselves."""
    usage = answers.usage
    word = "output_tokens" if ask.path == RESPONSES else "completion_tokens"
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    assert usage[word] <= ask.budget, f"{usage[word]} tokens of {ask.budget}"
    assert usage["total_tokens"] == prompt + usage[word]
    if "forkjoin" in usage:
        assert usage["forkjoin"]["total_tokens"] == usage[word]
        assert usage["forkjoin"]["critical_path_tokens"] <= usage[word]
    assert sorted(answers.ends) == list(range(ask.num_answers))
    assert all(len(ends) == 1 for ends in answers.ends.values()), f"not one end each: {answers.ends}"
    assert all("finish_reason" in thread for thread in answers.threads)
    is_models_own = not {"branches", "best_of", "enabled", "max_forks"} & ask.body["forkjoin"].keys()
    for thread in answers.threads if is_models_own else []:
        is_cut = "</Thread>" not in thread["content"]
        assert (thread["finish_reason"] == "length") == is_cut, f"is cut: {is_cut}, but says {thread}"
    if is_models_own and "stop" not in ask.body:
        for text in answers.texts.values():
            if "<Thread>" in text:  # it forked: what is cut there is closed
                assert text.count("<Thread>") == text.count("</Thread>"), text
