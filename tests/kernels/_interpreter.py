"""Triton's interpreter, made quicker: scans and reductions combine a row of elements at a time, not one element, and
the language is not patched anew for every helper that a kernel calls.

Only the speed differs. Where the interpreter of another Triton version is built otherwise, it is left as it is.
"""

from __future__ import annotations

import numpy as np


def _combine(self, left, right, dtypes):
    pairs = [self.to_tensor(a, dtype) for side in (left, right) for a, dtype in zip(side, dtypes, strict=True)]
    result = self.combine_fn.fn(*pairs)
    return [r.handle.data for r in (result if isinstance(result, tuple) else (result,))]


def _generic_scan(self, tensors):
    dtypes = [t.dtype for t in tensors]
    data = [np.moveaxis(t.handle.data, self.axis, 0) for t in tensors]
    outputs = [np.empty_like(d) for d in data]
    state = [d[0] for d in data]
    for i in range(len(data[0])):
        if i:
            state = _combine(self, state, [d[i] for d in data], dtypes)
        for output, s in zip(outputs, state, strict=True):
            output[i] = s
    return [
        self.to_tensor(np.ascontiguousarray(np.moveaxis(output, 0, self.axis)), dtype)
        for output, dtype in zip(outputs, dtypes, strict=True)
    ]


def quicken() -> None:
    """Put the quick forms in place."""
    from triton.runtime import interpreter

    scan, reduce = getattr(interpreter, "ScanOps", None), getattr(interpreter, "ReduceOps", None)
    if not (hasattr(scan, "generic_scan") and hasattr(reduce, "generic_reduce")):
        return
    slow_reduce = reduce.generic_reduce

    def _generic_reduce(self, tensors):
        if self.axis is None:
            return slow_reduce(self, tensors)
        dtypes = [t.dtype for t in tensors]
        data = [np.moveaxis(t.handle.data, self.axis, 0) for t in tensors]
        state = [d[0] for d in data]
        for i in range(1, len(data[0])):
            state = _combine(self, state, [d[i] for d in data], dtypes)
        return [
            self.to_tensor(np.expand_dims(s, self.axis) if self.keep_dims else s, dtype)
            for s, dtype in zip(state, dtypes, strict=True)
        ]

    function, patched = interpreter.InterpretedFunction, set()
    patching_call = function.__call__

    def _call(self, *args, **kwargs):
        module = self.fn.__module__
        if module.startswith("triton.") and module not in patched:  # these patches outlive a launch, ours do not
            patched.add(module)
            return patching_call(self, *args, **kwargs)
        return self.rewrite()(*args, **kwargs)

    function.__call__ = _call
    scan.generic_scan, reduce.generic_reduce = _generic_scan, _generic_reduce
