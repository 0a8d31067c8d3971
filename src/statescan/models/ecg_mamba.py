"""1DCNN-ECG-Mamba: abnormalities of 12-lead electrocardiograms, several at once. arXiv 2510.13046 (2025).

Peculiar: strided convolutions over time turn the leads into some hundred tokens, which Vim's bidirectional blocks read.
No code was published; what the paper leaves open (kernels, strides, widths of the convolutions) is our choice. Records of
any length are read part by part with `RecordStream`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from statescan.layers import BidirectionalMamba, Mamba, RMSNorm, State, initialise_language_model
from statescan.layers.grid import drop_path_rates
from statescan.models._model import Model
from statescan.models._registry import Family
from statescan.models.vim import TokenBlock


@dataclass(frozen=True)
class EcgMambaConfig:
    """An ECG Mamba.

    Arguments:
        leads: channels of a record.
        num_classes: scores; each class is there or not by itself.
        length: samples of training, of which positions are made.
        dim: channels of the tokens.
        depth: Vim blocks; 0 for a convolutional network alone.
        stem_kernels, stem_strides: of the convolutions over time; kernels are odd.
        stem_dims: their channels, the last being dim; dim / 4, dim / 2, …, dim unless given.
        direction: ``both``, or ``forward``: causal blocks, whose state says all about the past.
        class_token: a token in the middle that the head reads; else it reads the mean.
        position: whether tokens have learned positions, interpolated for other lengths.
        dropout: after positions are added.
        drop_path_rate: how often the last block is skipped by a sample in training; earlier ones less.
        state_dim, conv_kernel, expand: of the mixers.
        norm_eps: of the norms.
    """

    leads: int = 12
    num_classes: int = 26
    length: int = 5000
    dim: int = 192
    depth: int = 24
    stem_kernels: tuple[int, ...] = (15, 7, 5)
    stem_strides: tuple[int, ...] = (5, 2, 2)
    stem_dims: tuple[int, ...] | None = None
    direction: Literal["both", "forward"] = "both"
    class_token: bool = True
    position: bool = True
    dropout: float = 0.0
    drop_path_rate: float = 0.0
    state_dim: int = 16
    conv_kernel: int = 4
    expand: float = 2
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("leads", "num_classes", "length", "dim", "state_dim"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: a positive whole number, got {value!r}")
        if self.depth < 0:
            raise ValueError(f"depth: at least 0, got {self.depth}")
        if len(self.stem_kernels) != len(self.stem_strides) or not self.stem_kernels:
            raise ValueError(
                f"stem_kernels, stem_strides: as many of one as of the other and at least one, got {self.stem_kernels} "
                f"and {self.stem_strides}"
            )
        if any(kernel < 1 or kernel % 2 == 0 for kernel in self.stem_kernels):
            raise ValueError(f"stem_kernels: odd numbers, got {self.stem_kernels}")
        if any(stride < 1 for stride in self.stem_strides):
            raise ValueError(f"stem_strides: at least 1 each, got {self.stem_strides}")
        if self.stem_dims is not None and (
            len(self.stem_dims) != len(self.stem_kernels) or self.stem_dims[-1] != self.dim
        ):
            raise ValueError(
                f"stem_dims: {len(self.stem_kernels)} numbers, the last being dim={self.dim}, got {self.stem_dims}"
            )
        if self.direction not in ("both", "forward"):
            raise ValueError(f"direction: unknown {self.direction!r}; known: both, forward")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the convolutions."""
        last = len(self.stem_kernels) - 1
        return self.stem_dims or tuple(max(1, self.dim // 2 ** (last - i)) for i in range(last + 1))

    @property
    def stride(self) -> int:
        """Samples from one token to the next."""
        return math.prod(self.stem_strides)

    def tokens(self, length: int) -> int:
        """How many tokens so many samples make, class tokens not counted: (length - 1) // stride + 1."""
        return (length - 1) // self.stride + 1

    @property
    def reach(self) -> int:
        """Samples on either side of its own that a token sees."""
        jump, reach = 1, 0
        for kernel, stride in zip(self.stem_kernels, self.stem_strides, strict=True):
            reach += kernel // 2 * jump
            jump *= stride
        return reach


class StemBlock(nn.Module):
    """relu(norm(conv(x))) over time, channels last; length L becomes (L - 1) // stride + 1."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int):
        super().__init__()
        self.convolution = nn.Conv1d(channels, out, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm1d(out)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, channels) -> (batch, shorter length, out)."""
        return torch.relu(self.norm(self.convolution(x.transpose(1, 2)))).transpose(1, 2)


class EcgMamba(Model):
    """Records (batch, length, leads) -> scores of the classes (batch, num_classes), each before its own sigmoid.

    Arguments:
        config: an `EcgMambaConfig`.
    """

    family = "ecg_mamba"
    undecayed = (*Model.undecayed, ".position", ".class_token")

    def __init__(self, config: EcgMambaConfig):
        super().__init__(config)
        channels = (config.leads, *config.widths)
        self.stem = nn.Sequential(
            *(
                StemBlock(channels[i], channels[i + 1], config.stem_kernels[i], config.stem_strides[i])
                for i in range(len(config.stem_kernels))
            )
        )
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.dim)) if config.class_token else None
        count = config.tokens(config.length) + config.class_token
        self.position = nn.Parameter(torch.zeros(1, count, config.dim)) if config.position else None
        for parameter in (self.class_token, self.position):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)
        self.dropout = nn.Dropout(config.dropout)
        options: dict[str, Any] = dict(state_dim=config.state_dim, conv_kernel=config.conv_kernel, expand=config.expand)
        kind: Any = BidirectionalMamba if config.direction == "both" else Mamba
        rates = [0.0, *drop_path_rates(config.drop_path_rate, [config.depth])[0]] if config.depth else []
        self.blocks = nn.ModuleList(
            TokenBlock(kind(config.dim, **options), RMSNorm(config.dim, config.norm_eps), drop_path=rates[index])
            for index in range(config.depth)
        )
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.gradient_checkpointing = False
        initialise_language_model(self, depth=max(1, config.depth))
        self.head = nn.Linear(config.dim, config.num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def tokens(self, records: Tensor) -> Tensor:
        """records (batch, length, leads) -> tokens (batch, tokens, dim), the class token among them."""
        self.check(records)
        x = self.stem(records)
        own, position = self._positions(x.shape[1])
        x = x if position is None else x + position
        if self.class_token is not None:
            middle = x.shape[1] // 2
            token = self.class_token if own is None else self.class_token + own
            x = torch.cat([x[:, :middle], token.expand(len(x), -1, -1).to(x.dtype), x[:, middle:]], 1)
        return self.dropout(x)

    def _positions(self, count: int) -> tuple[Tensor | None, Tensor | None]:
        """The class token's (1, 1, dim) and those of so many tokens (1, count, dim), where there are any."""
        if self.position is None:
            return None, None
        trained = self.config.tokens(self.config.length)
        table: Tensor = self.position
        own = None
        if self.class_token is not None:
            place = trained // 2
            own, table = table[:, place : place + 1], torch.cat([table[:, :place], table[:, place + 1 :]], 1)
        if count != trained:
            table = nn.functional.interpolate(table.transpose(1, 2), count, mode="linear").transpose(1, 2)
        return own, table

    def encode(self, hidden: Tensor) -> Tensor:
        """Tokens (batch, tokens, dim) through blocks and last norm, to the same shape."""
        residual: Tensor | None = None
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                hidden, residual = checkpoint(block, hidden, residual, use_reentrant=False)  # type: ignore[misc]
            else:
                hidden, residual = block(hidden, residual)
        return self._normed(hidden, residual)

    def encode_chunk(self, hidden: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """As `encode`, of the next part of the tokens; see `RecordStream` for the way back."""
        residual: Tensor | None = None
        after: dict[str, Tensor | State] = {}
        for index, module in enumerate(self.blocks):
            block: Any = module
            residual = hidden if residual is None else residual + hidden
            residual = residual if residual.dtype == torch.float64 else residual.float()
            read = block.mixer.chunk if self.config.direction == "both" else block.mixer
            before = state[str(index)] if state else None
            hidden, after[str(index)] = read(block.norm(residual.to(block.norm.weight.dtype)), before)
        return self._normed(hidden, residual), State(after)

    def _normed(self, hidden: Tensor, residual: Tensor | None) -> Tensor:
        whole = hidden if residual is None else residual + hidden
        weight: Any = self.norm.weight
        return self.norm(whole.to(weight.dtype))

    def forward_features(self, records: Tensor) -> Tensor:
        """records (batch, length, leads) -> tokens after the last norm (batch, tokens, dim)."""
        return self.encode(self.tokens(records))

    def forward_head(self, features: Tensor) -> Tensor:
        """Those -> scores (batch, num_classes)."""
        pooled = features[:, (features.shape[1] - 1) // 2] if self.config.class_token else features.mean(1)
        return self.head(pooled)

    def forward(self, records: Tensor) -> Tensor:
        """records (batch, length, leads) -> scores before the sigmoid (batch, num_classes)."""
        return self.forward_head(self.forward_features(records))

    def check(self, records: Tensor) -> None:
        """Raise unless these are records of this many leads."""
        if records.ndim != 3 or records.shape[2] != self.config.leads or not records.shape[1]:
            raise ValueError(
                f"records: expected (batch, length, {self.config.leads}), at least one sample long, got "
                f"{tuple(records.shape)}"
            )

    def set_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping what it computed."""
        self.gradient_checkpointing = enabled


class RecordStream:
    """Reads a record of any length in constant memory: samples come in as they are there, scores come out a part at a time.

    The convolutions overlap from part to part, so that tokens are those of the whole record. Forward scans carry their
    state. With direction ``forward`` the scores of the whole record are therefore those of one call on all of it. Backward
    scans begin anew at the end of each part, as they did at the end of each training example; of a record of one part the
    scores are those of one call.

    Arguments:
        model: in evaluation, without class token and positions, which belong to one length.
        samples: in a part, rounded up to whole tokens; the length of training unless given.
        batch: records that are read side by side.

    Raises:
        ValueError: for another model.
    """

    def __init__(self, model: EcgMamba, *, samples: int | None = None, batch: int = 1):
        config = model.config
        if model.training:
            raise ValueError("model: in training its norms depend on the batch; call model.eval() first")
        if config.class_token or config.position:
            raise ValueError(
                "model: a class token and positions belong to records of one length; build with class_token=False, "
                "position=False"
            )
        samples = config.length if samples is None else samples
        if samples < 1:
            raise ValueError(f"samples: at least 1, got {samples}")
        self.model = model
        self._count = config.tokens(samples)
        # Whole strides that hold all that a token sees on one side.
        self._margin = -(-config.reach // config.stride) * config.stride
        weight = model.head.weight
        self._held = weight.new_zeros(batch, 0, config.leads)
        self._before = 0  # samples of `held` that are there for the overlap alone
        self._state: State | None = None
        self._sum = weight.new_zeros(batch, config.dim, dtype=torch.promote_types(weight.dtype, torch.float32))
        self._tokens = 0

    @property
    def nbytes(self) -> int:
        """Bytes that are carried from one part to the next: samples of the overlap, states, the sum of the tokens."""
        tensors = [self._held, self._sum, *(tensor for _, tensor in (self._state or State()).tensors())]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @property
    def samples(self) -> int:
        """Of a part."""
        return self._count * self.model.config.stride

    @property
    def tokens(self) -> int:
        """Tokens read so far."""
        return self._tokens

    @property
    def scores(self) -> Tensor:
        """Scores (batch, num_classes) of everything that was read so far, from the mean of its tokens."""
        if not self._tokens:
            raise ValueError("scores: nothing was read yet; push more samples, or finish")
        return self.model.head((self._sum / self._tokens).to(self.model.head.weight.dtype))

    @torch.no_grad()
    def push(self, samples: Tensor) -> list[Tensor]:
        """Read on: samples (batch, any length, leads) -> scores (batch, num_classes) of each part that became whole."""
        if samples.shape[1]:
            self.model.check(samples)
        self._held = torch.cat([self._held, samples.to(self._held)], 1)
        stride, found = self.model.config.stride, []
        while self._held.shape[1] >= self._before + self._count * stride + self._margin:
            found.append(self._read(self._count, self._before + self._count * stride + self._margin))
            keep = self._before + self._count * stride - self._margin
            start = max(0, keep)
            self._before = self._before + self._count * stride - start
            self._held = self._held[:, start:].clone()
        return found

    @torch.no_grad()
    def finish(self) -> list[Tensor]:
        """Read what is left: the record ends here. Scores of the last part, if there is one."""
        config, found = self.model.config, []
        left = config.tokens(self._held.shape[1]) - self._before // config.stride if self._held.shape[1] else 0
        while left > 0:
            count = min(left, self._count)
            found.append(self._read(count, self._held.shape[1]))
            self._before += count * config.stride
            left -= count
        self._held = self._held[:, :0]
        self._before = 0
        return found

    def _read(self, count: int, end: int) -> Tensor:
        first = self._before // self.model.config.stride
        tokens = self.model.stem(self._held[:, :end])[:, first : first + count]
        encoded, self._state = self.model.encode_chunk(tokens, self._state)
        total = encoded.sum(1, dtype=torch.promote_types(encoded.dtype, torch.float32))
        self._sum = self._sum + total
        self._tokens += count
        return self.model.head((total / count).to(self.model.head.weight.dtype))


VARIANTS: dict[str, dict[str, Any]] = {
    "ecg_mamba_tiny": dict(dim=32, depth=2, state_dim=8, class_token=False, position=False),
    "ecg_mamba": dict(),
    "ecg_mamba_small": dict(dim=384),
    "ecg_mamba_stream": dict(direction="forward", class_token=False, position=False),
}


def _same(tensors: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Nothing was published; our names are the only ones."""
    return dict(tensors)


FAMILY = Family("ecg_mamba", EcgMambaConfig, EcgMamba, VARIANTS, _same, _same)
