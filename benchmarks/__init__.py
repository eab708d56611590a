"""Measurements of the engine, each a script that prints its table and writes it as JSON."""
