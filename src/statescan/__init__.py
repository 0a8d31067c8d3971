"""State-space models: operators, layers and published systems, to train, load, decode and serve."""

__version__ = "0.1.0"
