"""Registering an operator and its gradient with `torch.library`.

One registered operator computes, a second its gradient; both ask the operator's table for a body. So `torch.compile`,
`torch.export` and FSDP see two opaque nodes, with shapes from `fake`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from statescan.ops._dispatch import LIBRARY, Operator


def define(
    operator: Operator,
    arguments: str,
    *,
    inputs: int,
    outputs: int,
    fake: Callable[..., tuple[Tensor, ...]],
    check: Callable[..., None] | None = None,
    saves: bool = False,
    layouts: Mapping[int, Callable[[Tensor], Tensor]] | None = None,
) -> None:
    """Define ``statescan::NAME`` and ``statescan::NAME_backward``.

    Arguments:
        operator: its table; implementations take the registered arguments, give a tuple of `outputs` tensors, and their
            `backward` takes the gradients of the outputs (None where there is none), then the arguments, and gives the
            gradients of the first `inputs` arguments (None where an argument is absent).
        arguments: the schema's arguments: differentiable tensors first, then other tensors, then options.
        inputs: how many are differentiable.
        outputs: how many tensors come out.
        fake: shapes of all that comes out.
        check: looks at values before an implementation runs, where tensors are real.
        saves: after the outputs comes one more tensor, which no caller reads: `backward` takes it after the gradients.
        layouts: by index of an input, how its gradient lies in memory where that is not contiguous: an empty tensor, of
            any device, from the input.
    """
    name = operator.name
    tensors = sum(part.strip().startswith("Tensor") for part in arguments.split(","))
    grads = ", ".join(f"Tensor? grad_{i}" for i in range(outputs)) + (", Tensor saved" if saves else "")
    results, leading = outputs + saves, outputs + saves
    LIBRARY.define(f"{name}({arguments}) -> ({', '.join(['Tensor'] * results)})")
    LIBRARY.define(f"{name}_backward({grads}, {arguments}) -> ({', '.join(['Tensor'] * inputs)})")
    layouts = layouts or {}

    def laid(index: int, gradient: Tensor | None, argument: Tensor | None, like: Tensor) -> Tensor:
        """A gradient as the registered operator returns it: its input's shape and type; empty where there is no input.
        Compiled code counts on the strides that `fake` announced."""
        if argument is None:
            return like.new_empty(0)
        if gradient is not None and index not in layouts:
            return gradient.to(argument.dtype).contiguous()
        announced = layouts.get(index, _contiguous)(argument)
        if gradient is None:
            return announced
        if gradient.stride() == announced.stride() and gradient.dtype == argument.dtype:
            return gradient
        return torch.empty_like(announced, dtype=argument.dtype, device=argument.device).copy_(gradient)

    def run(*args: Any) -> Any:
        if check is not None:
            check(*args)
        found = operator.choose(*args).forward(*args)
        return found if results > 1 else found[0]

    def run_backward(*args: Any) -> Any:
        given, rest = args[:leading], args[leading:]
        implementation = operator.choose(*rest)
        assert implementation.backward is not None
        found = implementation.backward(*given, *rest)
        filled = tuple(laid(i, g, t, rest[0]) for i, (g, t) in enumerate(zip(found, rest[:inputs], strict=True)))
        return filled if inputs > 1 else filled[0]

    def fake_forward(*args: Any) -> Any:
        found = fake(*args)
        return found if results > 1 else found[0]

    def fake_backward(*args: Any) -> Any:
        rest = args[leading:]
        filled = tuple(laid(i, None, t, rest[0]) for i, t in enumerate(rest[:inputs]))
        return filled if inputs > 1 else filled[0]

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:tensors], *([output[-1]] if saves else []))
        ctx.options = inputs[tensors:]

    def differentiate(ctx: Any, *given: Tensor | None) -> tuple[Any, ...]:
        if all(grad is None for grad in given[:outputs]):
            return (None,) * (tensors + len(ctx.options))
        kept = ctx.saved_tensors  # read once: checkpointing recomputes at the first reading and refuses a second
        saved, extra = kept[:tensors], kept[tensors:]
        found = getattr(torch.ops.statescan, f"{name}_backward")(*given[:outputs], *extra, *saved, *ctx.options)
        found = found if inputs > 1 else (found,)
        present = [g if t is not None else None for g, t in zip(found, saved[:inputs], strict=True)]
        return (*present, *[None] * (tensors - inputs + len(ctx.options)))

    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    LIBRARY.impl(f"{name}_backward", run_backward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"statescan::{name}", fake_forward, lib=LIBRARY)
    torch.library.register_fake(f"statescan::{name}_backward", fake_backward, lib=LIBRARY)
    torch.library.register_autograd(f"statescan::{name}", differentiate, setup_context=save, lib=LIBRARY)
    operator.body, operator.registered = run, getattr(torch.ops.statescan, name)


def _contiguous(argument: Tensor) -> Tensor:
    return torch.empty_like(argument, memory_format=torch.contiguous_format)
