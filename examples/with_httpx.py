"""Plain HTTP with httpx: read the stream yourself, and print each line of a thread as soon as it is whole.

    pip install httpx
    python examples/with_httpx.py

OPENAI_BASE_URL is the server's address, by default http://localhost:8000/v1.
"""

import json
import os

import httpx

URL = os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1")
BODY = {
    "model": "abacus",
    "messages": [{"role": "user", "content": "a=482*731, b=9047*36"}],
    "temperature": 0,
    "stream": True,
    "stream_options": {"include_threads": True, "include_usage": True},
}

answer, usage, unfinished = "", {}, {}
with httpx.stream("POST", f"{URL}/chat/completions", json=BODY, timeout=300) as response:
    if response.is_error:
        raise SystemExit(response.read().decode())
    for event in response.iter_lines():
        if not event.startswith("data: ") or event == "data: [DONE]":
            continue
        chunk = json.loads(event.removeprefix("data: "))
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            answer += choice["delta"].get("content") or ""
            for piece in choice["delta"].get("threads", []):
                index = piece["index"]
                *lines, unfinished[index] = (unfinished.get(index, "") + piece.get("content", "")).split("\n")
                for line in lines:
                    print(f"thread {index}: {line}")

print(answer.rpartition("</think>\n")[2])
counts = usage["forkjoin"]
print("{num_threads} threads: {critical_path_tokens} steps instead of {total_tokens}".format(**counts))
