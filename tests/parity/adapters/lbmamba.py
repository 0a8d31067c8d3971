"""cvlab-stonybrook/LBMamba: the local scan and LBVim."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from statescan import ops
from statescan.models.lbmamba import LBVim, LBVimConfig
from tests.parity._fixture import Fixture, ParityError
from tests.parity.adapters import vim

_ORDER = ("u", "dt", "a_log", "b", "c", "d", "z", "dt_bias")
#: Options that change the function and that we lack, with their defaults.
_ABSENT = {
    "use_thread_head_cls_token": False,
    "last_n_layer_vim": 0,
    "layerwise_reverse_cls": True,
    "return_cls_token": True,
    "use_double_cls_token": False,
}
_HEADS = {
    "att_qkv_onlyatt_pnorm": (True, False, True),
    "att_qkv_onlyatt_pnorm_nomapq": (False, False, True),
    "att_qkv_onlyatt_nonorm": (True, False, False),
    "att_qkv_onlyatt_pnorm_qknorm": (True, True, True),
    "att_qkv_onlyatt_pnorm_qknorm_nomapq": (False, True, True),
}


def local_scan(fixture: Fixture) -> dict[str, Any]:
    """The operator: y, the plain scan's y, and gradients of sum(y cos(0, 1, 2, ...))."""
    leaves = [value.float().requires_grad_() for value in fixture.inputs()]
    window = fixture.kwargs.get("window") or "auto"

    def call(window: Any) -> Tensor:
        u, dt, a_log, b, c, d, z, bias = leaves

        def rows(value: Tensor) -> Tensor:
            return value.transpose(1, 2)

        y = ops.local_scan(
            rows(u),
            rows(dt),
            -torch.exp(a_log),
            rows(b),
            rows(c),
            d,
            rows(z),
            window=window,
            delta_bias=bias,
            delta_softplus=True,
        )
        assert isinstance(y, Tensor)
        return rows(y)

    y = call(window)
    weight = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).float().view(y.shape)
    gradients = torch.autograd.grad((y * weight).sum(), leaves)
    outputs = {f"grad_{name}": value for name, value in zip(_ORDER, gradients, strict=True)}
    return {"y": y.detach(), "y_without_local": call(1).detach(), **outputs}


@torch.no_grad()
def classifier(fixture: Fixture) -> dict[str, Any]:
    """`BiVisionMamba`: what the head reads, and the scores."""
    given = {"final_pool_type": "none", "lbm": True} | fixture.kwargs
    for name, default in _ABSENT.items():
        if given.pop(name, default) != default:
            raise ParityError(f"argument {name} is not supported")
    given.pop("thread_head_cls_token_len", None)
    given.pop("flip_img_sequences_ratio", None)
    heads = given.pop("head_n_heads", 3)
    kind = given.pop("head_type", None)
    own: dict[str, Any] = dict(alternate=given.pop("layerwise_reverse_sq", False))
    own["window"] = "auto" if given.pop("lbm") else 1
    if kind is not None:
        if kind not in _HEADS:
            raise ParityError(f"head_type={kind!r} is not supported; supported: {', '.join(_HEADS)}")
        query, head_norm, norm = _HEADS[kind]
        own |= dict(attention_heads=heads, attention_query=query, attention_head_norm=head_norm, attention_norm=norm)
    model = vim.load(fixture, LBVim(LBVimConfig(**(vim.options(given) | own))))
    features = model.forward_features(fixture.inputs()[0])
    return {"features": model.forward_head(features, pre_logits=True), "logits": model.forward_head(features)}


ADAPTERS = {
    "LBMamba_kernel/selective_scan_fwd_kernel.cuh (from its definition)": local_scan,
    "classification/models_mamba_bi.py:BiVisionMamba": classifier,
}
