"""What of vLLM a request passes on its way in: its head, prompt, grammar, tools, and what refuses it."""
