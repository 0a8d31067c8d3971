"""State is a value: nested, moved, forked, joined, stored."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch.utils import _pytree

from statescan.layers import AttentionState, State


def example() -> State:
    return State(
        {
            "0": State({"conv": torch.arange(12.0).view(2, 3, 2), "ssm": torch.randn(2, 4, dtype=torch.complex64)}),
            "1": AttentionState(
                {"keys": torch.randn(2, 1, 5, 3), "values": torch.randn(2, 1, 5, 3), "start": torch.tensor([0, 2])}
            ),
            "2": State(),
        }
    )


def assert_equal(got: State, want: State) -> None:
    assert type(got) is type(want)
    assert list(got) == list(want)
    for name, entry in want.items():
        if isinstance(entry, State):
            assert_equal(got[name], entry)
        else:
            assert got[name].dtype == entry.dtype
            torch.testing.assert_close(got[name], entry, rtol=0, atol=0)


def test_entries_are_read_as_items_or_attributes() -> None:
    state = State({"conv": torch.zeros(2, 3)})
    assert state["conv"] is state.conv
    assert "conv" in state
    assert state.get("ssm") is None
    assert repr(example()["1"]) == "AttentionState(keys=(2, 1, 5, 3), values=(2, 1, 5, 3), start=(2,) int64)"
    with pytest.raises(AttributeError, match="no entry 'ssm'"):
        _ = state.ssm
    with pytest.raises(AttributeError, match="is a value"):
        state.conv = torch.zeros(1)  # type: ignore[misc]


def test_size() -> None:
    assert example().batch_size == 2
    assert example().nbytes == 4 * 12 + 8 * 8 + 2 * 4 * 30 + 16
    assert State().batch_size is None


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ({"a.b": torch.zeros(1)}, ValueError, "without dots"),
        ({"": torch.zeros(1)}, ValueError, "without dots"),
        ({"a": [1]}, TypeError, "a must be a tensor or a State, not list"),
    ],
)
def test_wrong_entries(entries: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        State(entries)


def test_select_reorders_drops_and_forks() -> None:
    state = example()
    forked = state.select([1, 1, 0])
    assert forked.batch_size == 3
    torch.testing.assert_close(forked["0"].conv[1], state["0"].conv[1])
    torch.testing.assert_close(forked["1"].start, torch.tensor([2, 2, 0]))
    assert state.select(torch.tensor([], dtype=torch.int64)).batch_size == 0


def test_concatenate_is_the_inverse_of_select() -> None:
    state = example()
    assert_equal(State.concatenate([state.select([0]), state.select([1])]), state)
    with pytest.raises(ValueError, match="no states"):
        State.concatenate([])
    with pytest.raises(ValueError, match="differ in kind or names"):
        State.concatenate([state, State()])
    with pytest.raises(ValueError, match="conv has shapes"):
        State.concatenate([State({"conv": torch.zeros(1, 2)}), State({"conv": torch.zeros(1, 3)})])


def test_caches_of_unequal_length_join_at_their_newest() -> None:
    long = example()["1"]
    short = AttentionState(
        {"keys": torch.ones(1, 1, 2, 3), "values": torch.ones(1, 1, 2, 3), "start": torch.tensor([1])}
    )
    joined = State.concatenate([short, long])
    assert joined.start.tolist() == [4, 0, 2]
    torch.testing.assert_close(joined["keys"][0, :, 3:], short["keys"][0])
    torch.testing.assert_close(joined["keys"][1:], long["keys"])


def test_detach_clone_and_to() -> None:
    state = State({"h": torch.ones(2, requires_grad=True) * 2, "start": torch.tensor([1, 2])})
    assert state.h.requires_grad
    assert not state.detach().h.requires_grad
    copied = state.clone()
    with torch.no_grad():
        copied.h.zero_()
    assert state.h.sum() == 4
    moved = state.to("cpu", torch.float64)
    assert (moved.h.dtype, moved.start.dtype) == (torch.float64, torch.int64)
    assert state.to(device="meta").h.is_meta


def test_is_a_pytree_and_can_be_copied() -> None:
    state = example()
    doubled = _pytree.tree_map(lambda tensor: tensor * 2, state)
    assert isinstance(doubled["1"], AttentionState)
    torch.testing.assert_close(doubled["0"].conv, 2 * state["0"].conv)
    assert_equal(copy.deepcopy(state), state)
    assert_equal(pickle.loads(pickle.dumps(state)), state)


def test_save_and_load(tmp_path: Path) -> None:
    state = example()
    shared = State({"a": state["0"].conv, "b": state["0"].conv, "view": state["0"].conv.mT[:, :1]})
    for saved in (state, shared, State()):
        saved.save(tmp_path / "state")
        assert_equal(State.load(tmp_path / "state"), saved)
    assert os.listdir(tmp_path) == ["state"]


def test_a_failed_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = example()
    state.save(tmp_path / "state")
    before = (tmp_path / "state").read_bytes()

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        state.select([0]).save(tmp_path / "state")
    assert os.listdir(tmp_path) == ["state"]
    assert (tmp_path / "state").read_bytes() == before


def test_files_that_hold_no_state(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match="no file"):
        State.load(tmp_path / "absent")
    example().save(tmp_path / "cut")
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:-20])
    with pytest.raises(ValueError, match="no complete safetensors file"):
        State.load(tmp_path / "cut")
    save_file({"a": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match="holds no state"):
        State.load(tmp_path / "other")
