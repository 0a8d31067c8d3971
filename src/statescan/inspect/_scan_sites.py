"""The selective scans of an image model while it reads one image: what went in, what came out, over which cells they walked.

A scan is linear in its input once its step sizes, B and C are given: y_i = sum_j alpha_ij x_j with
alpha_ij = C_i (product of exp(dt_m A) over m from j + 1 to i) dt_j B_j, a matrix for every channel. This is the implicit
attention of Ali, Zimerman and Wolf 2024, "The Hidden Attention of Mamba Models", arXiv 2403.01590.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from statescan import ops
from statescan.layers import BidirectionalMamba, Mamba
from statescan.layers.grid import PatchTokens, RouteScan
from statescan.models._vision import VisionModel


@dataclass
class ScanSite:
    """One scan over the cells of a grid, along one or several walks, of one image.

    Fields:
        name: of the module in the model.
        shape: rows and columns of the grid.
        order: (walks, length), which cell each walk comes to at each time; class tokens are numbered after the cells, and
            -1 is padding.
        x, delta: input and step sizes after bias and softplus, (length, walks, channels).
        A: (walks, channels, states).
        B, C: (length, walks, groups, states), a group for neighbouring channels.
        y: output (length, walks, channels), before gates, without the direct path D.
        gradient: of a class's score by y, shaped like it; None where no class was asked for.
    """

    name: str
    shape: tuple[int, int]
    order: Tensor
    x: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    y: Tensor
    gradient: Tensor | None = None

    @property
    def cells(self) -> int:
        """Of the grid."""
        return self.shape[0] * self.shape[1]

    def read_by(self, weights: Tensor) -> Tensor:
        """For weights (length, walks, channels) of the outputs: sum_i weights_i alpha_ij, of every channel, shaped alike.

        Computed by the adjoint of the scan, so without the matrices.
        """
        length, walks, channels = self.x.shape
        leaf = torch.zeros_like(self.x).flatten(1)[None].requires_grad_()
        with torch.enable_grad():
            y = ops.selective_scan(
                leaf,
                self.delta.flatten(1)[None],
                self.A.flatten(0, 1),
                self.B.flatten(1, 2)[None],
                self.C.flatten(1, 2)[None],
            )
            assert isinstance(y, Tensor)
            (found,) = torch.autograd.grad((y[0] * weights.flatten(1)).sum(), leaf)
        return found[0].view(length, walks, channels)

    def attention(self, cell: int) -> Tensor:
        """How much a cell has read of every other along each walk: |alpha| averaged over channels, (walks, all cells).

        Cells that a walk does not come to have zero.
        """
        weights = torch.zeros_like(self.x)
        for walk, order in enumerate(self.order):
            weights[order == cell, walk] = 1.0
        return self.placed(self.read_by(weights).abs().mean(-1))

    def relevance(self) -> Tensor:
        """What each cell's input added, through the scan, to what was asked for: (walks, all cells).

        sum over i and channels of gradient_i alpha_ij x_j; positive where it spoke for it.

        Raises:
            ValueError: nothing was asked for.
        """
        if self.gradient is None:
            raise ValueError("relevance: run with a class first; see `scan_sites`")
        return self.placed((self.read_by(self.gradient) * self.x).sum(-1))

    def placed(self, values: Tensor) -> Tensor:
        """Values (length, walks) where they belong: (walks, cells and class tokens)."""
        count = max(self.cells, int(self.order.max()) + 1)
        out = values.new_zeros(self.order.shape[0], count + 1)
        index = self.order.where(self.order >= 0, torch.full_like(self.order, count))
        return out.scatter(1, index, values.T)[:, :count]

    def grid(self, values: Tensor) -> Tensor:
        """Values (..., all cells) without class tokens, as (..., rows, columns)."""
        return values[..., : self.cells].unflatten(-1, self.shape)


@dataclass(frozen=True)
class Reading:
    """What a model did with one image.

    Fields:
        sites: its scans, in the order in which they ran.
        scores: (classes,); empty for models without a head.
        chosen: the class that `relevance` is about; None where none was asked for.
        unknown: modules with scans over something else than walks of the grid that are known here.
    """

    sites: list[ScanSite]
    scores: Tensor
    chosen: int | None
    unknown: list[str]


def scan_sites(model: Any, image: Tensor, *, decision: int | str | None = None) -> Reading:
    """Run an image model on one image and keep its scans.

    Arguments:
        model: an image model, in float32.
        image: (1, channels, height, width).
        decision: class whose score is asked for, ``best`` for that of the highest score; None for no gradients.

    Raises:
        ValueError: no image model, more than one image, a class that does not exist, or no scan whose walk is known.
    """
    if not isinstance(model, VisionModel):
        raise ValueError(f"model: an image model, got {type(model).__name__}")
    if image.ndim != 4 or len(image) != 1:
        raise ValueError(f"image: one image, (1, channels, height, width), got {tuple(image.shape)}")
    config: Any = model.config
    if (
        getattr(config, "shuffle", False)
        or getattr(config, "flip_probability", 0)
        or getattr(model, "alternates", False)
    ):
        raise ValueError(
            f"model: {model.family} changes the order of its tokens between blocks; their places are not known"
        )
    recorder = _Recorder(model)
    training = model.training
    model.eval()
    chosen = None
    with recorder.listening(), torch.enable_grad():
        scores = model(image.detach().clone().requires_grad_())
    scores = scores[0] if isinstance(scores, (list, tuple)) else scores
    if not recorder.kept:
        others = ", ".join(sorted(set(recorder.unknown))) or "none"
        raise ValueError(
            f"model: {model.family} has no selective scan over cells whose order is known; its scans: {others}"
        )
    if decision is not None:
        if scores.ndim != 2 or not scores.shape[1]:
            raise ValueError("decision: the model has no classes")
        chosen = int(scores[0].argmax()) if decision == "best" else int(decision)
        if not 0 <= chosen < scores.shape[1]:
            raise ValueError(f"decision: a class from 0 to {scores.shape[1] - 1}, or best, got {decision}")
        found = torch.autograd.grad(scores[0, chosen], [kept.output for kept in recorder.kept], allow_unused=True)
        for kept, gradient in zip(recorder.kept, found, strict=True):
            kept.site.gradient = torch.zeros_like(kept.site.x) if gradient is None else kept.walked(gradient)
    model.train(training)
    known = scores.detach()[0] if scores.ndim == 2 else torch.empty(0)
    return Reading([kept.site for kept in recorder.kept], known, chosen, recorder.unknown)


@dataclass
class _Kept:
    """A site, the operator's output in the graph, and how its gradient is brought to (length, walks, channels)."""

    site: ScanSite
    output: Tensor
    walked: Callable[[Tensor], Tensor]


