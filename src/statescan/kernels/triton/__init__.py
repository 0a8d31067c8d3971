"""Triton kernels, one file an operator; imported when an operator first meets a CUDA tensor.

On a machine without a GPU they run in Triton's interpreter: set `TRITON_INTERPRET=1` before Python starts.
"""
