"""Alignment of two encoders trained on two views of generated clips, by the number of frames and of captions.

python -m benchmarks.alignment           # some minutes of one thread
python -m benchmarks.alignment --quick   # to see it work: a few steps and clips, nothing is kept

A clip shows a digit drawn with strokes, large or small, dark or faint, in one of four corners, 16 times under heavy noise
and with a part covered. Its captions each name two of these four things, some of them wrongly. A Vim learns to tell all four
from single frames, a Mamba to predict the captions' bytes; neither sees the other. Then, on other clips, `inspect.align`
compares the mean of so many frames' features with those of so many captions, and `inspect.fit_scaling_law` fits the growth.
Figures go to ``benchmarks/results/alignment.json`` and ``.md``, the curves to ``docs/assets/alignment_growth.png``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import _measure
from statescan import create_model, inspect
from statescan.checkpoints import ByteTokenizer
from statescan.data import stroke_digits

ROOT = Path(__file__).parent.parent
WORDS = (
    ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    ("small", "large"),
    ("faint", "dark"),
    ("upper left", "upper right", "lower left", "lower right"),
)
SIZES = [len(words) for words in WORDS]
VISION: dict[str, Any] = dict(
    dim=48, depth=3, patch=8, image_size=32, in_channels=1, num_classes=sum(SIZES), state_dim=8
)
FRAMES, CAPTIONS = (1, 2, 4, 8, 16), (1, 2, 3, 5, 8)


def make_clips(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Clean pictures (count, 1, 32, 32), and which word of each kind fits (count, 4)."""
    stream = np.random.default_rng([seed, 1])
    drawn, digits = stroke_digits(count, seed=seed, size=28)
    kinds = torch.from_numpy(np.stack([stream.integers(size, size=count) for size in SIZES], 1))
    kinds[:, 0] = digits
    pictures = torch.zeros(count, 1, 32, 32)
    for picture, digit, (_, large, dark, corner) in zip(pictures, drawn, kinds.tolist(), strict=True):
        side = 22 if large else 14
        scaled = F.interpolate(digit[None], (side, side), mode="area")[0] * (1.0 if dark else 0.5)
        row, column = (corner // 2) * (32 - side), (corner % 2) * (32 - side)
        picture[:, row : row + side, column : column + side] = scaled
    return pictures, kinds


def frames_of(pictures: Tensor, generator: torch.Generator, noise: float) -> Tensor:
    """One frame of each: moved by a pixel or two, noisy, a square of it covered."""
    moved = torch.stack(
        [picture.roll(tuple(torch.randint(-1, 2, (2,), generator=generator).tolist()), (1, 2)) for picture in pictures]
    )
    for picture in moved:
        row, column = torch.randint(0, 21, (2,), generator=generator).tolist()
        picture[:, row : row + 12, column : column + 12] = 0.5
    return moved + noise * torch.randn(moved.shape, generator=generator)


def captions_of(kinds: Tensor, count: int, stream: np.random.Generator, wrong: float) -> list[str]:
    """So many captions of one clip."""
    found = []
    for _ in range(count):
        words = []
        for kind in stream.choice(4, 2, replace=False):
            index = int(kinds[kind]) if stream.random() > wrong else int(stream.integers(SIZES[kind]))
            words.append(WORDS[kind][index])
        found.append(" and ".join(words))
    return found


def train_vision(pictures: Tensor, kinds: Tensor, steps: int, noise: float) -> Any:
    """A Vim that tells all four kinds from single frames."""
    torch.manual_seed(0)
    model = create_model(
        "vim_tiny", dim=48, depth=3, patch=8, image_size=32, in_channels=1, num_classes=sum(SIZES), state_dim=8
    )
    optimiser = torch.optim.AdamW(model.parameter_groups(0.05), lr=3e-3)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = optimiser.param_groups[1]["lr"] = 3e-3 * min(
            1, (step + 1) / 20, (steps - step) / steps * 2
        )
        index = torch.randint(len(pictures), (64,), generator=generator)
        parts = model(frames_of(pictures[index], generator, noise)).split(SIZES, 1)
        loss = torch.stack([F.cross_entropy(part, kinds[index, i]) for i, part in enumerate(parts)]).sum()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return model.eval()


def train_text(kinds: Tensor, steps: int, wrong: float) -> Any:
    """A Mamba that predicts the bytes of captions."""
    torch.manual_seed(0)
    model, tokenizer = create_model("mamba_tiny", dim=64, depth=3), ByteTokenizer()
    optimiser = torch.optim.AdamW(model.parameter_groups(0.05), lr=4e-3)
    stream = np.random.default_rng(2)
    for _ in range(steps):
        rows = []
        for index in stream.integers(len(kinds), size=32):
            tokens = list(tokenizer.encode(" ".join(captions_of(kinds[index], 3, stream, wrong))))[:64]
            rows.append(tokens + [32] * (64 - len(tokens)))
        batch = torch.tensor(rows)
        logits, _ = model(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="of either encoder")
    parser.add_argument("--clips", type=int, default=300, help="that are compared; as many train, times four")
    parser.add_argument("--noise", type=float, default=0.7, help="of each frame")
    parser.add_argument("--wrong", type=float, default=0.2, help="share of words that are drawn at random")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    steps, clips = (3, 40) if given.quick else (given.steps, given.clips)
    torch.set_num_threads(1)
    began = time.process_time()
    learn, learn_kinds = make_clips(4 * clips, seed=0)
    tried, kinds = make_clips(clips, seed=1)
    fresh = create_model(
        "vim_tiny", dim=48, depth=3, patch=8, image_size=32, in_channels=1, num_classes=18, state_dim=8
    ).eval()
    vision, text = train_vision(learn, learn_kinds, steps, given.noise), train_text(learn_kinds, steps, given.wrong)
    generator, stream = torch.Generator().manual_seed(3), np.random.default_rng(4)
    frames = [frames_of(tried, generator, given.noise) for _ in range(max(FRAMES))]
    told = [captions_of(row, max(CAPTIONS), stream, given.wrong) for row in kinds]
    with torch.no_grad():
        parts = vision(frames[0]).split(SIZES, 1)
    right = [float((part.argmax(1) == kinds[:, i]).double().mean()) for i, part in enumerate(parts)]

    def features(model: Any) -> Tensor:
        """Of every frame: (frames, clips, layers, width)."""
        return torch.stack([torch.stack(inspect.layer_means(model, frame), 1) for frame in frames])

    each = features(vision)
    read = [inspect.text_features(text, [" ".join(c[:n]) for c in told], ByteTokenizer()) for n in CAPTIONS]
    options: dict[str, Any] = dict(k=given.k, resamples=0)
    looked = [each[inspect.spread_frames(len(frames), n)].mean(0) for n in FRAMES]
    scores = np.array([[inspect.align(x, y, shuffles=0, **options).score for y in read] for x in looked])
    law = inspect.fit_scaling_law(FRAMES, CAPTIONS, scores)
    best = inspect.align(looked[-1], read[-1], shuffles=20, **options)
    untrained = inspect.align(features(fresh).mean(0), read[-1], shuffles=0, **options)
    table = [
        {"frames": n, **{f"{c} caption{'s' * (c > 1)}": f"{score:.4f}" for c, score in zip(CAPTIONS, row, strict=True)}}
        for n, row in zip(FRAMES, scores, strict=True)
    ]
    facts = [
        {"what": "law: limit, frame loss, caption loss, frame rate, caption rate",
         "figure": ", ".join(f"{value:.3f}" for value in list(vars(law).values())[:5])},
        {"what": "R² of the fit", "figure": f"{law.r2:.4f}"},
        {"what": "the same search, samples shuffled", "figure": f"{best.shuffled:.4f} ± {best.shuffled_deviation:.4f}"},
        {"what": f"chance of one pair of layers, k = {given.k}, {clips} clips", "figure": f"{best.chance:.4f}"},
        {"what": "a Vim with random weights, most frames and captions", "figure": f"{untrained.score:.4f}"},
        {"what": "the Vim's accuracy on single frames: digit, size, ink, corner",
         "figure": ", ".join(f"{share:.1%}" for share in right)},
    ]  # fmt: skip
    title = f"mutual k-NN, k = {given.k}, {clips} clips, {steps} steps of either encoder"
    _measure.show(title, table)
    _measure.show("beside it", facts)
    print(f"processor time: {(time.process_time() - began) / 60:.1f} minutes")
    if not given.quick:
        _measure.save("alignment", {title: table, "beside it": facts}, tables={title: table, "beside it": facts})
        inspect.draw_scaling(ROOT / "docs" / "assets" / "alignment_growth.png", FRAMES, CAPTIONS, scores, law)


if __name__ == "__main__":
    main()
