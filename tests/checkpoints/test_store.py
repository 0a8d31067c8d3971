"""Saving and loading: every layout, shards, dtypes; what is written is all there or was never begun."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys

import pytest
import torch

import statescan
from statescan import checkpoints, models
from tests.checkpoints._folders import logits, same_weights, small

LAYOUTS = ["statescan", "state-spaces", "huggingface"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["mamba_tiny", "mamba2_tiny"])
def test_every_layout_both_ways(name, layout, tmp_path):
    first = small(name)
    checkpoints.save(first, tmp_path / "m", layout=layout)
    second = checkpoints.load(tmp_path / "m")
    assert torch.equal(logits(second), logits(first))
    assert not second.training
    assert checkpoints.detect(tmp_path / "m") == (first.family if layout == "huggingface" else layout)


#: Of seven billion parameters, whatever its name says.
LARGE = {"granite_4.0_h_tiny"}


@pytest.mark.parametrize("name", sorted(set(models.list_models("*_tiny")) - LARGE))
def test_every_family_in_our_own_layout(name, tmp_path):
    first = statescan.create_model(name)
    first.save(tmp_path / "m")
    second = checkpoints.load(tmp_path / "m")
    assert second.config == first.config and same_weights(first, second)
    shared = [len({id(p) for p in model.parameters()}) for model in (first, second)]
    assert shared[0] == shared[1] == len(list(second.parameters()))


@pytest.mark.parametrize(
    "options", [dict(), dict(mimo_rank=2, output_norm=True, rope_fraction=1.0, groups=2), dict(A_floor=0.01, expand=1)]
)
def test_mamba3_as_the_published_code_writes_it(options, tmp_path):
    first = small("mamba3_tiny", head_dim=8, state_dim=8, mlp_dim=16, mlp_multiple_of=128, **options)
    checkpoints.save(first, tmp_path / "m", layout="state-spaces")
    ssm = json.loads((tmp_path / "m" / "config.json").read_text())["ssm_cfg"]
    assert (ssm["layer"], ssm.get("is_mimo", False)) == ("Mamba3", "mimo_rank" in options)
    second = checkpoints.load(tmp_path / "m")
    assert second.config == first.config
    assert torch.equal(logits(second), logits(first))


def test_a_hybrid_of_the_state_spaces_layout(tmp_path):
    attention = dict(heads=4, kv_heads=2, head_dim=6, conv_kernel=4, rotary_dim=4)
    first = small("mamba2_tiny", depth=3, groups=1, mlp_dim=16, attention_layers=(1,), attention=attention)
    checkpoints.save(first, tmp_path / "m", layout="state-spaces")
    assert torch.equal(logits(checkpoints.load(tmp_path / "m")), logits(first))


@pytest.mark.parametrize(
    ("name", "options", "layout", "message"),
    [
        (
            "mamba2_tiny",
            dict(attention_layers=(1,), attention=dict(heads=4)),
            "huggingface",
            r"attention_layers=\(1,\)",
        ),
        ("mamba_tiny", dict(mlp_dim=64), "huggingface", "mlp_dim=64"),
        ("mamba_tiny", dict(norm="layer"), "huggingface", "norm='layer'"),
        ("mamba_tiny", dict(selective=False), "huggingface", "selective=False"),
        ("mamba_tiny", dict(inner_norm="weighted"), "state-spaces", "inner_norm='weighted'"),
        ("mamba_tiny", dict(norm_eps=1e-6), "state-spaces", "norm_eps=1e-06"),
        ("mamba2_tiny", dict(norm_groups=1), "huggingface", "norm_groups=1"),
        ("mamba2_tiny", dict(D_per_channel=True), "huggingface", "D_per_channel=True"),
        (
            "bamba_tiny",
            dict(groups=1, attention=dict(heads=4, scale=0.5), attention_layers=(1,)),
            "huggingface",
            "attention=",
        ),
    ],
)
def test_what_a_layout_cannot_say_is_not_written(name, options, layout, message, tmp_path):
    with pytest.raises(ValueError, match=f"cannot express {message}"):
        checkpoints.save(small(name, **options), tmp_path / "m", layout=layout)
    assert list(tmp_path.iterdir()) == []


def test_unknown_layouts_are_named(tmp_path):
    with pytest.raises(ValueError, match="unknown 'gguff'; known: statescan"):
        checkpoints.save(small(), tmp_path / "m", layout="gguff")
    with pytest.raises(ValueError, match="hybrid has no Hugging Face form"):
        checkpoints.save(statescan.create_model("hybrid_tiny"), tmp_path / "m", layout="huggingface")
    with pytest.raises(ValueError, match="falcon_mamba has no state-spaces form"):
        checkpoints.save(small("falcon_mamba_tiny"), tmp_path / "m", layout="state-spaces")


def test_a_tied_head_is_written_once_and_stays_tied(tmp_path):
    small().save(tmp_path / "m")
    loaded = checkpoints.load(tmp_path / "m")
    assert loaded.head.weight is loaded.embedding.weight
    assert "head.weight" not in checkpoints.read_tensors(tmp_path / "m")


def test_buffers_that_no_file_holds_are_computed(tmp_path, monkeypatch):
    kind = type(small())
    begin = kind.__init__

    def with_table(self, config):
        begin(self, config)
        self.register_buffer("table", torch.arange(3.0), persistent=False)

    monkeypatch.setattr(kind, "__init__", with_table)
    first = small()
    first.save(tmp_path / "m")
    second = checkpoints.load(tmp_path / "m")
    assert second.table.tolist() == [0, 1, 2]
    assert same_weights(first, second) and second.head.weight is second.embedding.weight


# ---- dtypes ----------------------------------------------------------------------------------------------------------


def test_half_precision_leaves_timescales_alone(tmp_path):
    first = small()
    first.save(tmp_path / "m")
    for dtype in (torch.bfloat16, "bfloat16"):
        loaded = checkpoints.load(tmp_path / "m", dtype=dtype)
        wide = {name.rpartition(".")[2] for name, p in loaded.named_parameters() if p.dtype == torch.float32}
        assert wide == {"A_log", "D", "delta_bias"}
        assert {p.dtype for p in loaded.parameters()} == {torch.float32, torch.bfloat16}
        assert torch.equal(loaded.stack.blocks[0].mixer.A_log, first.stack.blocks[0].mixer.A_log)
        torch.testing.assert_close(logits(loaded).float(), logits(first), rtol=0.1, atol=0.02)


def test_the_dtypes_of_the_file_are_kept_when_asked_for(tmp_path):
    first = small().bfloat16()
    first.stack.blocks[1].mixer.A_log.data = first.stack.blocks[1].mixer.A_log.data.float()
    first.save(tmp_path / "m")
    assert {p.dtype for p in checkpoints.load(tmp_path / "m").state_dict().values()} == {torch.float32}
    again = checkpoints.load(tmp_path / "m", dtype="auto")
    assert [p.dtype for p in again.parameters()] == [p.dtype for p in first.parameters()]
    assert same_weights(first, again)
    with pytest.raises(ValueError, match="dtype: unknown 'float8'; known: auto, float64, float32, bfloat16, float16"):
        checkpoints.load(tmp_path / "m", dtype="float8")


def test_what_is_loaded_can_be_trained(tmp_path):
    small().save(tmp_path / "m")
    loaded = checkpoints.load(tmp_path / "m").train()
    before = (tmp_path / "m" / "model.safetensors").read_bytes()
    loaded(torch.arange(9)[None])[0].square().mean().backward()
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter -= parameter.grad
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before


# ---- all or nothing --------------------------------------------------------------------------------------------------


def test_a_checkpoint_replaces_another_of_any_form(tmp_path):
    """Whatever the order, nothing of the older one is left to be found."""
    folder = tmp_path / "m"
    forms = [dict(max_shard_bytes=n) for n in (9_000, 20_000, 10**9)] + [dict(layout=layout) for layout in LAYOUTS]
    (tmp_path / "m").mkdir()
    (folder / "notes.txt").write_text("mine")
    for number, form in enumerate([*forms, *reversed(forms)]):
        model = small(depth=1 + number % 2)
        checkpoints.save(model, folder, **form)
        assert same_weights(checkpoints.load(folder), model), form
        files = {file.name for file in folder.iterdir()}
        shards = [name for name in files if "-of-" in name]
        index = "model.safetensors.index.json" in files
        assert len(shards) >= 2 if index else not shards
        assert index + ("model.safetensors" in files) + ("pytorch_model.bin" in files) == 1
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_tokenizer_replaces_another(tmp_path):
    small().save(tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    small().save(tmp_path / "m")  # without one, what lies there stays
    assert (tmp_path / "m" / "tokenizer.json").exists()
    checkpoints.save(small(), tmp_path / "m", tokenizer=checkpoints.ByteTokenizer(["<end>"]))
    assert not (tmp_path / "m" / "tokenizer.json").exists()
    assert checkpoints.load_tokenizer(tmp_path / "m").vocab_size == 257


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; give a folder"):
        small().save(tmp_path / "file")
    with pytest.raises(ValueError, match=r"/file' is a file; give a folder"):
        small().save(tmp_path / "file" / "below")
    with pytest.raises(ValueError, match=r"cannot write '/proc/statescan'"):
        small().save("/proc/statescan")


@contextlib.contextmanager
def full_disk(free: int):
    """No file can grow beyond so many bytes: what a disk does when it is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("form", [*(dict(layout=layout) for layout in LAYOUTS), dict(max_shard_bytes=30_000)], ids=str)
