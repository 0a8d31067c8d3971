"""state-spaces/mamba: the Mamba-3 block and its recurrence."""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.layers import Mamba3
from statescan.layers._trapezoid import Segments, angles, trapezoidal_scan, turn, turns
from statescan.models._published import mixer_from_published
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture, ParityError
from tests.parity.adapters.mamba import mamba3_options


@torch.no_grad()
def block(fixture: Fixture) -> dict[str, Tensor]:
    """`Mamba3` alone: the whole sequence, and, where asked for, a prefill with steps after it."""
    mixer = Mamba3(**mamba3_options(fixture.kwargs)).eval()
    fixture.check_parameters(mixer)
    mixer.load_state_dict(mixer_from_published(fixture.state_dict()), strict=True)
    (x,) = fixture.inputs()
    y, state = mixer(x)
    outputs = dict.fromkeys(("y", "full", "out"), y)
    outputs |= {
        "ssm_state": state["ssm"],
        "k_state": state["key"],
        "v_state": state["value"],
        "angle_state_cos": state["angle"].cos(),
        "angle_state_sin": state["angle"].sin(),
    }
    if "prefill_then_step" in fixture.outputs:
        length = int(fixture.note(r"first (\d+) positions") or 0)
        if not 1 <= length < x.shape[1]:
            raise ParityError("the notes do not say how long the prefill is")
        part, state = mixer(x[:, :length])
        parts = [part]
        for t in range(length, x.shape[1]):
            y, state = mixer.step(x[:, t], state)
            parts.append(y[:, None])
        outputs["prefill_then_step"] = torch.cat(parts, dim=1)
    return outputs


@torch.no_grad()
def siso(fixture: Fixture) -> dict[str, Tensor]:
    """`mamba3_siso_step_ref` and its chunked form: heads come before positions in ADT, DT and Trap."""
    options = translate(fixture.kwargs, {"chunk_size": "chunk_size"}, ignored=("dtype",))
    given = fixture.named_inputs()
    heads = given["V"].shape[2]
    step, mix = given["DT"].mT, torch.sigmoid(given["Trap"]).mT
    rate = -given["ADT"].mT / step
    segments = Segments.of(step.shape[1], None, None)

    def call(*, states: bool, extras: bool) -> tuple[Tensor, ...]:
        before = {name: given.get(f"{name}_state") if states else None for name in ("angle", "ssm", "k", "v")}
        angle = angles(turns(given["Angles"], step), before["angle"], segments)

        def turned(rows: str) -> Tensor:
            wide = given[rows].repeat_interleave(heads // given[rows].shape[2], dim=2)
            biased = wide + given.get(f"{rows}_bias", 0)
            return turn(biased, angle.cos(), angle.sin(), interleaved=True)[:, :, None]

        keys = turned("K")
        y, last = trapezoidal_scan(
            given["V"][:, :, None],
            step,
            rate,
            mix,
            keys,
            turned("Q"),
            given.get("D") if extras else None,
            state=before["ssm"],
            last_x=None if before["v"] is None else before["v"][:, None],
            last_key=None if before["k"] is None else before["k"][:, None],
            segments=segments,
            **options,
        )
        y = y[:, :, 0]
        if extras and "Z" in given:
            y = y * torch.nn.functional.silu(given["Z"])
        return y, last, keys[:, -1, 0], angle[:, -1]

    out, ssm, key, angle = call(states=True, extras=True)
    plain, ssm_plain, *_ = call(states=False, extras=False)
    return {
        "out": out,
        "ssm_state": ssm,
        "k_state": key,
        "v_state": given["V"][:, -1],
        "angle_state_cos": angle.cos(),
        "angle_state_sin": angle.sin(),
        "out_no_state_no_gate": plain,
        "ssm_state_no_state": ssm_plain,
    }


ADAPTERS = {
    "mamba_ssm.modules.mamba3.Mamba3": block,
    "tests/ops/triton/test_mamba3_siso.py: mamba3_siso_step_ref": siso,
    "tests/ops/triton/test_mamba3_siso.py: mamba3_siso_fwd_ref": siso,
}
