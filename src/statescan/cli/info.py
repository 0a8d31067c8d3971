"""What a model costs: parameters, FLOPs, bytes of state and activations."""

from __future__ import annotations

from typing import Annotated

import tyro


def run(
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")],
    *,
    length: int = 2048,
    size: int | None = None,
    batch: int = 1,
    json: bool = False,
) -> None:
    """Print what a named model costs: `statescan info mamba_130m --length 2048`, `statescan info vim_tiny --size 512`.

    Models of neither text nor images are shown with their parameters and their config.

    Args:
        name: one of `statescan models`.
        length: tokens a sequence, for a language model.
        size: side of the images in pixels, for an image model; that of its config unless given.
        batch: sequences or images.
        json: print data instead of a table.
    """
    import dataclasses

    from statescan import inspect, models
    from statescan.cli import _print

    config = models.model_info(name).config
    model = inspect.build_without_memory(name)
    if inspect.reads_images(model):
        images = inspect.image_cost(model, size=size, batch=batch)
        if json:
            _print.as_json({"name": name, **dataclasses.asdict(images), "config": dataclasses.asdict(config)})
            return
        height, width = config.image_shape if size is None else (size, size)
        rows = [
            ("parameters", f"{images.parameters:,}"),
            ("weights, float32", f"{4 * images.parameters:,} bytes"),
            (f"multiply-adds, {batch} x {height} x {width} pixels", f"{images.multiply_adds:,}"),
            ("operations of scans", f"{images.scan_operations:,}"),
            *((key, str(value)) for key, value in dataclasses.asdict(config).items()),
        ]
        _print.table(name, ("what", "how much"), rows)
        return
    if not inspect.reads_tokens(model):
        parameters = inspect.count_parameters(model)
        if json:
            _print.as_json({"name": name, "parameters": parameters, "config": dataclasses.asdict(config)})
            return
        rows = [("parameters", f"{parameters:,}"), ("weights, float32", f"{4 * parameters:,} bytes")]
        rows += [(name, str(value)) for name, value in dataclasses.asdict(config).items()]
        _print.table(name, ("what", "how much"), rows)
        return
    cost = inspect.measure_cost(name, length=length, batch=batch)
    if json:
        _print.as_json({"name": name, **dataclasses.asdict(cost), "config": dataclasses.asdict(config)})
        return
    grows = "constant" if cost.state_bytes == cost.state_bytes_start else f"{cost.state_bytes_start:,} at the start"
    rows = [
        ("parameters", f"{cost.parameters:,}"),
        ("weights, float32", f"{cost.parameter_bytes:,} bytes"),
        (f"FLOPs, forward, {batch} x {length} tokens", f"{cost.flops_forward:,}"),
        ("FLOPs a token", f"{cost.flops_per_token:,}"),
        ("state", f"{cost.state_bytes:,} bytes ({grows})"),
        ("activations kept for training", f"{cost.activation_bytes:,} bytes"),
    ]
    _print.table(name, ("what", "how much"), rows)
