"""Reading far beyond the training length without training. LongMamba (ICLR 2025), arXiv 2504.16053.

Channels whose memory outlasts a sequence of the training length are global. Over a longer one their state decays more than
it ever did in training. So tokens of small steps are filtered out of them, until the decay is that of the training length:
thresholds for that, by channel and length, come from a calibration.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.generation._progress import progress_bar
from statescan.generation._token_filters import keep_above

Combination = Literal["average", "max"]
COMBINATIONS: tuple[Combination, ...] = ("average", "max")
#: The file of a calibration, beside the checkpoint.
FILE_NAME = "longmamba.safetensors"
_FORMAT = "statescan.longmamba"
#: Lengths of the published tables over the training length (1,000 to 192,000 for 2,000).
_FACTORS = (
    *(0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 10, 12, 15, 18, 22, 27, 32, 40, 48, 60, 72, 84, 96),
)  # fmt: skip
_FIELDS = ("log_decay", "budget", "share", "threshold")


@dataclass(frozen=True)
class ChannelCalibration:
    """What calibration says of one mixer's channels (heads, of Mamba-2).

    Fields:
        log_decay: (channels,): logarithm of what is left of the state after a sequence of the training length.
        budget: (channels,): sum of the steps, clamped, over such a sequence.
        share: (lengths, channels): share of the tokens that are kept.
        threshold: (lengths, channels): a token is kept where its step is larger.
    """

    log_decay: Tensor
    budget: Tensor
    share: Tensor
    threshold: Tensor


@dataclass(frozen=True)
class LongContextTable:
    """A calibration: for every mixer by name, its channels, averaged over the calibration's sequences and at their maximum.

    Fields:
        train_length: tokens of a training sequence.
        lengths: those that thresholds are stored for, rising.
        mixers: by `combination`, then by the name of the mixer's module.
        clamp_top: steps were clamped to the value of this share of the largest.
        sequences: how many were read.
    """

    train_length: int
    lengths: tuple[int, ...]
    mixers: Mapping[str, Mapping[str, ChannelCalibration]]
    clamp_top: float = 0.1
    sequences: int = 1

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one file, or `longmamba.safetensors` into a folder; it is complete or absent. Returns where it is."""
        from safetensors.torch import save_file

        target = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
        tensors = {
            f"{combination}.{field}.{name}": getattr(channels, field).contiguous().cpu()
            for combination, mixers in self.mixers.items()
            for name, channels in mixers.items()
            for field in _FIELDS
        }
        settings = {
            "train_length": self.train_length,
            "lengths": list(self.lengths),
            "clamp_top": self.clamp_top,
            "sequences": self.sequences,
        }
        if not target.parent.is_dir():
            raise FileNotFoundError(f"path: there is no folder {str(target.parent)!r}")
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        os.close(handle)
        try:
            save_file(tensors, temporary, metadata={"format": _FORMAT, "settings": json.dumps(settings)})
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LongContextTable:
        """Read what `save` wrote: a file, or the one in a checkpoint's folder.

        Raises:
            FileNotFoundError: there is none; says how to make one.
            ValueError: it is no such file.
        """
        from safetensors import SafetensorError, safe_open

        source = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
        if not source.is_file():
            raise FileNotFoundError(
                f"long context: no calibration {str(source)!r}; `statescan calibrate longmamba` makes one"
            )
        try:
            with safe_open(os.fspath(source), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"long context: {str(source)!r} is no complete safetensors file: {error}") from None
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"long context: {str(source)!r} holds no calibration; LongContextTable.save writes them")
        settings = json.loads(metadata["settings"])
        mixers: dict[str, dict[str, dict[str, Tensor]]] = {}
        for name, tensor in tensors.items():
            combination, field, mixer = name.split(".", 2)
            mixers.setdefault(combination, {}).setdefault(mixer, {})[field] = tensor
        return cls(
            settings["train_length"],
            tuple(settings["lengths"]),
            {
                combination: {name: ChannelCalibration(**fields) for name, fields in found.items()}
                for combination, found in mixers.items()
            },
            settings["clamp_top"],
            settings["sequences"],
        )


def filtered_mixers(model: nn.Module) -> dict[str, Any]:
    """The mixers that a filter applies to, Mamba and Mamba-2, by the names of their modules.

    Raises:
        ValueError: there are none.
    """
    found = {name: module for name, module in model.named_modules() if hasattr(module, "token_filter")}
    if not found:
        raise ValueError(f"model: {type(model).__name__} has no Mamba or Mamba-2 mixer; there is nothing to filter")
    return found


