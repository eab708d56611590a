"""Requests of clients: what they ask for, when they start, what waits."""