@dataclass
class _Frame:
    """A module that is running, and how many scans it has asked for so far."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    scans: int = 0


class _Recorder(TorchFunctionMode):
    """Listens to the operators while a model runs, and knows which modules are running."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.kept: list[_Kept] = []
        self.unknown: list[str] = []
        self.stack: list[_Frame] = []
        #: Cells of the sequence that token models hand through their blocks, and the grid.
        self.tokens: tuple[Tensor, tuple[int, int]] | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hooks on every module, and this mode, for as long as it lasts."""
        handles = []
        for name, module in self.model.named_modules():

            def enter(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                self.stack.append(_Frame(name, module, args, kwargs))

            def leave(module: nn.Module, args: Any, output: Any) -> None:
                self.stack.pop()
                if isinstance(module, PatchTokens) and output is not None:
                    self.tokens = _places(module, *output[1:])

            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave, always_call=True))
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        name = str(function)
        if name.startswith("statescan.route_scan"):
            self._route_scan(out[0], *args)
        elif name.startswith("statescan.selective_scan"):
            self._selective_scan(out[0], *args)
        elif name.startswith(("statescan.ssd", "statescan.local_scan")) and self.stack:
            self.unknown.append(type(self.stack[-1].module).__name__)
        return out

    def _route_scan(self, y: Tensor, *args: Any) -> None:
        x, delta, A, B, C, _, bias, order, softplus = (_plain(part) for part in args[:9])
        grid = next((shape for frame in reversed(self.stack) if (shape := _grid(frame, x.shape[1]))), None)
        if grid is None or len(x) != 1:
            self.unknown.append(type(self.stack[-1].module).__name__)
            return
        walks, width = order.shape[0], x.shape[2]
        time = order.clamp(min=0).T[..., None]  # (length, walks, 1)
        there = (order >= 0).T[..., None]

        def walk(cells: Tensor) -> Tensor:
            """(cells, walks, channels) -> (length, walks, channels), zero in padding."""
            return cells.gather(0, time.expand(-1, -1, cells.shape[2])) * there

        delta = walk(delta[0]) if bias is None else walk(delta[0]) + bias.view(walks, width)
        self._keep(
            y,
            lambda gradient: walk(gradient[0]),
            grid,
            order,
            walk(x[0, :, None].expand(-1, walks, -1)),
            F.softplus(delta) if softplus else delta,
            A.view(walks, width, -1),
            walk(B[0])[:, :, None],
            walk(C[0])[:, :, None],
        )

    def _selective_scan(self, y: Tensor, *args: Any) -> None:
        x, delta, A, B, C, _, z, bias, start, resets, offsets, softplus = (_plain(part) for part in args[:12])
        batch, length, channels = x.shape
        found = None if A.is_complex() or any(part is not None for part in (start, resets, offsets)) else self._order(x)
        for frame in self.stack:
            frame.scans += 1
        if found is None:
            self.unknown.append(type(self.stack[-1].module).__name__ if self.stack else "?")
            return
        order, grid = found
        walks = len(order)
        apart = batch == walks > 1  # each walk is a row of the batch
        width = channels if apart else channels // walks

        def walk(rows: Tensor) -> Tensor:
            return rows.transpose(0, 1) if apart else rows[0].view(length, walks, width)

        def groups(rows: Tensor) -> Tensor:
            if rows.ndim == 2:  # constant
                rows = rows.expand(batch, length, -1, -1)
            if apart:
                return rows.transpose(0, 1)
            return (
                rows[0].view(length, walks, -1, rows.shape[-1])
                if rows.shape[2] >= walks
                else rows[0, :, None].expand(-1, walks, -1, -1)
            )

        delta = delta if bias is None else delta + bias
        gate = None if z is None else F.silu(z)
        self._keep(
            y,
            lambda gradient: walk(gradient if gate is None else gradient * gate),
            grid,
            order,
            walk(x),
            walk(F.softplus(delta) if softplus else delta),
            A.expand(walks, -1, -1) if apart else A.view(walks, width, -1),
            groups(B),
            groups(C),
        )

    def _keep(
        self,
        output: Tensor,
        walked: Callable[[Tensor], Tensor],
        grid: tuple[int, int],
        order: Tensor,
        x: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
    ) -> None:
        with torch.no_grad():
            y = ops.selective_scan(
                x.flatten(1)[None].contiguous(),
                delta.flatten(1)[None].contiguous(),
                A.flatten(0, 1),
                B.flatten(1, 2)[None],
                C.flatten(1, 2)[None],
            )
        assert isinstance(y, Tensor)
        name = self.stack[-1].name if self.stack else ""
        site = ScanSite(name, grid, order, x, delta, A, B, C, y[0].view_as(x))
        self.kept.append(_Kept(site, output, walked))

    def _order(self, x: Tensor) -> tuple[Tensor, tuple[int, int]] | None:
        """The walks (walks, length) of a scan by the modules that are running, and the grid."""
        batch, length, channels = x.shape
        inner = self.stack[-1]
        for frame in reversed(self.stack):
            for route, shape, place in _routes(frame):
                table = route.table(*shape, device=x.device)
                if place is not None:
                    token = torch.full((len(table), 1), shape[0] * shape[1], device=x.device)
                    table = torch.cat([table[:, :place], token, table[:, place:]], 1)
                fits = (batch == 1 and channels % len(table) == 0) or batch == len(table)
                if table.shape[1] == length and fits:
                    return table, shape
            if isinstance(frame.module, (Mamba, BidirectionalMamba)) and self.tokens is not None and batch == 1:
                order, shape = self.tokens
                if len(order) != length:
                    return None
                backwards = inner.name.endswith(".backwards") or (inner is frame and frame.scans == 1)
                if getattr(self.model.config, "mixer", None) == "pairs":
                    backwards ^= int(frame.name.split(".")[1]) % 2 == 1
                return (order.flip(0) if backwards else order)[None], shape
        return None


def _routes(frame: _Frame) -> list[tuple[Any, tuple[int, int], int | None]]:
    """Routes that a running module may walk, the grid, and where a class token stands in them."""
    module: Any = frame.module
    first = frame.args[0] if frame.args else None
    shape = frame.kwargs.get("shape")
    place = frame.kwargs.get("place")
    if isinstance(first, Tensor) and first.ndim == 4:
        shape = (int(first.shape[1]), int(first.shape[2]))
    if shape is None:
        return []
    if isinstance(module, RouteScan) and len(frame.args) > 1:
        return [(frame.args[1], shape, None)]
    several = getattr(module, "routes", None)
    if several:
        return [(several[frame.scans % len(several)], shape, None)]
    route = getattr(module, "route", None)
    return [(route, shape, place)] if hasattr(route, "table") else []


def _grid(frame: _Frame, cells: int) -> tuple[int, int] | None:
    """Rows and columns of a running module's input, if it is a grid of so many cells."""
    first = frame.args[0] if frame.args else None
    if not isinstance(first, Tensor) or first.ndim != 4 or first.shape[1] * first.shape[2] != cells:
        return None
    return int(first.shape[1]), int(first.shape[2])


def _places(tokens: PatchTokens, shape: tuple[int, int], indices: list[int]) -> tuple[Tensor, tuple[int, int]]:
    """The cell of each token of the sequence; class tokens are numbered after the cells."""
    order = tokens.route.table(*shape)[0].cpu().tolist()
    for number, index in enumerate(indices):
        order.insert(index, shape[0] * shape[1] + number)
    return torch.tensor(order), shape


def _plain(part: Any) -> Any:
    return part.detach() if isinstance(part, Tensor) else part
