"""The benchmark harness: several systems, one traffic, the same forced tokens (``docs/benchmarks.md``).

A trace (``traces.py``) is what a model writes, fork for fork. It is compiled for a tokenizer
(``script.py``), so that whatever context an engine is asked to go on from, a logits processor
(``replay.py``) makes it write the trace's next token. So every system (``systems/``) generates the
same tokens, and only how it goes about it differs. Traffic (``traffic.py``) asks the systems in
turn; each engine's scheduler writes down its steps (``recording.py``), from which, and from what
the client saw, everything is measured (``steps.py``, ``measures.py``).
"""
