"""Trees of tokens as tensors of parents, and what operators on trees need of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def complete_tree(children: int, nodes: int) -> Tensor:
    """Parents of a complete tree: node i > 0 hangs on node (i - 1) // children.

    Arguments:
        children: of every node.
        nodes: how many; the last level may be unfinished.

    Returns:
        parents (nodes,), int64, -1 for node 0.
    """
    if children < 1 or nodes < 1:
        raise ValueError(f"children, nodes: at least 1 of each, got {children} and {nodes}")
    return torch.tensor([-1] + [(node - 1) // children for node in range(1, nodes)])


def branching_tree(branching: Sequence[int]) -> Tensor:
    """Parents of a tree in which every node of level i has branching[i] children, level by level.

    ``(1, 1, 1)`` is a chain of four nodes, ``(3, 2)`` a root with three children that have two each.

    Returns:
        parents (nodes,), int64, -1 for node 0.
    """
    if any(count < 1 for count in branching):
        raise ValueError(f"branching: at least 1 child a level, got {tuple(branching)}")
    parents, level = [-1], [0]
    for count in branching:
        first = len(parents)
        parents += [node for node in level for _ in range(count)]
        level = list(range(first, len(parents)))
    return torch.tensor(parents)


def check_parents(name: str, parents: Tensor, nodes: int) -> None:
    """Refuse what is no tree: `parents` (nodes,) or (batch, nodes) int64, each before its children, -1 for a root.

    Values are looked at on a CPU only; reading them on a GPU would stop its stream.
    """
    if not isinstance(parents, Tensor) or parents.dtype != torch.int64:
        given = str(getattr(parents, "dtype", type(parents).__name__)).removeprefix("torch.")
        raise TypeError(f"{name}: parents must be an int64 tensor, not {given}")
    if parents.ndim not in (1, 2) or parents.shape[-1] != nodes:
        raise ValueError(f"{name}: parents has shape {tuple(parents.shape)}; expected ({nodes},) or (batch, {nodes})")
    if parents.device.type != "cpu" or torch.compiler.is_compiling() or not nodes:
        return
    if type(parents) is not Tensor:  # a fake tensor has no values
        return
    wrong = (parents < -1) | (parents >= torch.arange(nodes))
    if bool(wrong.any()):
        node = int(wrong.reshape(-1, nodes).any(0).nonzero()[0])
        raise ValueError(
            f"{name}: parents must come before their children, -1 for a root; node {node} has parent "
            f"{parents.reshape(-1, nodes)[:, node].tolist()}"
        )


def tree_mask(parents: Tensor) -> Tensor:
    """Which nodes lie on the path from the root to each: (…, nodes, nodes) bool, True at [i, j] where j is i or above.

    Arguments:
        parents: (nodes,) or (batch, nodes), int64; -1 for a root, else smaller than the node's own number.
    """
    nodes = parents.shape[-1]
    own = torch.eye(nodes, dtype=torch.bool, device=parents.device).expand(*parents.shape, nodes)
    # Doubling: after k rounds a row holds its 2^k nearest, and `above` is the ancestor 2^k levels up.
    mask, above = own.clone(), parents
    reached = 1
    while reached < nodes:
        held = above >= 0
        index = above.clamp(min=0)
        upper = torch.gather(mask, -2, index[..., None].expand_as(mask))
        mask = mask | (upper & held[..., None])
        above = torch.where(held, torch.gather(above, -1, index), above)
        reached *= 2
    return mask


def tree_depths(parents: Tensor) -> Tensor:
    """How many nodes lie on the path to each, itself included: shaped as parents, 1 for a root."""
    return tree_mask(parents).sum(-1)


def tree_path_indices(parents: Tensor, width: int) -> Tensor:
    """The last `width` nodes of the path to each node, itself at the right end.

    Arguments:
        parents: (…, nodes).
        width: at least 1.

    Returns:
        (…, nodes, width) int64; -1, -2, … where the path begins later: how many places before the root.
    """
    nodes = parents.shape[-1]
    current = torch.arange(nodes, device=parents.device).expand_as(parents)
    columns = [current]
    for _ in range(width - 1):
        above = torch.gather(parents, -1, current.clamp(min=0))
        current = torch.where(current >= 0, above, current - 1)
        columns.append(current)
    return torch.stack(columns[::-1], dim=-1)


def tree_cumulative_sum(values: Tensor, parents: Tensor) -> Tensor:
    """Sums along the path from the root: values (batch, nodes, …) -> the same shape; in float32 or wider."""
    wide = torch.promote_types(values.dtype, torch.float32)
    mask = tree_mask(parents).to(wide)
    flat = values.to(wide).flatten(2) if values.ndim > 2 else values.to(wide)[..., None]
    return (mask @ flat).reshape(values.shape)


def unroll_tree(parents: Tensor) -> Tensor:
    """Every path from the root to a leaf, for checking a tree the long way: a batch row each.

    Arguments:
        parents: (nodes,), int64.

    Returns:
        (leaves, depth) int64, numbers of nodes, right aligned, -1 in front of the shorter paths; leaves in order.
    """
    check_parents("unroll_tree", parents, parents.shape[-1])
    inner = torch.zeros(parents.shape[0] + 1, dtype=torch.bool, device=parents.device)
    inner[parents] = True  # -1 marks the extra last entry
    paths = tree_path_indices(parents, int(tree_depths(parents).max()))
    return paths[~inner[:-1]].clamp(min=-1)


def tree_levels(parents: Tensor) -> list[Tensor]:
    """The numbers of the nodes of each depth, for trees that share their shape: parents (nodes,)."""
    depths = tree_depths(parents)
    return [(depths == depth).nonzero()[:, 0] for depth in range(1, int(depths.max()) + 1)] if len(parents) else []
