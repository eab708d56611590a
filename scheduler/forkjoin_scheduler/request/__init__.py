"""What a request asks for: the options of its field, in tokens, the forks it defines, whose it is."""
