"""How the threads of a fork come together: one file a kind. Pure."""
