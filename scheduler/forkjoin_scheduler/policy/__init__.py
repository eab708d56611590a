"""Who starts, who runs, who gives way, who is stopped. Pure: facts in, a decision out."""
