"""What is told of families: typed events, and what the log, the spans and the streams are made of."""
