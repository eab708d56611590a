"""HTTP in, SSE out: vLLM's own OpenAI server with fork/join beside it."""
