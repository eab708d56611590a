"""The figures of the docs: each is drawn from a run, by ``python -m docgen.figures``."""
