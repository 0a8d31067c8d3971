"""wyc1997/stree: scans, convolution and verification on token trees, and a Mamba-2 block run on every path of one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from statescan import ops
from statescan.generation import verify_greedy
from statescan.layers import Mamba2
from statescan.models._published import mixer_from_published
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture
from tests.parity.adapters.mamba import ALONE, BOOKKEEPING, MAMBA2_NAMES


def tree_scan(fixture: Fixture) -> dict[str, Any]:
    """`selective_state_update_tree_ref`: the scan of a head along every path."""
    parents, x, dt, B, C, z, state, a, D, bias = fixture.inputs()
    A = -torch.exp(0.5 * a.abs())
    options = dict(parents=parents, delta_bias=bias - 2, delta_softplus=True, initial_state=state)
    steps = F.softplus(dt + bias - 2)
    return {
        "tree_mask": ops.tree_mask(parents).float(),
        "accumulated_log_decay": ops.tree_cumulative_sum(steps * A, parents),
        "ungated": ops.tree_scan(x, dt, A, B, C, D, **options),
        "gated": ops.tree_scan(x, dt, A, B, C, D, z, **options),
        "states": ops.tree_scan_reference(x, dt, A, B, C, D, return_states=True, **options)[1],
    }


def accumulated(fixture: Fixture) -> dict[str, Any]:
    """`tree_cum_ref`: sums along the paths of complete trees; the numbers of children are those of the outputs."""
    dt, a, bias = fixture.inputs()
    decay = F.softplus(dt + bias) * -a.abs()
    first, second = fixture.data["ours"]["kwargs"]["children"]
    sums = {
        children: ops.tree_cumulative_sum(decay, ops.complete_tree(children, dt.shape[1])).transpose(1, 2)
        for children in (first, second)
    }
    return {"accumulated": sums[first], "accumulated_three_children": sums[second]}


def tree_conv(fixture: Fixture) -> dict[str, Any]:
    """`tree_mask_conv1d`: the state there has as many inputs as taps, of which the oldest is never seen."""
    parents, x, state, weight, bias = fixture.inputs()
    width = weight.shape[1]
    y = ops.tree_causal_conv1d(
        x.transpose(1, 2),
        weight,
        bias,
        parents=parents,
        activation="silu",
        initial_state=state.transpose(1, 2)[:, state.shape[2] - (width - 1) :],
    )
    indices = ops.tree_path_indices(parents, width).clamp(min=-1)
    return {"conv": y.transpose(1, 2), "path_indices": indices}


def verification(fixture: Fixture) -> dict[str, Any]:
    """`sampling_verification_tree` with top_k 1, and `unroll_tree`."""
    parents, tokens, logits = fixture.inputs()
    above = parents.tolist()
    node = 0
    for _ in range(2):
        children = [child for child, parent in enumerate(above) if parent == node]
        if not children:
            break
        logits[0, node, tokens[0, children[-1]]] = 9.0
        node = children[-1]
    found = verify_greedy(tokens[0], parents, logits[0])
    leaves = ops.unroll_tree(parents)
    return {
        "logits": logits,
        "output_tokens": torch.tensor([[int(tokens[0, 0]), *found.tokens]]),
        "accepted_steps_and_index": torch.tensor([len(found.tokens), len(found.path) + 0.5]),
        "verified_mask": ops.tree_mask(parents)[found.path[-1]][None].float(),
        "leaf_sequences": tokens[0][leaves.clamp(min=0)],
        "leaf_mask": (leaves >= 0).float(),
        "leaf_matrix": leaves[None],
    }


def mixer_tree(fixture: Fixture) -> dict[str, Any]:
    """A Mamba-2 block: one pass over the tree, and the state after the path to the first deepest node."""
    mixer = Mamba2(**translate(fixture.kwargs, MAMBA2_NAMES, ignored=BOOKKEEPING, only=ALONE)).eval()
    fixture.check_parameters(mixer)
    mixer.load_state_dict(mixer_from_published(fixture.state_dict()), strict=True)
    parents, prefix, nodes = fixture.inputs()
    with torch.no_grad():
        _, state = mixer(prefix)
        y, trace = mixer.forward_tree(nodes, parents, state)
        depths = ops.tree_depths(parents)
        deepest = int((depths == depths.max()).nonzero()[0])
        path = ops.tree_path_indices(parents, int(depths.max()))[deepest]
        path = path.expand(len(nodes), -1)
        after = mixer.replay(trace, path, state)
        # Published caches hold as many inputs as the convolution has taps: the oldest of them is one step older.
        before = mixer.replay(trace, path[:, :-1], state) if path.shape[1] > 1 else state
    conv = torch.cat([before["conv"][:, :1], after["conv"]], dim=1)
    return {
        "tree_output": y,
        "accepted_conv_state": conv.transpose(1, 2),
        "accepted_ssm_state": after["ssm"],
        "prefix_ssm_state": state["ssm"],
    }


ADAPTERS = {
    "ops.triton.selective_state_update.selective_state_update_tree_ref": tree_scan,
    "tree_scan.tree_cum_ref": accumulated,
    "tree_scan.tree_mask_conv1d, mask_index_gather_ref": tree_conv,
    "utils.tree_verification.sampling_verification_tree, unroll_tree": verification,
    "mamba_ssm Mamba2 run on every root-to-node path": mixer_tree,
}