def test_a_full_disk_keeps_the_checkpoint_that_was_there(form, tmp_path):
    before, after = small(), small()
    checkpoints.save(before, tmp_path / "m", **form)
    names = {file.name for file in (tmp_path / "m").iterdir()}
    for free in (100, 20_000):
        with full_disk(free), pytest.raises(ValueError, match=r"File too large.*; what was there is unchanged"):
            checkpoints.save(after, tmp_path / "m", **form)
        with full_disk(free), pytest.raises(ValueError, match="cannot write"):
            checkpoints.save(after, tmp_path / "new", **form)
    assert same_weights(checkpoints.load(tmp_path / "m"), before)
    assert {file.name for file in (tmp_path / "m").iterdir()} == names
    assert [file.name for file in tmp_path.iterdir()] == ["m"]


_WRITER = """
import sys, torch, statescan
model = statescan.create_model("mamba_tiny", dim=32, depth=2)
for number in range(10**6):
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, number)
    model.save(sys.argv[1])
    print(number, flush=True)
"""


def test_a_killed_save_leaves_one_whole_checkpoint(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(tmp_path / "m")], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    done = [int(process.stdout.readline()) for _ in range(8)][-1]
    process.send_signal(signal.SIGKILL)
    done = max([done, *map(int, process.stdout.read().split())])
    process.wait()
    values = {float(p.flatten()[0]) for p in checkpoints.load(tmp_path / "m").state_dict().values()}
    assert values in ({float(done)}, {float(done + 1)})
