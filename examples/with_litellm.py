"""LiteLLM: the threads of an answer, which it keeps beside the fields that it knows.

    pip install litellm
    python examples/with_litellm.py

OPENAI_BASE_URL is the server's address, by default http://localhost:8000/v1.
"""

import os

import litellm

answer = litellm.completion(
    model="openai/abacus",  # any server that speaks OpenAI's API
    api_base=os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"),
    api_key="none",
    messages=[{"role": "user", "content": "a=482*731, b=9047*36"}],
    temperature=0,
    extra_body={"forkjoin": {"include_threads": True}},
)
message = answer.choices[0].message
for thread in message.provider_specific_fields["threads"]:
    print(f"--- thread {thread['index']}: {thread['title']}, {thread['usage']['completion_tokens']} tokens")
    print(thread["content"])
print(message.content.rpartition("</think>\n")[2])

counts = answer.usage.forkjoin
print("{num_threads} threads: {critical_path_tokens} steps instead of {total_tokens}".format(**counts))
