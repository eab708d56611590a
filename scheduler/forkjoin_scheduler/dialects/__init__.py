"""What a model speaks: its dialect as a file, checked, and bound to the tokenizer that reads it."""
