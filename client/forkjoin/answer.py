"""An answer and its threads, as they are so far or as they ended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from forkjoin.tree.tree import Tree

#: The ``parent_id`` of the threads that the request itself forked.
ROOT = "root"

#: A count of tokens or threads, of a size that can be reckoned with.
Count = Annotated[int, Field(ge=0, le=10**12)]


class _Part(BaseModel):
    # What a later server adds is kept.
    model_config = ConfigDict(extra="allow")


class ThreadUsage(_Part):
    """What one thread generated."""

    completion_tokens: Count


class Thread(_Part):
    """One thread of an answer: an entry of ``message.threads``."""

    index: int = Field(description="Number of the thread in the answer, in the order of starting.")
    id: str = Field(description="Id of the thread.")
    parent_id: str = Field(default=ROOT, description="Id of the thread that forked it, or `root`.")
    title: str = Field(default="", description="Title from the outline or the branch.")
    content: str = Field(default="", description="Text that it wrote so far.")
    finish_reason: str | None = Field(default=None, description="Why it ended. None while it runs.")
    usage: ThreadUsage | None = Field(default=None, description="What it used. None while it runs.")


class Vote(_Part):
    """The outcome of a best-of-N request."""

    index: int
    result: str | None = None


class KeptUsage(_Part):
    """Whether an answer is kept, as its request asked with ``keep``."""

    tokens: Count
    seconds: float
    #: Why it is not kept. None: it is.
    refused: str | None = None


class ForkJoinUsage(_Part):
    """What forking gave."""

    num_threads: Count = 0
    #: The parent's own tokens and, of each fork, the longest thread's.
    critical_path_tokens: Count = 0
    total_tokens: Count = 0
    #: Of ``total_tokens``, those that the tree has which the request goes on from. None: there is no tree.
    given_tokens: Count | None = None
    vote: Vote | None = None
    kept: KeptUsage | None = None
    #: What the request found of the kept answer that it goes on from: `kept`, or why it is kept no more.
    continued: str | None = None


class Usage(_Part):
    """What an answer cost, each generated token counted once."""

    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    total_tokens: Count = 0
    forkjoin: ForkJoinUsage | None = None


class Answer(BaseModel):
    """A chat completion of one choice, as it is so far."""

    id: str = Field(default="", description="Id of the chat completion.")
    model: str = Field(default="", description="Name of the model.")
    content: str = Field(default="", description="The transcript, as a stock client sees it.")
    reasoning: str = Field(default="", description="The reasoning, with a reasoning parser.")
    tool_calls: list[dict[str, Any]] = Field(
        default_factory=list, description="Tool calls, in the shape of OpenAI's `message.tool_calls`."
    )
    threads: list[Thread] = Field(default_factory=list, description="All threads, by their `index`.")
    finish_reason: str | None = Field(default=None, description="Why the answer ended. None until then.")
    usage: Usage | None = Field(default=None, description="What it used. None until the server sends it.")
    tree: Tree | None = Field(
        default=None, description="Its tree. None until it has ended, and without `return_tree`."
    )

    @field_validator("threads")
    @classmethod
    def _are_a_tree(cls, threads: list[Thread]) -> list[Thread]:
        if len({ROOT, *(thread.id for thread in threads)}) != len(threads) + 1:
            raise ValueError(f"expected threads of different ids, none of them {ROOT!r}")
        return threads

    def children(self, parent_id: str = ROOT) -> list[Thread]:
        """The threads that ``parent_id`` forked, in their order."""
        return [thread for thread in self.threads if thread.parent_id == parent_id]

    def walk(self, parent_id: str = ROOT, depth: int = 0) -> Iterator[tuple[int, Thread]]:
        """Each thread below ``parent_id`` with its depth, parents before their children."""
        for thread in self.children(parent_id):
            yield depth, thread
            yield from self.walk(thread.id, depth + 1)

    @classmethod
    def of(cls, completion: Any) -> Answer:
        """The answer that a chat completion holds which was not streamed. Raises ValueError if it is none."""
        try:
            choice = completion["choices"][0]
            message = choice["message"]
            fields = {
                "id": completion.get("id") or "",
                "model": completion.get("model") or "",
                "content": message.get("content") or "",
                "reasoning": message.get("reasoning") or message.get("reasoning_content") or "",
                "tool_calls": message.get("tool_calls") or [],
                "threads": message.get("threads") or [],
                "finish_reason": choice.get("finish_reason"),
                "usage": completion.get("usage"),
                "tree": choice.get("tree"),
            }
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"no chat completion: {error!r}") from error
        return cls.model_validate(fields)
