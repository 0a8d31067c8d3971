"""One module a family; each has a table ``ADAPTERS`` from a published class (or function) to its adapter.

An adapter takes a `tests.parity._fixture.Fixture`, builds our model from the published arguments alone, loads the
published weights strictly, runs the fixture's inputs and returns the outputs by name.
"""
