"""LangChain: a chain whose model forks. The threads are the answer's blocks of reasoning.

    pip install langchain-openai
    python examples/with_langchain.py

OPENAI_BASE_URL is the server's address, by default http://localhost:8000/v1.
"""

import os

from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

model = ChatOpenAI(
    model="abacus",
    base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"),
    api_key="none",
    temperature=0,
    use_responses_api=True,  # LangChain drops the threads of a chat completion
    extra_body={"forkjoin": {"include_threads": True}},
)
chain = ChatPromptTemplate.from_messages([("user", "a={a}, b={b}")]) | model

message = chain.invoke({"a": "482*731", "b": "9047*36"})
num_tokens = []
for block in message.content:
    if block["type"] == "reasoning":
        thread = block["thread"]
        num_tokens.append(thread["usage"]["completion_tokens"])
        print(f"--- thread {thread['index']}: {thread['title']}, {num_tokens[-1]} tokens")
        print(block["content"][0]["text"])
print(message.text.rpartition("</think>\n")[2])

total = message.usage_metadata["output_tokens"]
steps = total - sum(num_tokens) + max(num_tokens)  # of one fork
print(f"{len(num_tokens)} threads: {steps} steps instead of {total}")
