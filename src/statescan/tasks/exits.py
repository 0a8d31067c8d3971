"""Training exits at intermediate layers of a finished language model, and thresholds that keep a wanted agreement with it.

Nogales, Gambella and Roveri 2025, "DYNAMAX", arXiv 2504.20922. The model is frozen: every exit learns the distribution that
the whole model gives (cross-entropy), the first exit weighing most, the weights falling linearly to the last. A learned
confidence is asked whether the exit's most probable token is among the whole model's `top_k` most probable ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan import data
from statescan.data import IGNORED
from statescan.generation import EarlyExit, ExitConfig, ExitHead, ExitPoint, calibrate_exits, measure_exits
from statescan.tasks._run_folder import RunFolder
from statescan.tasks.language import LanguageTraining, model_of, streams_of, token_batches, tokenizer_of

if TYPE_CHECKING:
    from statescan.layers import State
    from statescan.tasks._fit import TrainingResult
    from statescan.tasks._module import Measure, Sums


@dataclass(frozen=True)
class ExitTraining(LanguageTraining):
    """Train exits for the model that init_from names.

    Example: statescan train exits --init-from runs/book --data book.txt --steps 500 --out runs/exits
    """

    #: After how many blocks there is an exit; none: after up to four in the model's latter half.
    layers: tuple[int, ...] = ()
    #: What stands before an exit's vocabulary: a linear layer, a feed-forward block, or a Mamba block.
    kind: Literal["linear", "ffn", "mamba"] = "mamba"
    #: The largest probability, the margin between the two largest, or a number that is learned.
    confidence: Literal["probability", "margin", "learned"] = "probability"
    #: The states of blocks that a token does not reach are advanced with what it left with, or stay as they are.
    skipped_states: Literal["propagate", "skip"] = "propagate"
    #: The vocabulary is read by the model's own head; otherwise every exit has one.
    shared_head: bool = True
    #: A learned confidence counts an exit as right whose token is among so many of the whole model's.
    top_k: int = 3
    #: Share of tokens that shall be the whole model's; the thresholds are chosen for it.
    quality: float = 0.98
    #: Sequences of the held-out text to choose thresholds with, at most, and as many others to try them on.
    calibration_sequences: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("top_k", "calibration_sequences"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 <= self.quality <= 1:
            raise ValueError(f"quality: expected an agreement from 0 to 1, got {self.quality}")
        if self.length < 2:
            raise ValueError(f"length: expected at least 2, got {self.length}")
        for name in ("carry_state", "compile", "gradient_checkpointing"):
            if getattr(self, name):
                raise ValueError(f"{name}: exits are trained on a frozen model, a sequence at a time; leave it out")
        if self.world_size > 1:
            raise ValueError(f"devices, nodes: one process trains exits, got {self.devices} and {self.nodes}")


def default_layers(depth: int, count: int = 4) -> tuple[int, ...]:
    """Up to `count` exits in the latter half of a model, evenly; the first after half the blocks.

    Raises:
        ValueError: a model of one block.
    """
    if depth < 2:
        raise ValueError(f"layers: a model of {depth} block has no place for an exit")
    first = depth // 2
    count = min(count, depth - first)
    return tuple(first + (depth - first) * number // count for number in range(count))


def train_exits(settings: ExitTraining) -> TrainingResult:
    """Train exits, choose their thresholds, and leave model, exits and the curve of the trade (``exits.png``) in a folder.

    Raises:
        FileNotFoundError: for a model or a text that is not there.
        ValueError: for what is missing or does not fit; for a folder that cannot be written or that holds another run.
    """
    folder = RunFolder(settings.out)
    settings = folder.settle(settings)
    if settings.init_from is None:
        raise ValueError("init_from: name the trained model that gets exits, its folder or its name on the hub")
    tokenizer = tokenizer_of(settings)
    text, held_out = streams_of(settings, tokenizer)
    batches, validation = token_batches(settings, text, held_out)
    model = model_of(settings, tokenizer).requires_grad_(False)
    torch.manual_seed(settings.seed)
    config = ExitConfig(
        layers=settings.layers or default_layers(getattr(model.config, "depth", 2)),
        kind=settings.kind,
        confidence=settings.confidence,
        skipped_states=settings.skipped_states,
        shared_head=settings.shared_head,
    )
    made = EarlyExit(model, config)

    def describe(sums: Sums) -> dict[str, float]:
        return {"validation_loss": sums.mean_loss, "validation_agreement": sums.accuracy}

    from statescan.tasks._fit import Objective, fit

    objective = Objective(
        batches,
        validation,
        targets=settings.length,
        columns=("validation_loss", "validation_agreement"),
        describe=describe,
        measure=distil_exits(settings.top_k),
        finish=lambda trained: trained.model,
    )
    result = fit(made, settings, folder, objective, tokenizer=tokenizer)
    made.eval().requires_grad_(False)
    chosen, rest = _sequences(held_out, settings.length, settings.calibration_sequences)
    prompt = max(1, len(chosen[0]) // 8)
    with folder.guard():
        best, points = calibrate_exits(
            made, chosen, quality=settings.quality, prompt=prompt, progress=settings.progress
        )
        made.save(folder.path)
        draw_exits(folder.path / "exits.png", {settings.kind: points}, quality=settings.quality)
    reached = {"calibrated_agreement": best.agreement, "calibrated_saved_blocks": best.saved}
    test = {}
    if rest:
        tried = measure_exits(made, rest, prompt=prompt)
        test = {"agreement": tried.agreement, "saved_blocks": tried.saved}
    return dataclasses.replace(result, validation=result.validation | reached, test=test)


def distil_exits(top_k: int) -> Measure:
    """The loss of all exits against the whole model, and how often their most probable tokens are its own, on average."""

    def measure(model: EarlyExit, batch: dict[str, Any], state: State | None) -> tuple[Tensor, Tensor, State | None]:
        model.model.eval()
        found, whole = model.outputs(batch["tokens"], resets=batch["resets"])
        vocabulary = model.config.vocab_size
        asked = batch["targets"] != IGNORED
        oracle = whole[..., :vocabulary].float()[asked]
        best = oracle.argmax(-1)
        among = oracle.topk(min(top_k, vocabulary), dim=-1).indices
        soft = oracle.softmax(-1)
        count = len(found)
        loss = soft.new_zeros(())
        right = soft.new_zeros(())
        for number, (head, (features, logits)) in enumerate(zip(model.heads, found, strict=True)):
            guesses = logits[..., :vocabulary].float()[asked]
            weight = 2 * (count - number) / (count * (count + 1))  # falls linearly, and sums to 1
            loss = loss + weight * F.cross_entropy(guesses, soft, reduction="sum")
            guessed = guesses.detach().argmax(-1)
            right = right + (guessed == best).sum() / count
            if model.exits.confidence == "learned":
                sure = cast(ExitHead, head).sureness_logit(features)[asked]
                relaxed = (among == guessed[:, None]).any(-1).to(sure.dtype)
                loss = loss + weight * F.binary_cross_entropy_with_logits(sure, relaxed, reduction="sum")
        wide = torch.float32 if loss.device.type == "mps" else torch.float64
        return loss, torch.stack([loss.detach().to(wide), asked.sum().to(wide), right.to(wide)]), None

    return measure


def draw_exits(path: Path, curves: Mapping[str, Sequence[ExitPoint]], *, quality: float | None = None) -> str | None:
    """Draw agreement over the share of blocks saved, a curve a name: a PNG file's path, or None without matplotlib."""
    from statescan.tasks._picture import draw_curves

    drawn: dict[str, Any] = {
        name: tuple(zip(*sorted((point.saved, point.agreement) for point in points), strict=True))
        for name, points in curves.items()
    }
    if quality is not None:
        drawn["wanted"] = ([0.0, max(point.saved for points in curves.values() for point in points)], [quality] * 2)
    return draw_curves(path, {"agreement with the whole model": drawn}, abscissa="share of blocks not computed")


def _sequences(held_out: data.TokenStream, length: int, most: int) -> tuple[list[Tensor], list[Tensor]]:
    """Sequences to choose thresholds with, and others to try them on (none where there is one sequence alone)."""
    tokens = torch.as_tensor(held_out.tokens[:].astype("int64"))
    length = min(length, len(tokens))
    parts = list(tokens[: len(tokens) // length * length].split(length))
    half = max(1, min(most, len(parts) // 2))
    return parts[:half], parts[half : 2 * half]
