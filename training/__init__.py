"""The embedded model: its task, its tokenizer, its training and its evaluation."""
