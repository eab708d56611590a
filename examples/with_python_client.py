"""Our own Python client: an answer as typed events, and the tree of its threads.

    pip install ./client
    python examples/with_python_client.py

OPENAI_BASE_URL is the server's address, by default http://localhost:8000/v1.
"""

import os

from forkjoin import Client, Finished, Forked, Joined, ThreadDelta, ThreadEnded

unfinished: dict[int, str] = {}
with (
    Client(os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1")) as client,
    client.stream("a=482*731, b=9047*36", model="abacus", temperature=0) as events,
):
    for event in events:
        match event:
            case Forked(threads=threads):
                print("forks into", [thread.title for thread in threads])
            case ThreadDelta(index=index, text=text):
                *lines, unfinished[index] = (unfinished.get(index, "") + text).split("\n")
                for line in lines:
                    print(f"thread {index}: {line}")
            case ThreadEnded(index=index, completion_tokens=num_tokens):
                print(f"thread {index} ends after {num_tokens} tokens")
            case Joined(threads=joined):
                print("joins", list(joined))
            case Finished(answer=answer):
                for depth, thread in answer.walk():
                    print("  " * depth, thread.title, "wrote", len(thread.content.split("\n")), "lines")
                print(answer.content.rpartition("</think>\n")[2])
                counts = answer.usage.forkjoin
                print(
                    f"{counts.num_threads} threads: {counts.critical_path_tokens} steps "
                    f"instead of {counts.total_tokens}"
                )
