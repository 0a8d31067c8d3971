"""The mixers' arithmetic on parts, for many ranks that take turns in this process: gradients flow through one graph."""

import pytest
import torch

from statescan.layers import Mamba, Mamba2, State
from statescan.parallel._mixers import mamba2_part, mamba_part

LENGTHS = (5, 1, 2, 7, 3, 1, 4)


class InTurn:
    """One of the ranks; those before it have had their turn, and what they told is known."""

    def __init__(self, rank, told):
        self.rank, self.size, self._told, self._count = rank, len(LENGTHS), told, 0

    def earlier(self, message, combine):
        self._told.setdefault(self._count, []).append(message)
        before = self._told[self._count][: self.rank]
        self._count += 1
        return lambda: combine(torch.stack(before) if before else message[None][:0])


def compare(mixer, part, device, dtype, tolerance):
    torch.manual_seed(0)
    mixer = mixer.to(device, dtype)
    length = sum(LENGTHS)
    x = torch.randn(2, length, mixer.dim, device=device, dtype=dtype, requires_grad=True)
    resets = torch.zeros(2, length, dtype=torch.bool, device=device)
    resets[1, [6, 17]] = True
    state = State(
        {
            name: torch.randn_like(t).requires_grad_()
            for name, t in mixer.initial_state(2, dtype=dtype, device=x.device).items()
        }
    )
    y, after = mixer(x, state, resets=resets)
    leaves = [x, state["conv"], state["ssm"], *mixer.parameters()]
    on_y, on_ssm = torch.randn_like(y), torch.randn_like(after["ssm"])
    wanted = torch.autograd.grad((y * on_y).sum() + (after["ssm"] * on_ssm).sum(), leaves)
    told, outputs, last = {}, [], None
    for rank, (mine, marks) in enumerate(zip(x.split(LENGTHS, 1), resets.split(LENGTHS, 1), strict=True)):
        output, last = part(mixer, InTurn(rank, told), mine, state, marks)
        outputs.append(output)
    found = torch.autograd.grad((torch.cat(outputs, 1) * on_y).sum() + (last["ssm"] * on_ssm).sum(), leaves)
    pairs = [(torch.cat(outputs, 1), y), (last["ssm"], after["ssm"]), (last["conv"], after["conv"])]
    for one, other in [*pairs, *zip(found, wanted, strict=True)]:
        scale = max(1.0, float(other.detach().abs().max()))
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * scale)


MIXERS = [
    pytest.param(lambda: Mamba(32, state_dim=8), mamba_part, id="mamba"),
    pytest.param(lambda: Mamba2(32, state_dim=16, head_dim=16, groups=2), mamba2_part, id="mamba2"),
    pytest.param(lambda: Mamba2(32, state_dim=16, head_dim=16, gated_norm=False), mamba2_part, id="mamba2, gated"),
]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("build", "part"), MIXERS)
def test_seven_parts_give_what_the_whole_gives(build, part, dtype, tolerance):
    compare(build(), part, "cpu", dtype, tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize(("build", "part"), MIXERS)
def test_seven_parts_on_a_gpu(build, part):
    compare(build(), part, "cuda", torch.float32, 1e-4)
