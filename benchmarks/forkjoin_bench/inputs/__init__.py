"""What is measured on: traces, the texts and tokens that they are made of, and the models."""
