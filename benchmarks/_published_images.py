"""Published image models on a CPU: their authors' code from folders that the user has, on its plain PyTorch scans.

    git clone https://github.com/MzeroMiko/VMamba PEERS/VMamba
    git clone https://github.com/hustvl/Vim PEERS/Vim
    git clone https://github.com/TerryPei/EfficientVMamba PEERS/EfficientVMamba
    git clone https://github.com/YuHengsss/VSSD PEERS/VSSD
    git clone https://github.com/mlvlab/EfficientViM PEERS/EfficientViM
    git clone https://github.com/lewandofskee/MobileMamba PEERS/MobileMamba
    pip install --no-deps timm fvcore iopath PyWavelets einops

None of it is ours and none of it is kept. Packages that need a GPU or torchvision are stood in for while theirs is
imported; where the authors' CUDA operator has a plain PyTorch form in the same repository, that form is called.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ABSENT = (
    "torchvision",
    "selective_scan_cuda",
    "selective_scan_cuda_core",
    "selective_scan_cuda_oflex",
    "causal_conv1d",
    "causal_conv1d_cuda",
    "fvcore",
    "mmcv",
    "mmengine",
    "util",
    "iopath",
    "ssd_combined",
)
#: Where a plain PyTorch scan takes over if the CUDA ones do not import.
_WITHOUT_SCANS = tuple(name for name in _ABSENT if not name.startswith("selective_scan_cuda"))


class _StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules that accept whatever is asked of them."""

    def __init__(self, names: tuple[str, ...]):
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> Any:
        module = MagicMock(name=spec.name)
        module.__spec__, module.__path__, module.__version__ = spec, [], "0"
        return module

    def exec_module(self, module: Any) -> None:
        pass


@contextmanager
def _imports(
    *folders: Path, absent: tuple[str, ...] = _ABSENT, modules: dict[str, Any] | None = None
) -> Iterator[None]:
    """Import from `folders`, with stand-ins; what was imported meanwhile is forgotten afterwards."""
    before, path = set(sys.modules), list(sys.path)
    finder = _StandIn(absent)
    sys.meta_path.insert(0, finder)
    sys.path[:0] = [str(folder) for folder in folders]
    sys.modules.update(modules or {})
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        sys.path[:] = path
        for name in set(sys.modules) - before:
            if name.split(".")[0] not in ("timm", "einops", "pywt", "torch", "numpy", "triton"):
                del sys.modules[name]


def _module(name: str, **content: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(content)
    module.__path__ = []  # type: ignore[attr-defined]
    return module


# ---- what stands in for Triton and CUDA: the same mathematics in plain PyTorch ------------------------------------


class _RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float = 1e-5, **_: Any):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(dim))
        self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


def _add_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
    **_: Any,
) -> Any:
    total = x if residual is None else x + residual
    normed = F.rms_norm(total, total.shape[-1:], weight, eps)
    return (normed, total) if prenorm else normed


def _causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None) -> Tensor:
    y = F.conv1d(x, weight[:, None], bias, padding=weight.shape[1] - 1, groups=x.shape[1])[..., : x.shape[2]]
    return F.silu(y) if activation == "silu" else y


def _scan_of_groups(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor, softplus: bool
) -> Any:
    """The published recurrence, a position at a time: u (batch, channels, length), B and C (batch, groups, N, length)."""
    delta = delta.float() + bias[:, None].float()
    if softplus:
        delta = F.softplus(delta)
    repeat = u.shape[1] // B.shape[1]
    B, C = (rows.float().repeat_interleave(repeat, dim=1) for rows in (B, C))
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    fed = torch.einsum("bdl,bdnl,bdl->bdln", delta, B, u.float())
    h, rows = torch.zeros_like(decay[:, :, 0]), []
    for t in range(u.shape[2]):
        h = decay[:, :, t] * h + fed[:, :, t]
        rows.append(torch.einsum("bdn,bdn->bd", h, C[:, :, :, t]))
    return torch.stack(rows, dim=2) + u * D[:, None]


# ---- the models ------------------------------------------------------------------------------------------------------


def vim_tiny(folder: Path, size: int) -> nn.Module:
    """Vim-tiny, its mixer on the published `selective_scan_ref`."""
    norms = _module("layer_norm", RMSNorm=_RMSNorm, layer_norm_fn=_add_norm, rms_norm_fn=_add_norm)
    convolution = _module("causal_conv1d", causal_conv1d_fn=_causal_conv1d, causal_conv1d_update=None)
    absent = tuple(name for name in _ABSENT if not name.startswith("causal_conv1d")) + ("causal_conv1d_cuda",)
    modules = {"mamba_ssm.ops.triton.layer_norm": norms, "causal_conv1d": convolution}
    modules["mamba_ssm.utils.generation"] = _module("generation", GenerationMixin=object)
    modules["mamba_ssm.utils.hf"] = _module("hf", load_config_hf=None, load_state_dict_hf=None)
    modules["mamba_ssm"] = _module("mamba_ssm")
    modules["mamba_ssm"].__path__ = [str(folder / "mamba-1p1p1" / "mamba_ssm")]
    with _imports(folder / "vim", folder / "mamba-1p1p1", absent=absent, modules=modules):
        interface = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
        interface.selective_scan_fn = interface.selective_scan_ref

        def inner(xz: Tensor, *weights: Any, **options: Any) -> Tensor:
            *projections, A = weights[:5]
            identity = torch.eye(A.shape[0])
            y = interface.mamba_inner_ref(xz, *projections, identity, None, A, *weights[5:], **options)
            return y.transpose(1, 2)

        mixer = importlib.import_module("mamba_ssm.modules.mamba_simple")
        mixer.mamba_inner_fn_no_out_proj = inner
        mixer.causal_conv1d_fn = _causal_conv1d
        published = importlib.import_module("models_mamba")
        published.RMSNorm, published.rms_norm_fn, published.layer_norm_fn = _RMSNorm, _add_norm, _add_norm
        make = published.vim_tiny_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2
        return make(img_size=size)


