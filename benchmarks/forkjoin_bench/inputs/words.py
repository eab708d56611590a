"""Text of a given number of tokens, which any way of tokenising it gives back."""

from __future__ import annotations

import random

from forkjoin_scheduler.dialects.tokenizer import Tokenizer

#: Common words: most vocabularies have each of them, with the space before it, as one token.
COMMON = """
    the of and to in is that it was for on are as with they be at one have this from or had by
    but some what there we can out other were all your when up use word how said an each she
    which do their time if will way about many then them would write like so these her long make
    thing see him two has look more day could go come did my sound no most number who over know
"""
#: Where words are not tokens, letters are: the alphabet of a byte-level vocabulary.
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Words:
    """Writes random text, in tokens of ``tokenizer``."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        spaced = [f" {word}" for word in COMMON.split()]
        self._pieces = [w for w in spaced if len(tokenizer.encode(w)) == 1] or list(LETTERS)

    def text(self, rng: random.Random, num_tokens: int) -> str:
        """``num_tokens`` tokens of text."""
        return "".join(rng.choice(self._pieces) for _ in range(num_tokens))
