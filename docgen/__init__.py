"""What of the docs site is made from the code and from files that lie elsewhere in the repository."""
