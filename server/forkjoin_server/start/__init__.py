"""What a server is started with: flags over environment over file, made into one command line of vLLM's."""
