"""Does our model compute what the published code computes? ``python -m tests.parity PATH…`` tells."""
