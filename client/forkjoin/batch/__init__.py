"""``forkjoin run-batch``: a file of requests in, a file of answers out, in the shapes of OpenAI's batches."""
