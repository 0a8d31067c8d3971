"""`statescan inspect alignment`: how alike two encoders see the same samples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from statescan.inspect import Alignment

#: The metrics, in words that need no import; `inspect.METRICS` has the same.
Metric = Literal["mutual_knn", "cycle_knn", "cka", "unbiased_cka", "rbf_cka", "cknna"]


def alignment(
    a: Annotated[str, tyro.conf.Positional],
    b: Annotated[str, tyro.conf.Positional],
    *,
    images: Path | None = None,
    texts: Path | None = None,
    metric: Metric = "mutual_knn",
    k: int = 10,
    frames: tuple[int, ...] = (),
    captions: tuple[int, ...] = (),
    quantile: float = 0.95,
    shuffles: int = 20,
    seed: int = 0,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Measure how alike two encoders see the same samples, over all pairs of their layers.

    An encoder is a file of features (.npy, .npz, .safetensors; samples x width, samples x layers x width, or an array a
    layer), the folder of a checkpoint, or the name of a model. Image models read --images, language models --texts.

    Examples:

      statescan inspect alignment video.npy text.npy --k 10
      statescan inspect alignment runs/vim vmamba_tiny --images photographs --k 5 --out layers.png
      statescan inspect alignment runs/vim runs/book --images clips --texts captions --frames 1 2 4 8 --captions 1 2 5

    Args:
        a: the one encoder.
        b: the other.
        images: a folder of images, a sample each; with --frames a folder of folders, a sample's frames each.
        texts: a file with a sample a line, or a folder with a .txt file a sample, a caption a line.
        metric: what is measured.
        k: neighbours.
        frames: numbers of frames to try, evenly spread; draws how alignment grows with them.
        captions: numbers of captions to try, the first ones of each sample.
        quantile: values beyond this share of all absolute values are clamped to it.
        shuffles: how often the search is made on shuffled samples, to tell what it finds by chance.
        seed: of the shuffles, and of random weights.
        out: a picture of the table of layers, or of the growth with frames and captions.
        json: print data instead of a table.
    """
    from statescan import inspect
    from statescan.cli import _print

    sides = [_Side(name, images, texts, seed) for name in (a, b)]
    if frames or captions:
        _surface(sides, frames or (1,), captions or (1,), metric, k, quantile, out, json)
        return
    features = [side.features() for side in sides]
    if sides[0].names and sides[1].names and sides[0].kind != sides[1].kind and sides[0].names != sides[1].names:
        raise ValueError("images, texts: the same samples by name; a text of a folder is named as its image, but .txt")
    found = inspect.align(*features, metric=metric, k=k, quantile=quantile, shuffles=shuffles, seed=seed)
    if out is not None:
        inspect.draw_alignment(out, found, (a, b))
    if json:
        _print.as_json(inspect.alignment_dict(found))
        return
    _print.table(f"{a} and {b}", ("what", "how much"), _rows(found))


def _rows(found: Alignment) -> list[tuple[str, str]]:
    rows = [
        ("metric", found.metric + (f", k = {found.k}" if "nn" in found.metric else "")),
        ("samples", f"{found.samples:,}"),
        ("best score", f"{found.score:.4f}"),
        (
            "between layers",
            f"{found.layers[0]} of {found.table.shape[0]} and {found.layers[1]} of {found.table.shape[1]}",
        ),
    ]
    if found.interval is not None:
        rows.append(("95 % of bootstrap samples", f"{found.interval[0]:.4f} to {found.interval[1]:.4f}"))
    if found.shuffled is not None:
        deviation = "" if found.shuffled_deviation is None else f" ± {found.shuffled_deviation:.4f}"
        rows.append(("the same search on shuffled samples", f"{found.shuffled:.4f}{deviation}"))
    if found.chance is not None:
        rows.append(("chance, one pair of layers", f"{found.chance:.4f}"))
    return rows


