"""How the front end knows the log-probability of a token that the engine wrote, not the model.

vLLM's channel has no place for such a mark. So the value itself is the mark: the least normal number of
32 bits, which no sampler gives and which reads as the 0.0 that it stands for wherever nobody looks for it.
"""

#: The log-probability of an injected token, exact in 32 and in 64 bits.
INJECTED_LOGPROB = 2.0**-126
