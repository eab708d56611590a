"""What touches the KV cache: blocks taken, held, moved, recomputed and given back."""
