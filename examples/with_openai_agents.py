"""The OpenAI SDK's beta for several agents: a thread is an agent that is spawned, writes, and is waited for.

    pip install openai
    python examples/with_openai_agents.py

`multi_agent` is OpenAI's own field, so code for it needs no change. At most two agents run at a time here.
OPENAI_BASE_URL is the server's address, by default http://localhost:8000/v1.
"""

import json
import os

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"), api_key="none")
events = client.beta.responses.create(
    model="abacus",
    input="a=482*731, b=9047*36, c=218*654",
    temperature=0,
    multi_agent={"enabled": True, "max_concurrent_subagents": 2},
    betas=["responses_multi_agent=v1"],
    stream=True,
)

for event in events:
    agent = event.agent.agent_name
    if event.type == "response.output_item.done" and event.item.type == "multi_agent_call":
        print(f"{agent}: {event.item.action} {json.loads(event.item.arguments)}")
    elif event.type == "response.reasoning_text.done":
        print(f"{agent} found {event.text.partition('</Thread>')[0].split()[-1]}")
    elif event.type == "response.output_text.done":
        print(event.text.rpartition("</think>\n")[2])
