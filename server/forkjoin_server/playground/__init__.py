"""The playground: a page that shows in a browser how an answer forks and joins."""
