"""``forkjoin doctor``: what a server with these flags would meet, without starting an engine.

Each file looks at one thing and tells it in checks; ``examine`` puts them together. What serving
refuses, the same code refuses here.
"""
