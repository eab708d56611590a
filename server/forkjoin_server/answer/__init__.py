"""The answer out: thread events woven into vLLM's response, in each route's own form."""
