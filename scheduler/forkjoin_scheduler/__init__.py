"""Fork/join as decisions over plain data; only ``vllm_seam`` knows vLLM."""
