"""Around vLLM's routes: the middleware that holds a request's way together, and the routes that are ours."""
