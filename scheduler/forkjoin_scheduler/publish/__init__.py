"""The events of families, typed, and the log, spans and texts made of them."""
