"""vLLM's OpenAI server with fork/join: command line, request field, thread streams, metrics."""
