"""What each option of ``vllm serve`` means for forks: one table, which the doctor and the docs read.

``verdict.py`` says what can be said of an option, ``table.py`` says it of the options that matter to forks.
``others.py`` lists those that do not touch fork/join, and those that nobody tested with it. ``checks.py``
is the doctor's. ``compat.REFUSED`` of the scheduler refuses what is refused; the rules name its sentences.
A test fails while vLLM has an option that is in none of the lists, or in two.
"""
