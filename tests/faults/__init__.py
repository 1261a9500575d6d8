"""What a store survives: real processes, real signals. `python -m tests.faults` prints a table."""
