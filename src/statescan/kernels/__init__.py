"""Fast bodies of the operators: `cpu` binds the compiled C library, `triton` holds one file an operator.

Nothing here is public: users call `statescan.ops`, which chooses.
"""
