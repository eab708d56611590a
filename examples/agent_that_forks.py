"""An agent that forks its context: four subtasks run side by side, and it compares what they found.

    pip install ./client
    python examples/agent_that_forks.py

The agent plans a thread for each product, and one that checks it with the factors swapped. Each of these
`branches` goes on from the same context, whose KV cache is computed once. A larger model would sum up what
they wrote: give it the words that its answer begins with as `closing`.
OPENAI_BASE_URL is the server's address, by default http://localhost:8000/v1.
"""

import os
import re

from forkjoin import Branch, Client, ForkJoin

CONTEXT = "a=482*731, b=264*905"
PLAN = {"work out a": "a=482*731", "work out b": "b=264*905", "check a": "c=731*482", "check b": "d=905*264"}

# A branch begins in the words of this model.
branches = [Branch(title=title, text=f"<think>\na1 b1\n{problem}\n") for title, problem in PLAN.items()]

with Client(os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1")) as client:
    answer = client.ask(CONTEXT, temperature=0, forkjoin=ForkJoin(branches=branches))

for thread in answer.threads:
    print(f"--- {thread.title}, {thread.usage.completion_tokens} tokens")
    print(thread.content.partition("\n</think>")[0])

# A worksheet ends in its letter and its product.
written = "\n".join(thread.content for thread in answer.threads)
found = {letter: int(product) for letter, product in re.findall(r"^(\w):(\d+)$", written, flags=re.MULTILINE)}
for letter, check in {"a": "c", "b": "d"}.items():
    agree = found[letter] == found[check]
    print(f"{letter}={found[letter]}:", "checked" if agree else f"the check found {found[check]}")
counts = answer.usage.forkjoin
print(f"{counts.num_threads} threads: {counts.critical_path_tokens} steps instead of {counts.total_tokens}")
