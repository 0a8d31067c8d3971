"""GATECH-EIC/LongMamba: rules of token filtering, and a Mamba-2 block calibrated on one sequence and filtered on another."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from statescan.generation import LongContext, calibrate_long_context, token_filters
from statescan.layers import Mamba2
from statescan.models._published import mixer_from_published
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture
from tests.parity.adapters.mamba import ALONE, BOOKKEEPING, MAMBA2_NAMES


def filters(fixture: Fixture) -> dict[str, Any]:
    """`get_*`: published tensors are (batch, channels, length)."""
    delta, reference = (F.softplus(given - 2).transpose(1, 2) for given in fixture.inputs())
    length, channels = delta.shape[1:]
    shares, thresholds = torch.linspace(0.15, 1.3, channels), torch.linspace(0.05, 0.3, channels)
    budgets = reference.sum(1)[0]
    # The published rule reads beyond the end where a share is 1; the fixture's stop at 0.9 (not in its notes).
    offline, limits = token_filters.keep_from_rank(delta, shares.clamp(max=0.9))
    third = length // 3
    outputs = {
        "delta": delta,
        "top_k_channelwise_mask": token_filters.keep_top_k_channelwise(delta, third),
        "top_k_channelwise_mask_keep_tail": token_filters.keep_top_k_channelwise(delta, third, keep_tail=4),
        "top_alpha_mask": token_filters.keep_top_share(delta, shares),
        "bound_mask": token_filters.keep_within_budget(delta, budgets),
        "offline_mask": offline,
        "normalised_delta": token_filters.scale_to_budget(delta, budgets),
        "threshold_mask": token_filters.keep_above(delta, thresholds),
    }
    given = {name: value.transpose(1, 2).float() for name, value in outputs.items()}
    tokens = token_filters.top_tokens_by_norm(delta, third, keep_tail=2)[0]
    return given | {"offline_threshold": limits[0], "top_k_tokens_by_norm": tokens}


class _Alone(torch.nn.Module):
    """A mixer called as a language model: one sequence of features."""

    def __init__(self, mixer: Mamba2):
        super().__init__()
        self.mixer = mixer

    def forward(self, x: torch.Tensor, last: int | None = None) -> Any:
        return self.mixer(x)


def mixer(fixture: Fixture) -> dict[str, Any]:
    """`Mamba2` with a table of `load_align_target`; what stands in no class is in the fixture's settings."""
    settings = fixture.data["ours"]["kwargs"]
    built = Mamba2(**translate(fixture.kwargs, MAMBA2_NAMES, ignored=BOOKKEEPING, only=ALONE)).eval()
    fixture.check_parameters(built)
    built.load_state_dict(mixer_from_published(fixture.state_dict()), strict=True)
    model = _Alone(built)
    calibration, x = fixture.inputs()
    lengths = [1000 * (row + 1) for row in range(fixture.outputs["alpha"][0])]
    table = calibrate_long_context(
        model,
        list(calibration),
        train_length=settings["train_length"],
        lengths=lengths,
        clamp_top=settings["clamp_top"],
    )
    channels = table.mixers["average"]["mixer"]
    context = LongContext(table, decay_threshold=settings["decay_threshold"], starts_at=3000)
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        vanilla, _ = built(x)
        with context.applied(model, [x.shape[1]]):
            keep, built.token_filter = built.token_filter, None
            filtering = keep or (lambda steps: steps)
            built.token_filter = lambda steps: seen.append(filtering(steps)) or seen[-1]
            filtered, _ = built(x)
    return {
        "log_cumulative_decay": channels.log_decay,
        "delta_sum": channels.budget,
        "alpha": channels.share,
        "threshold": channels.threshold,
        "vanilla": vanilla,
        "filtered": filtered,
        "filtered_delta": seen[0],
    }


ADAPTERS = {
    "selective_scan_interface.get_*": filters,
    "mamba2.Mamba2 (merge_config ours, dt_thre) and load_align_target": mixer,
}