class _Side:
    """One encoder: its features of all samples, with so many frames and captions."""

    def __init__(self, name: str, images: Path | None, texts: Path | None, seed: int) -> None:
        from statescan import inspect

        self.name, self.images, self.kind = name, images, "file"
        self.names: list[str] | None = None
        self.model: Any = None
        if name.endswith(inspect.FEATURE_FILES):
            return
        from statescan.cli._encoders import model_of, tell_of_random_weights

        self.model, fresh = model_of(name, seed=seed)
        if fresh:
            tell_of_random_weights(name)
        if inspect.reads_images(self.model):
            self.kind = "images"
            if images is None:
                raise ValueError(f"images: {name} reads images; give their folder with --images")
        elif inspect.reads_tokens(self.model):
            from statescan import checkpoints

            self.kind = "texts"
            if texts is None:
                raise ValueError(f"texts: {name} reads text; give it with --texts")
            self.names, self.captions = inspect.read_texts(texts)
            self.tokenizer = checkpoints.load_tokenizer(name if Path(name).exists() else "bytes")
        else:
            raise ValueError(f"{name!r} reads neither images nor text; give its features as a file")

    def features(self) -> Any:
        """Of single images, or of all captions."""
        from statescan import inspect

        if self.kind == "file":
            return inspect.read_features(self.name)
        if self.kind == "images":
            assert self.images is not None
            self.names, found = inspect.image_features(self.model, self.images)
            return found
        return self.of_captions(None)

    def of_captions(self, count: int | None) -> Any:
        """Of the first captions of each sample."""
        from statescan import inspect

        if count is not None and min(map(len, self.captions)) < count:
            raise ValueError(f"captions: a sample has only {min(map(len, self.captions))}, got {count}")
        return inspect.text_features(self.model, [" ".join(lines[:count]) for lines in self.captions], self.tokenizer)

    def by_frames(self) -> Any:
        """A function from a number of frames to features."""
        from statescan import inspect

        assert self.images is not None
        self.names, videos = inspect.frame_features(self.model, self.images)
        return lambda count: inspect.mean_of_frames(videos, count)


def _surface(
    sides: list[_Side],
    frames: tuple[int, ...],
    captions: tuple[int, ...],
    metric: str,
    k: int,
    quantile: float,
    out: Path | None,
    json: bool,
) -> None:
    import numpy as np

    from statescan import inspect
    from statescan.cli import _print

    if sorted(side.kind for side in sides) != ["images", "texts"]:
        raise ValueError(
            "frames, captions: one model of images and one of text, got "
            + " and ".join(f"{side.name} ({side.kind})" for side in sides)
        )
    seeing, reading = sorted(sides, key=lambda side: side.kind)
    of_frames = seeing.by_frames()
    if reading.names and reading.names != seeing.names:
        raise ValueError("images, texts: the same samples by name; a sample's text is named as its folder, but .txt")
    shown, told = [of_frames(n) for n in frames], [reading.of_captions(n) for n in captions]
    options: dict[str, Any] = dict(metric=metric, k=k, quantile=quantile, shuffles=0, resamples=0)
    scores = np.array([[inspect.align(x, y, **options).score for y in told] for x in shown])
    law = None
    if max(len(set(frames)), len(set(captions))) >= 3 and np.ptp(scores) > 0:
        law = inspect.fit_scaling_law(frames, captions, scores)
    if out is not None:
        inspect.draw_scaling(out, frames, captions, scores, law)
    if json:
        _print.as_json({"frames": frames, "captions": captions, "scores": scores.tolist(), "law": law and vars(law)})
        return
    rows = [(str(n), *(f"{score:.4f}" for score in row)) for n, row in zip(frames, scores, strict=True)]
    _print.table(f"{metric}, k = {k}: frames down, captions across", ("frames", *map(str, captions)), rows)
    if law is not None:
        print(
            f"fit: {law.limit:.4f} - ({law.frame_loss:.4f} frames^-{law.frame_rate:.3f} + "
            f"{law.caption_loss:.4f} captions^-{law.caption_rate:.3f}), R² {law.r2:.4f}"
        )
