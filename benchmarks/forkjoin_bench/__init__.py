"""The benchmark harness: several systems, one traffic, the same forced tokens (``docs/benchmarks.md``).

A trace (``inputs/traces.py``) is what a model writes, fork for fork. It is compiled for a tokenizer
(``inputs/script.py``), so that whatever context an engine is asked to go on from, a logits processor
(``vllm_seam/replay.py``) makes it write the trace's next token. So every system (``systems/``) generates the
same tokens, and only how it goes about it differs. Traffic (``comparison/traffic.py``) asks the systems in
turn; each engine's scheduler writes down its steps (``vllm_seam/recording.py``), from which, and from what
the client saw, everything is measured (``comparison/``).
"""
