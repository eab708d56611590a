"""What touches the KV cache: blocks taken, held, moved, computed anew and given back."""
