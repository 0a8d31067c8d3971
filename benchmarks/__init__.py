"""Measurements, one module an operator or a claim; ``python -m benchmarks`` runs those that need no GPU."""
