"""What a family is: its tree, its plans, what is shown of it and voted for. Pure."""
