"""What sub-agents gain that go on from a kept answer: counted, and in seconds."""
