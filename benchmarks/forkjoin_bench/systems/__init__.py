"""What is compared. Each answers the same families; see ``base.py`` for what that takes."""
