"""When what runs: admission of requests, threads of a step. Pure: facts in, a decision out."""
