"""The life of a family's threads, from what a branch writes to what it joins."""
