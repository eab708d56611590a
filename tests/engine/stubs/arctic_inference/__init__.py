"""In the place of arctic-inference, which needs a GPU's toolchain to install: what vLLM calls of it."""
