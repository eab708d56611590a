"""One engine in virtual time: its parts, and the step that they make together."""
