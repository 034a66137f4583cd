"""What we time. Never part of the tests: `make bench` runs it."""
