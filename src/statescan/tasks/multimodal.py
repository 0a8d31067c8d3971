"""Training on text and images in one sequence: images as tokens of a codebook, or as patches under a diffusion loss.

A sequence is some bytes of text that end with an image's caption, a mark, the image's patches row by row, and another
mark. The two forms are those of the Mixture-of-Mamba paper (arXiv 2501.16295): Chameleon, where all is predicted token by
token, and Transfusion, where text is predicted and patches are denoised (loss of text + 5 x loss of the noise).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import IterableDataset

from statescan import data
from statescan.layers import add_noise
from statescan.models import model_info
from statescan.tasks._run_folder import RunFolder, first_process, replacing
from statescan.tasks._settings import TrainingSettings, build, demand

if TYPE_CHECKING:
    from statescan.layers import State
    from statescan.tasks._fit import TrainingResult
    from statescan.tasks._module import Measure, Sums

#: Marks beside the 256 bytes: an image begins, an image has ended.
BEGIN, END = 256, 257
TEXT_VOCABULARY = 258


@dataclass(frozen=True)
class MultimodalTraining(TrainingSettings):
    """Train a model on interleaved text and images.

    Example: statescan train multimodal --text book.txt --images digits --model mixture_of_mamba_tiny --out runs/both
    """

    #: Files, folders or glob patterns of text.
    text: tuple[str, ...] = ()
    #: Which files of a folder.
    pattern: str = "**/*"
    #: digits (real handwritten digits), or a .npz file with arrays images and, if need be, captions.
    images: str = "digits"
    #: Name of a model: mixture_of_mamba_* reads image tokens, transfusion_mamba_* patches; --set split=() makes it dense.
    model: str = "mixture_of_mamba_tiny"
    #: Bytes of text before each image, its caption at their end.
    text_length: int = 96
    #: Pixels of a patch's side.
    patch: int = 2
    #: Entries of the codebook of image tokens.
    codebook: int = 64
    #: Weight of the diffusion loss beside that of the text.
    image_weight: float = 5.0
    #: Part of text and images that validates.
    validation_fraction: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction: expected a number between 0 and 1, got {self.validation_fraction}")
        if self.text_length < 2 or self.codebook < 2:
            raise ValueError(f"text_length, codebook: at least 2, got {self.text_length} and {self.codebook}")
        if not self.image_weight > 0:
            raise ValueError(f"image_weight: expected a positive number, got {self.image_weight}")
        if self.mixer is not None:
            raise ValueError("mixer: projections chosen by modality belong to one mixer; choose a --model")


@dataclass(frozen=True)
class MultimodalBatch:
    """Sequences of text and images.

    Fields:
        tokens: (batch, length); the nearest entries of the codebook, if there is one, where patches stand.
        targets: (batch, length), the next token, or `data.IGNORED`.
        is_patch: (batch, length) bool.
        patches: (batch, patches, patch_dim), standardised.
    """

    tokens: Tensor
    targets: Tensor
    is_patch: Tensor
    patches: Tensor


class MultimodalBatches(IterableDataset):
    """The batches of one process, from batch `first` on; what batch n holds depends on the seed and n alone.

    Arguments:
        text: (bytes,) uint8.
        images: with captions.
        codec: of the images.
        text_length: bytes before each image.
        batch_size: sequences a batch, over all processes.
        discrete: whether the patches are to be predicted as tokens.
        seed, rank, world, first: as in `tasks.sequence.SequenceBatches`.
        once: every image once, in the given order, with text from evenly spread places.
    """

    def __init__(
        self,
        text: np.ndarray,
        images: data.CaptionedImages,
        codec: data.PatchCodec,
        *,
        text_length: int,
        batch_size: int,
        discrete: bool,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        first: int = 0,
        once: bool = False,
    ) -> None:
        if len(text) < text_length:
            raise ValueError(f"text: {len(text)} bytes are fewer than the {text_length} of one sequence")
        self._text, self._text_length, self._batch_size = text, text_length, batch_size
        self._captions = [caption.encode() for caption in images.captions]
        longest = max(map(len, self._captions))
        if longest >= text_length:
            raise ValueError(f"text_length: {text_length} bytes have no room for a caption of {longest}")
        self._patches = codec.patches(images.images)
        self._codes = codec.tokens(self._patches) + TEXT_VOCABULARY if discrete else None
        self._seed, self._rank, self._world, self._first, self._once = seed, rank, world, first, once

    def __iter__(self) -> Any:
        images, places = len(self._captions), len(self._text) - self._text_length + 1
        if self._once:
            spread = np.linspace(0, places - 1, images).astype(np.int64)
            for index in torch.arange(images).split(self._batch_size):
                mine = index[self._rank :: self._world].numpy()
                yield self._take(mine, spread[mine])
            return
        number = self._first
        while True:
            generator = np.random.default_rng(data.batch_seed(self._seed, "multimodal", number))
            index = generator.integers(images, size=self._batch_size)
            starts = generator.integers(places, size=self._batch_size)
            mine = slice(self._rank, None, self._world)
            yield self._take(index[mine], starts[mine])
            number += 1

    def _take(self, index: np.ndarray, starts: np.ndarray) -> MultimodalBatch:
        count = self._patches.shape[1]
        begin = self._text_length
        tokens = np.zeros((len(index), begin + count + 2), np.int64)
        for row, (image, start) in enumerate(zip(index, starts, strict=True)):
            caption = self._captions[image]
            prose = self._text[start : start + begin - len(caption)]
            tokens[row, :begin] = np.concatenate([prose, np.frombuffer(caption, np.uint8)])
        tokens[:, begin], tokens[:, -1] = BEGIN, END
        is_patch = torch.zeros(tokens.shape, dtype=torch.bool)
        is_patch[:, begin + 1 : -1] = True
        ready = torch.from_numpy(tokens)
        if self._codes is not None:
            ready[:, begin + 1 : -1] = self._codes[index]
        targets = F.pad(ready[:, 1:], (0, 1), value=data.IGNORED)
        if self._codes is None:
            targets = targets.masked_fill(F.pad(is_patch[:, 1:], (0, 1)), data.IGNORED)
        return MultimodalBatch(ready, targets, is_patch, self._patches[index])


def token_loss() -> Measure:
    """All tokens predicted from those before them: the mean over a sequence, and that of its image tokens beside it."""

    def measure(model: Any, batch: dict[str, Any], state: State | None) -> tuple[Tensor, Tensor, State | None]:
        targets, image = batch["targets"], F.pad(batch["is_patch"][:, 1:], (0, 1))
        logits, _ = model(batch["tokens"])
        loss = _cross_entropy(logits, targets)
        asked = (targets != data.IGNORED).sum(1)
        whole = (loss.sum(1) / asked).sum()
        return whole, _sums(whole, len(targets), (loss * image).sum(1) / image.sum(1)), None

    return measure


def transfusion_loss(image_weight: float) -> Measure:
    """Text predicted from what stands before it, patches denoised: mean loss of text + weight x mean squared error of noise.

    In training the noise is drawn anew; in evaluation it is the same each time.
    """

    def measure(model: Any, batch: dict[str, Any], state: State | None) -> tuple[Tensor, Tensor, State | None]:
        targets, is_patch, clean = batch["targets"], batch["is_patch"], batch["patches"]
        sequences, device = len(targets), targets.device
        generator = None if model.training else torch.Generator().manual_seed(0)
        steps = model.config.diffusion_steps
        times = torch.randint(steps, (sequences, 1), generator=generator).to(device).expand(is_patch.shape)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        first = int(is_patch[0].long().argmax())
        here = slice(first, first + clean.shape[1])
        patches = clean.new_zeros(*targets.shape, clean.shape[-1])
        patches[:, here] = add_noise(clean, noise, times[:, here], steps)
        logits, found, _ = model(batch["tokens"], patches, times, is_patch)
        text = _cross_entropy(logits, targets).sum(1) / (targets != data.IGNORED).sum(1)
        image = (found[:, here].float() - noise).square().mean((1, 2))
        whole = (text + image_weight * image).sum()
        return whole, _sums(whole, sequences, image), None

    return measure


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=data.IGNORED, reduction="none")
    return loss.view(targets.shape)


def _sums(loss: Tensor, sequences: int, image: Tensor) -> Tensor:
    """Loss, sequences and loss of the images, in the places of `Sums`."""
    wide = torch.float32 if loss.device.type == "mps" else torch.float64
    count = torch.tensor(float(sequences), device=loss.device)
    return torch.stack([value.detach().to(wide) for value in (loss, count, image.sum())])


def text_and_image(sums: Sums, *, text_weight: float, image_weight: float) -> dict[str, float]:
    """Losses of text and of images from the numbers of a validation."""
    image = sums.accuracy
    return {
        "validation_loss": sums.mean_loss,
        "text_loss": (sums.mean_loss - image_weight * image) / text_weight,
        "image_loss": image,
    }


def train_multimodal(settings: MultimodalTraining) -> TrainingResult:
    """Train on interleaved text and images; leaves model, metrics, their picture and ``images.npz``, the images' codec.

    Losses of text and of image tokens are in nats a token; that of patches is the squared error a number of noise.

    Raises:
        ValueError: for data, a setting or a model that does not exist (the nearest name is shown), files that are not what
            they should be, or a folder that cannot be written or that holds another run.
        FileNotFoundError: where there is no such file.
    """
    folder = RunFolder(settings.out)
    settings = folder.settle(settings)
    demand(settings, "vocabularies", "model of text and images", "mixture_of_mamba_tiny")
    text = read_bytes(settings.text, pattern=settings.pattern)
    held_back = max(settings.text_length, round(settings.validation_fraction * len(text)))
    images = data.read_captioned_images(settings.images)
    validating, learning = images.split(settings.validation_fraction, seed=settings.seed)
    discrete = not hasattr(model_info(settings.model).config, "patch_dim")
    codec = data.PatchCodec.fit(
        learning.images, patch=settings.patch, entries=settings.codebook if discrete else 0, seed=settings.seed
    )
    if discrete:
        model = build(settings, vocabularies=(TEXT_VOCABULARY, settings.codebook))
        share = codec.count / (codec.count + settings.text_length + 1)
        weights = {"text_weight": 1 - share, "image_weight": share}
    else:
        model = build(settings, vocabularies=(TEXT_VOCABULARY,), patch_dim=codec.patch_dim)
        weights = {"text_weight": 1.0, "image_weight": settings.image_weight}

    def batches(part: np.ndarray, of: data.CaptionedImages, first: int, rank: int, world: int, once: bool) -> Any:
        return MultimodalBatches(
            part,
            of,
            codec,
            text_length=settings.text_length,
            batch_size=settings.batch_size * settings.world_size,
            discrete=discrete,
            seed=settings.seed,
            rank=rank,
            world=world,
            first=first,
            once=once,
        )

    from statescan.tasks._fit import Objective, fit

    objective = Objective(
        lambda first, rank, world: batches(text[:-held_back], learning, first, rank, world, False),
        lambda first, rank, world: batches(text[-held_back:], validating, first, rank, world, True),
        targets=1,
        columns=("validation_loss", "text_loss", "image_loss"),
        describe=lambda sums: text_and_image(sums, **weights),
        measure=token_loss() if discrete else transfusion_loss(settings.image_weight),
    )
    result = fit(model, settings, folder, objective)
    if first_process():
        with replacing(folder.path / "images.npz") as file:
            codec.save(file)
    return result


def read_bytes(sources: tuple[str, ...], *, pattern: str = "**/*") -> np.ndarray:
    """The text that the sources name as one array of bytes, documents apart by an empty line."""
    parts: list[bytes] = []
    for piece in data.read_text(sources, pattern=pattern):
        parts += [b"\n\n"] if piece.begins and parts else []
        parts.append(piece.text.encode())
    return np.frombuffer(b"".join(parts), np.uint8)
