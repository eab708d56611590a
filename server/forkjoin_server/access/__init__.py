"""Who may ask, and how much: API keys, the routes that need none, and what one key may have in flight."""
