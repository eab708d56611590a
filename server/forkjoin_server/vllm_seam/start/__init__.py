"""What of vLLM a server is started with: its command line, configuration, processes and logs."""
