"""What we time. Never part of the tests: `make bench` runs it, and `python -m benchmarks --help` explains it."""
