"""Sequence mixers by name, so that one word of a config exchanges them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal

from torch import nn

from statescan._names import nearest
from statescan.layers._attention import Attention
from statescan.layers._based import BaseConv, SlidingAttention, TaylorLinearAttention
from statescan.layers._companion import CompanionMixer
from statescan.layers._gated_ssm import GatedSSM
from statescan.layers._h3 import H3
from statescan.layers._long_conv import LongConv
from statescan.layers._lssl import LSSL
from statescan.layers._mamba import Mamba
from statescan.layers._mamba2 import Mamba2
from statescan.layers._mamba3 import Mamba3
from statescan.layers._recurrent import RecurrentCell
from statescan.layers._s4 import S4, S4D
from statescan.layers._s5 import S5, S5Activation, S5Block
from statescan.layers._seqboat import SeqBoat


def _s5(
    dim: int,
    *,
    state_dim: int = 64,
    blocks: int = 1,
    activation: S5Activation = "half_glu1",
    bidirectional: bool = False,
    dt_min: float = 1e-3,
    dt_max: float = 0.1,
) -> nn.Module:
    system = S5(dim, state_dim=state_dim, blocks=blocks, bidirectional=bidirectional, dt_min=dt_min, dt_max=dt_max)
    return S5Block(system, activation=activation, norm_at=(), residual=False)


def _structured(layer: type[S4], initialisation: str, discretization: str) -> Callable[..., nn.Module]:
    def build(
        dim: int,
        *,
        state_dim: int = 64,
        channels: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        initialisation: str = initialisation,
        discretization: str = discretization,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
    ) -> nn.Module:
        return layer(
            dim,
            state_dim=state_dim,
            channels=channels,
            bidirectional=bidirectional,
            dropout=dropout,
            initialisation=initialisation,
            discretization=discretization,
            dt_min=dt_min,
            dt_max=dt_max,
        )

    return build


def _attention(
    dim: int, *, heads: int | None = None, rotary: bool = True, causal: bool = True, conv_kernel: int = 0
) -> nn.Module:
    heads = heads or max(1, dim // 64)
    rotary_dim = dim // heads // 2 * 2 if rotary else 0
    return Attention(dim, heads, rotary_dim=rotary_dim, causal=causal, conv_kernel=conv_kernel)


def _h3(dim: int, *, state_dim: int = 64, head_dim: int = 1, dt_min: float = 1e-3, dt_max: float = 0.1) -> nn.Module:
    return H3(dim, state_dim=state_dim, head_dim=head_dim, dt_min=dt_min, dt_max=dt_max)


def _long_conv(
    dim: int,
    *,
    max_length: int = 1024,
    channels: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
    kernel_dropout: float = 0.0,
) -> nn.Module:
    return LongConv(
        dim,
        max_length=max_length,
        channels=channels,
        bidirectional=bidirectional,
        dropout=dropout,
        kernel_dropout=kernel_dropout,
    )


def _lssl(
    dim: int,
    *,
    state_dim: int = 64,
    measure: str = "legs",
    learn: Literal["fixed", "shared", "separate"] = "shared",
    outputs: int = 1,
    dropout: float = 0.0,
    dt_min: float = 1e-3,
    dt_max: float = 0.1,
) -> nn.Module:
    return LSSL(
        dim,
        state_dim=state_dim,
        measure=measure,
        learn=learn,
        outputs=outputs,
        dropout=dropout,
        dt_min=dt_min,
        dt_max=dt_max,
    )


def _recurrent(kind: Literal["gru", "lstm"]) -> Callable[..., nn.Module]:
    return lambda dim: RecurrentCell(dim, kind=kind)


#: What makes a mixer of `dim` channels; its keywords are the options.
MIXERS: dict[str, Callable[..., nn.Module]] = {
    "attention": _attention,
    "base_conv": BaseConv,
    "based": TaylorLinearAttention,
    "gated_ssm": GatedSSM,
    "gru": _recurrent("gru"),
    "h3": _h3,
    "long_conv": _long_conv,
    "lssl": _lssl,
    "lstm": _recurrent("lstm"),
    "mamba": Mamba,
    "mamba2": Mamba2,
    "mamba3": Mamba3,
    "s4": _structured(S4, "legs", "bilinear"),
    "s4d": _structured(S4D, "diag-lin", "zoh"),
    "s5": _s5,
    "seqboat": SeqBoat,
    "sliding_attention": SlidingAttention,
    "spacetime": CompanionMixer,
}

#: Parts of names of mixers' parameters that weight decay would harm: rates of decay, step sizes, direct paths.
UNDECAYED = (
    *("A_log", "delta_bias", ".D", "learned_state"),  # Mamba, Mamba-2
    *("B_bias", "C_bias", "mimo_"),  # Mamba-3
    *(".A_real", ".A_imag", ".inverse_dt", ".P", "kernel.B"),  # S4
    *("Lambda_", "log_step", "mixer.B"),  # S5
    *("shift_D", "shift_kernel.B", "kernel.taps"),  # H3, long convolutions
    *("mixer.system.", ".log_dt", ".ssm.a"),  # LSSL, SpaceTime
    *("ema.", "query_key_", "log_temperature", "position_bias"),  # SeqBoat
)


def build_mixer(name: str, dim: int, **options: Any) -> nn.Module:
    """A new mixer of `dim` channels.

    Raises:
        ValueError: a name or an option that does not exist; the nearest one is shown.
    """
    check_mixer(name, options)
    return MIXERS[name](dim, **options)


def check_mixer(name: str, options: dict[str, Any], *, label: str = "mixer") -> None:
    """Whether there is such a mixer with such options, without building it.

    Raises:
        ValueError: as `build_mixer`.
    """
    if name not in MIXERS:
        raise ValueError(f"{label}: unknown {name!r}{_nearest(name, MIXERS)}")
    known = [option for option in inspect.signature(MIXERS[name]).parameters if option != "dim"]
    for option in options:
        if option not in known:
            raise ValueError(f"{name}: unknown option {option!r}{_nearest(option, known)}")


def _nearest(name: str, known: Any) -> str:
    return nearest(name, known) + f"; known: {', '.join(known) or 'none'}"
