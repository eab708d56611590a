"""What ``forkjoin verify`` runs in processes of its own: an engine, and transformers as a reference."""
