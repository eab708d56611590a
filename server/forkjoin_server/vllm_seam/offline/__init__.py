"""vLLM's ``LLM`` with fork/join and trees, without a server."""