def align_thresholds(
    steps: Tensor, A: Tensor, *, train_length: int, lengths: Sequence[int], clamp_top: float = 0.1
) -> ChannelCalibration:
    """The calibration of one mixer from the steps of one sequence.

    Over each length the steps are taken to be distributed as over this sequence. The largest of them are kept until their
    sum reaches the sum over this sequence: the next is the threshold.

    Arguments:
        steps: (length, channels), after bias and softplus.
        A: (channels,), negative.
        train_length: no filter up to this length.
        lengths: those to find thresholds for.
        clamp_top: first clamp a channel's steps to the value of this share of the largest.
    """
    if not 0 < clamp_top <= 1:
        raise ValueError(f"clamp_top: expected a share in (0, 1], got {clamp_top}")
    rows = steps.detach().float().t()  # (channels, length)
    count = max(1, int(rows.shape[1] * clamp_top))
    rows = torch.minimum(rows, rows.topk(count, dim=1).values[:, -1:])
    budget = rows.sum(1)
    ordered = rows.sort(dim=1, descending=True).values
    share = torch.ones(len(lengths), rows.shape[0], device=rows.device)
    threshold = torch.zeros(len(lengths), rows.shape[0], device=rows.device)
    for row, length in enumerate(lengths):
        if length <= train_length:
            continue
        block = max(1, (1 << 24) // length)  # bounds memory: a Mamba has thousands of channels
        for start in range(0, rows.shape[0], block):
            part = slice(start, start + block)
            longer = F.interpolate(ordered[part, None], size=length, mode="linear", align_corners=False)[:, 0]
            beyond = (longer.cumsum(1) > budget[part, None]).int().argmax(1) + 1
            share[row, part] = (beyond / length).clamp(max=1)
            threshold[row, part] = longer.gather(1, beyond[:, None].clamp(max=length - 1))[:, 0]
    return ChannelCalibration((rows * A.float()[:, None]).sum(1), budget, share, threshold)


def calibrate_long_context(
    model: Any,
    sequences: Sequence[Tensor],
    *,
    train_length: int | None = None,
    lengths: Sequence[int] | None = None,
    clamp_top: float = 0.1,
    progress: bool = False,
) -> LongContextTable:
    """Record the steps of a model over text of its training length, and align thresholds for longer ones.

    Arguments:
        model: a language model with Mamba or Mamba-2 mixers.
        sequences: of tokens, (length,) each, of the training length.
        train_length: tokens of a training sequence; None: the length of the first sequence.
        lengths: those to find thresholds for; None: half the training length to 96 times it.
        clamp_top: see `align_thresholds`.
        progress: show a progress bar, if the error output is a terminal.

    Raises:
        ValueError: no sequences, or a sequence shorter than the training length.
    """
    if not len(sequences):
        raise ValueError("sequences: none given; calibration reads at least one of the training length")
    train_length = len(sequences[0]) if train_length is None else train_length
    if train_length < 1 or any(len(sequence) < train_length for sequence in sequences):
        shortest = min(map(len, sequences))
        raise ValueError(f"sequences: the shortest has {shortest} tokens, of a training length of {train_length}")
    chosen = tuple(sorted({round(factor * train_length) for factor in _FACTORS} if lengths is None else set(lengths)))
    if not chosen or chosen[0] < 1:
        raise ValueError(f"lengths: expected at least one, of at least 1 token, got {lengths}")
    mixers = filtered_mixers(model)
    device = next(model.parameters()).device
    gathered: dict[str, list[ChannelCalibration]] = {name: [] for name in mixers}
    with progress_bar("calibrating", len(sequences), unit="sequences", shown=progress) as advance:
        for sequence in sequences:
            recorded = _record(model, mixers, sequence[:train_length].to(device))
            for name, mixer in mixers.items():
                found = align_thresholds(
                    recorded[name], _slowest(mixer), train_length=train_length, lengths=chosen, clamp_top=clamp_top
                )
                gathered[name].append(ChannelCalibration(**{f: getattr(found, f).cpu() for f in _FIELDS}))
            advance(1)
    return LongContextTable(
        train_length,
        chosen,
        {
            combination: {name: _combine(found, combination) for name, found in gathered.items()}
            for combination in COMBINATIONS
        },
        clamp_top,
        len(sequences),
    )


def _record(model: Any, mixers: Mapping[str, Any], tokens: Tensor) -> dict[str, Tensor]:
    """All steps of each mixer over one sequence, (length, channels)."""
    recorded: dict[str, list[Tensor]] = {name: [] for name in mixers}

    def recorder(name: str) -> Any:
        def keep(steps: Tensor) -> Tensor:
            recorded[name].append(steps[0].clone())
            return steps

        return keep

    with _hooked(mixers, {name: recorder(name) for name in mixers}), torch.no_grad():
        model(tokens[None], last=1)
    return {name: parts[0] for name, parts in recorded.items()}  # of a mixer that is called repeatedly, the first time


def _slowest(mixer: Any) -> Tensor:
    """A (channels,): of a Mamba channel's several states, the one that remembers longest."""
    A = -torch.exp(mixer.A_log.detach().float())
    return A if A.ndim == 1 else A.amax(dim=1)


def _combine(found: Sequence[ChannelCalibration], combination: str) -> ChannelCalibration:
    stacked = {field: torch.stack([getattr(entry, field) for entry in found]) for field in _FIELDS}
    if combination == "max":
        return ChannelCalibration(**{field: values.amax(0) for field, values in stacked.items()})
    means = {field: values.mean(0) for field, values in stacked.items()}
    # The mean of what is left, not of its logarithm, as published; in logarithms, for it may be too small for a float.
    means["log_decay"] = stacked["log_decay"].logsumexp(0) - math.log(len(found))
    return ChannelCalibration(**means)


@contextlib.contextmanager
def _hooked(mixers: Mapping[str, Any], filters: Mapping[str, Any]) -> Iterator[None]:
    before = {name: mixers[name].token_filter for name in filters}
    for name, hook in filters.items():
        mixers[name].token_filter = hook
    try:
        yield
    finally:
        for name, hook in before.items():
            mixers[name].token_filter = hook


@dataclass(frozen=True)
class LongContext:
    """How a calibration is used.

    Fields:
        table: of the model.
        decay_threshold: a channel is global where more than this is left of its state after the training length.
        scale: times the stored thresholds; above 1 filters more.
        combination: thresholds as ``average`` over the calibration's sequences, or their ``max``.
        generation: filter tokens that are generated too, not those of the prompt alone (as published).
        starts_at: length from which on there is a filter; None: 1.5 times the training length.
        length: the length to look up, whatever is read; None: that of the prompt.
    """

    table: LongContextTable
    decay_threshold: float = 0.05
    scale: float = 1.0
    combination: Combination = "average"
    generation: bool = True
    starts_at: int | None = None
    length: int | None = None

    def __post_init__(self) -> None:
        if not self.decay_threshold >= 0:
            raise ValueError(f"decay_threshold: expected at least 0, got {self.decay_threshold}")
        if self.scale < 0:
            raise ValueError(f"scale: expected at least 0 (no filter), got {self.scale}")
        if self.combination not in COMBINATIONS:
            raise ValueError(f"combination: expected one of {', '.join(COMBINATIONS)}, got {self.combination!r}")

    def thresholds(self, mixer: str, length: int) -> Tensor | None:
        """Thresholds (channels,) of a mixer for this length, below 0 in local channels; None where nothing is filtered."""
        table = self.table
        length = length if self.length is None else self.length
        if length < (1.5 * table.train_length if self.starts_at is None else self.starts_at):
            return None
        channels = table.mixers[self.combination][mixer]
        nearest = min(range(len(table.lengths)), key=lambda row: abs(table.lengths[row] - length))
        limit = math.log(self.decay_threshold) if self.decay_threshold > 0 else -math.inf
        is_global = (channels.log_decay > limit) & (channels.threshold[nearest] > 0)
        if not bool(is_global.any()) or self.scale == 0:
            return None
        return torch.where(is_global, self.scale * channels.threshold[nearest], -1.0)

    @contextlib.contextmanager
    def applied(self, model: Any, lengths: Sequence[int]) -> Iterator[None]:
        """Within it the model filters; `lengths`: of each sequence of the batch, or one for all of them.

        Raises:
            ValueError: the calibration is another model's.
        """
        mixers = filtered_mixers(model)
        known = self.table.mixers[self.combination]
        if known.keys() != mixers.keys():
            raise ValueError(
                f"long context: the calibration is another model's, of {len(known)} mixers, where this one has "
                f"{len(mixers)} of other names"
            )
        filters: dict[str, Any] = {}
        for name, mixer in mixers.items():
            width = mixer.delta_bias.shape[0]
            if known[name].budget.shape != (width,):
                raise ValueError(
                    f"long context: the calibration is another model's: {name} has {width} channels there and "
                    f"{known[name].budget.shape[0]} here"
                )
            rows = [self.thresholds(name, length) for length in lengths]
            if all(row is None for row in rows):
                continue
            limits = torch.stack([torch.full((width,), -1.0) if row is None else row for row in rows])
            filters[name] = _Filter(limits.to(mixer.delta_bias.device))
        with _hooked(mixers, filters):
            yield


class _Filter:
    """Steps that are not above their threshold become 0: the state of that channel passes the token by."""

    def __init__(self, limits: Tensor):
        self.limits = limits

    def __call__(self, steps: Tensor) -> Tensor:
        return torch.where(keep_above(steps, self.limits), steps, 0.0)
