"""pydantic-ai: an agent with a typed result. The threads are parts of its thinking.

    pip install 'pydantic-ai-slim[openai]'
    python examples/with_pydantic_ai.py

OPENAI_BASE_URL is the server's address, by default http://localhost:8000/v1.
"""

import os
import re

from pydantic_ai import Agent, TextOutput, ThinkingPart
from pydantic_ai.models.openai import OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider


def products(text: str) -> dict[str, int]:
    """The results in an answer, which has lines such as `a=352342 (2)`."""
    return {
        letter: int(product) for letter, product in re.findall(r"^(\w)=(\d+) \(", text, flags=re.MULTILINE)
    }


url = os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1")
agent = Agent(
    OpenAIResponsesModel("abacus", provider=OpenAIProvider(base_url=url, api_key="none")),
    output_type=TextOutput(products),
    model_settings={"temperature": 0, "extra_body": {"forkjoin": {"include_threads": True}}},
)

result = agent.run_sync("a=482*731, b=9047*36")
threads = [part for part in result.response.parts if isinstance(part, ThinkingPart)]
for thread in threads:
    print("--- thread", thread.id)
    print(*thread.provider_details["raw_content"])
print(result.output)
print(f"{len(threads)} threads, {result.usage.output_tokens} tokens")
