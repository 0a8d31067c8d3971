"""Squares cut from photographs that scikit-image holds: which one is it from? Learnt and asked of separate parts."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Photographs whose parts look alike enough for a part to be told.
PHOTOGRAPHS = ("brick", "chelsea", "coffee", "coins", "grass", "gravel", "moon", "retina")
SIDE = 32


def photographs() -> list[np.ndarray]:
    """Grey pictures of numbers up to 1."""
    from skimage import color, data

    found = []
    for name in PHOTOGRAPHS:
        picture = getattr(data, name)()
        grey = color.rgb2gray(picture[..., :3]) if picture.ndim == 3 else picture / 255.0
        found.append(grey.astype(np.float32))
    return found


def crops(each: int, part: str, seed: int, *, inside: int = SIDE) -> tuple[Tensor, Tensor]:
    """Images (count, 3, 32, 32) and classes (count,): so many of each photograph, from its columns of one part.

    Columns of pixels are divided into eight stripes, of which ``train`` and ``test`` have every other one: no pixel is in
    both. A crop is 48 pixels wide and high at first, mirrored or not, and has a random brightness and contrast, which tell
    nothing. With `inside` below 32 it is that wide and high in the image, anywhere, and faint noise is around it.
    """
    images, labels = [], []
    for number, picture in enumerate(photographs()):
        generator = np.random.default_rng([seed, number, part == "test"])
        height, width = picture.shape
        stripe, side = width // 8, min(48, width // 8)
        for _ in range(each):
            left = stripe * (2 * int(generator.integers(4)) + (part == "test"))
            left += int(generator.integers(stripe - side + 1))
            top = int(generator.integers(height - side + 1))
            crop = torch.from_numpy(picture[top : top + side, left : left + side].copy())[None, None]
            crop = F.interpolate(crop, (inside, inside), mode="bicubic", antialias=True)[0]
            crop = crop.flip(2) if generator.integers(2) else crop
            crop = (crop - crop.mean()) / (crop.std() + 1e-2)
            crop = crop * float(generator.uniform(0.6, 1.4)) + float(generator.uniform(-0.5, 0.5))
            image = torch.from_numpy(0.1 * generator.standard_normal((1, SIDE, SIDE), dtype=np.float32))
            row, column = (int(generator.integers(SIDE - inside + 1)) for _ in range(2))
            image[:, row : row + inside, column : column + inside] = crop
            images.append(image)
            labels.append(number)
    return torch.stack(images).expand(-1, 3, -1, -1).contiguous(), torch.tensor(labels)


def learn(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    learning_rate: float,
    seconds: float = math.inf,
    seed: int = 0,
    batch: int = 32,
) -> dict[str, float]:
    """Train by AdamW with a short warm-up and a cosine decay over so many steps, or as many as fit into so many seconds of
    the processor.

    Gives the steps made, the seconds of the processor, and the mean training loss of the last tenth.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    groups = model.parameter_groups(0.05)  # type: ignore[operator]
    optimiser = torch.optim.AdamW(groups, lr=learning_rate)
    model.train()
    losses: list[float] = []
    start, part = time.process_time(), 0.0
    while part < 1.0:
        part = max(len(losses) / steps, (time.process_time() - start) / seconds)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * min(1.0, 20 * part + 0.01) * 0.5 * (1 + np.cos(np.pi * min(part, 1.0)))
        chosen = torch.randint(len(images), (batch,), generator=generator)
        loss = F.cross_entropy(model(images[chosen]), labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    last = losses[-max(1, len(losses) // 10) :]
    return {"steps": len(losses), "seconds": time.process_time() - start, "training_loss": sum(last) / len(last)}


@torch.no_grad()
def score(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Loss and accuracy in evaluation."""
    model.eval()
    scores = torch.cat([model(chunk) for chunk in images.split(64)])
    right = (scores.argmax(1) == labels).float().mean()
    return {"loss": float(F.cross_entropy(scores, labels)), "accuracy": float(right)}
