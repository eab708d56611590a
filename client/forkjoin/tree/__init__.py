"""An answer as a tree of tokens: what was computed, in which context, at which positions.

Needs the standard library only. ``tree.py`` has what programs use.
"""
