"""What is made of a simulation: numbers, a table, plots."""
