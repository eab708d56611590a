"""The OpenAI SDK: an answer with its threads, and the same question without forks.

    pip install openai
    python examples/with_openai.py

The SDK has no parameter for threads: `extra_body` asks for them. It keeps the fields that it does not know.
OPENAI_BASE_URL is the server's address, by default http://localhost:8000/v1.
"""

import os
import time

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"), api_key="none")


def ask(**forkjoin):
    """The answer, and the seconds that it took."""
    start = time.perf_counter()
    answer = client.chat.completions.create(
        model="abacus",
        messages=[{"role": "user", "content": "a=482*731, b=9047*36"}],
        temperature=0,
        extra_body={"forkjoin": {"include_threads": True, **forkjoin}},
    )
    return answer, time.perf_counter() - start


for name, (answer, seconds) in {"forked": ask(), "sequential": ask(enabled=False)}.items():
    print(f"--- {name}, {seconds:.2f} s")
    message, counts = answer.choices[0].message, answer.usage.forkjoin
    for thread in message.threads:
        print(f"thread {thread['index']}: {thread['title']}, {thread['usage']['completion_tokens']} tokens")
    print(message.content.rpartition("</think>\n")[2])
    print("{num_threads} threads: {critical_path_tokens} steps instead of {total_tokens}".format(**counts))
