"""Foreign weights: the segmenter of the package `typeseg`, six Mamba layers trained in JAX, in layers of statescan.

    pip install typeseg==0.2.7
    python examples/typeseg_weights.py FILE...

prints which lines of each file are of which type (Python, SQL, HTML, …). docs/foreign_weights.md explains every step.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from statescan import ops
from statescan.layers import Mamba, ResidualBlock, ResidualStack, State

PLACEHOLDER = 128  # the token of every byte that is neither printable ASCII, a tab nor a line's end


class BidirectionalMamba(Mamba):
    """typeseg's mixer: one set of weights scans forwards and backwards; the convolution sees two positions ahead."""

    lookahead, smallest_step = 2, 1e-4

    def __init__(self, dim: int, **options: Any):
        super().__init__(dim, **options)
        rows, columns = self.selection_projection.weight.shape
        self.selection_projection = nn.Linear(columns, rows)  # with a bias, which Mamba's has not

    def forward(
        self, x: Tensor, state: State | None = None, *, resets: Tensor | None = None, offsets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """x (batch, length, dim) -> output of the same shape; there is no state to go on from."""
        if state is not None or resets is not None or offsets is not None:
            raise ValueError("this mixer reads a whole text in both directions: no state, resets or offsets")
        hidden, gate = self.input_projection(x).chunk(2, dim=-1)
        # A causal convolution that is read two positions late sees two positions ahead.
        hidden = self.convolution(F.pad(hidden, (0, 0, 0, self.lookahead)))[0][:, self.lookahead :]
        delta, B, C = self._select(hidden)
        delta = F.softplus(delta + self.delta_bias) + self.smallest_step
        forwards = (hidden, delta, B, C, gate)
        backwards = [tensor.flip(1) for tensor in forwards]
        return self.output_projection(self._scan(*forwards) + self._scan(*backwards).flip(1)), State()

    def _scan(self, hidden: Tensor, delta: Tensor, B: Tensor, C: Tensor, gate: Tensor) -> Tensor:
        return ops.selective_scan(hidden, delta, self._A(), B, C, self.D, gate)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """There is none: what comes later is needed now."""
        raise NotImplementedError("a bidirectional mixer has no step")


class Segmenter(nn.Module):
    """Tokens (batch, length) below 130 -> logits (batch, length, types)."""

    def __init__(self, types: int, *, dim: int = 256, depth: int = 6):
        super().__init__()
        self.embedding = nn.Embedding(130, dim)
        mixers = [BidirectionalMamba(dim, expand=1, dt_rank=16, bias=True) for _ in range(depth)]
        self.stack = ResidualStack([ResidualBlock(mixer, nn.LayerNorm(dim, eps=1e-6)) for mixer in mixers])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, types)

    def forward(self, tokens: Tensor) -> Tensor:
        """One row of logits a token."""
        return self.head(self.norm(self.stack(self.embedding(tokens))[0]))


MODULES = {
    "Embed_0": "embedding",
    "LayerNorm_0": "norm",
    "Dense_0": "head",
}
BLOCK_MODULES = {
    "LayerNorm_0": "norm",
    "Dense_0": "mixer.input_projection",
    "Conv_0": "mixer.convolution",
    "Dense_1": "mixer.selection_projection",
    "Dense_2": "mixer.delta_projection",
    "Dense_3": "mixer.output_projection",
}
PARAMETERS = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


def from_typeseg(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """typeseg's names and layouts to ours."""
    ours = {}
    for name, array in arrays.items():
        *block, parameter = name.split("__")
        tensor = torch.from_numpy(np.asarray(array, dtype=np.float32))
        if parameter == "kernel":
            # Dense kernels are (inputs, outputs); convolution kernels (taps, 1, channels).
            tensor = tensor.squeeze(1).T if tensor.ndim == 3 else tensor.T
        prefix, modules = "", MODULES
        if block[0].startswith("CheckpointMambaBlock1D_"):
            prefix, modules = f"stack.blocks.{block.pop(0).rpartition('_')[2]}.", BLOCK_MODULES
        if not block:  # A_log and D stand in the block itself
            ours[f"{prefix}mixer.{parameter}"] = tensor
        elif (*block, parameter) == ("Dense_2", "bias"):
            ours[f"{prefix}mixer.delta_bias"] = tensor  # our step's bias is no part of its projection
        else:
            ours[f"{prefix}{modules[block[0]]}.{PARAMETERS[parameter]}"] = tensor.contiguous()
    return ours


def load_segmenter(types: int) -> Segmenter:
    """The segmenter with the weights of the installed package."""
    with (files("typeseg") / "data" / "mamba_al.npz").open("rb") as file:
        tensors = from_typeseg(np.load(file))
    with torch.device("meta"):
        model = Segmenter(types)
    model.load_state_dict(tensors, strict=True, assign=True)
    return model.eval()


def tokens_of(text: str) -> Tensor:
    """A text as typeseg's tokens (1, bytes)."""
    raw = torch.frombuffer(bytearray(text.encode("utf-8")), dtype=torch.uint8).long()
    readable = ((raw >= 0x20) & (raw < 0x7F)) | (raw == 0x09) | (raw == 0x0A) | (raw == 0x0D)
    return torch.where(readable, raw, PLACEHOLDER)[None]


@torch.inference_mode()
def byte_probabilities(model: Segmenter, text: str) -> Tensor:
    """The probability of every type for every byte of a text: (bytes, types)."""
    return model(tokens_of(text))[0].softmax(dim=-1)


def main(paths: list[str]) -> None:
    """Print which lines of each file are of which type."""
    import typeseg

    labels = typeseg.precise(" ").labels
    model = load_segmenter(len(labels))
    for path in paths:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
        if not text:
            continue
        types = byte_probabilities(model, text).argmax(dim=-1).tolist()
        lines, start = [], 0
        for line in text.splitlines(keepends=True):
            end = start + len(line.encode("utf-8"))
            votes = types[start:end]
            lines.append(labels[max(set(votes), key=votes.count)])
            start = end
        print(path)
        number = 1
        for label, run in groupby(lines):
            count = len(list(run))
            print(f"  {number:>5}-{number + count - 1:<5}  {label}")
            number += count


if __name__ == "__main__":
    main(sys.argv[1:])
