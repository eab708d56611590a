"""Answers that are kept after their end, for requests that go on from them."""