def vmamba_tiny(folder: Path, size: int) -> nn.Module:
    """VMamba-T (s1l8) of the released configuration, on `selective_scan_torch` and the plain cross scan."""
    with _imports(folder / "classification", folder / "classification" / "models", absent=_WITHOUT_SCANS):
        package = _module("models")
        package.__path__ = [str(folder / "classification" / "models")]
        sys.modules["models"] = package
        published = importlib.import_module("models.vmamba")
        if not torch.cuda.is_available():  # it names the tensor's device, whatever that is
            torch.cuda.device = lambda device: nullcontext()  # type: ignore[assignment, misc]
        model = published.VSSM(
            depths=[2, 2, 8, 2],
            dims=96,
            ssm_d_state=1,
            ssm_ratio=1.0,
            ssm_dt_rank="auto",
            ssm_conv_bias=False,
            ssm_init="v0",
            forward_type="v05_noz",
            mlp_ratio=4.0,
            norm_layer="ln2d",
            downsample_version="v3",
            patchembed_version="v2",
        )
    return model


def efficient_vmamba(folder: Path, size: int) -> nn.Module:
    """EfficientVMamba-T; its CUDA operator is its only one, the recurrence that the file describes stands in."""
    with _imports(folder / "classification"):
        package = _module("models")
        package.__path__ = [str(folder / "classification" / "models")]
        sys.modules["models"] = package
        operations = _load(
            "lib_operations", folder / "classification" / "lib" / "models" / "operations.py", "lib.models"
        )
        sys.modules["lib"], sys.modules["lib.models"] = _module("lib"), _module("lib.models")
        sys.modules["lib.models.operations"] = operations
        published = importlib.import_module("models.vmamba_efficient")

        class Scan:
            @staticmethod
            def apply(*arguments: Any) -> Tensor:
                return _scan_of_groups(*arguments[:8])

        published.SelectiveScan = Scan
        return published.EfficientVSSM(
            dims=[48, 96, 192, 384], depths=[2, 2, 4, 2], ssm_ratio=2.0, mlp_ratio=0.0, downsample_version="v1"
        )


def _load(name: str, path: Path, package: str) -> Any:
    """A file as a module whose relative imports find nothing that is there."""
    sys.modules[f"{package}.mdconv"] = _module("mdconv", MDConv=nn.Identity)
    spec = importlib.util.spec_from_file_location(f"{package}.operations", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    module.__package__ = package
    spec.loader.exec_module(module)
    return module


def vssd_micro(folder: Path, size: int) -> nn.Module:
    """VSSD-micro: no scan, plain PyTorch as published."""
    with _imports(folder / "classification" / "models", absent=(*_ABSENT, "mamba_ssm")):
        published = importlib.import_module("mamba2")
        return published.VMAMBA2(
            img_size=size,
            embed_dim=48,
            depths=[2, 2, 8, 4],
            num_heads=[2, 4, 8, 16],
            d_state=48,
            linear_attn_duality=True,
            ssd_positve_dA=True,
        )


def efficient_vim_m2(folder: Path, size: int) -> nn.Module:
    """EfficientViM-M2: no scan, plain PyTorch as published."""
    with _imports(folder / "classification"):
        return importlib.import_module("models.EfficientViM").EfficientViM_M2()


def mobile_mamba_b1(folder: Path, size: int) -> nn.Module:
    """MobileMamba-B1 on `selective_scan_torch` and the plain walk of two routes."""
    registry = _module("registry")

    class Registry:
        def __init__(self, name: str):
            pass

        def register_module(self, module: Any = None, **_: Any) -> Any:
            return module

    registry.__dict__["Registry"] = Registry
    package = _module("model", MODEL=Registry("model"))
    package.__path__ = [str(folder / "model")]
    lib = _module("model.lib_mamba")
    lib.__path__ = [str(folder / "model" / "lib_mamba")]
    modules = {"model": package, "model.lib_mamba": lib, "util.registry": registry}
    with _imports(folder, absent=_WITHOUT_SCANS, modules=modules):
        published = importlib.import_module("model.mobilemamba.mobilemamba")
        return published.MobileMamba(num_classes=1000, **{**published.CFG_MobileMamba_B1, "img_size": size})


#: Our name, the folder among the peers, and what builds theirs for images of a size.
PEERS: dict[str, tuple[str, Callable[[Path, int], nn.Module]]] = {
    "vim_tiny": ("Vim", vim_tiny),
    "vmamba_tiny_s1l8": ("VMamba", vmamba_tiny),
    "efficient_vmamba_t": ("EfficientVMamba", efficient_vmamba),
    "vssd_micro": ("VSSD", vssd_micro),
    "efficient_vim_m2": ("EfficientViM", efficient_vim_m2),
    "mobile_mamba_b1": ("MobileMamba", mobile_mamba_b1),
}
