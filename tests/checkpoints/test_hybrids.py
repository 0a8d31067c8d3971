"""Files of the further hybrids: older names of tensors, shared tensors, and configs that no layout has words for."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import statescan
from statescan import checkpoints
from tests.checkpoints._folders import edit_config, logits, same_weights

NARROW = {
    "jamba": ("jamba_tiny", dict(dim=32, mlp_dim=48)),
    "granitemoehybrid": ("granite_hybrid_tiny", dict(dim=32, mlp_dim=48, head_dim=8, groups=2, expert_dim=24)),
    "falcon_h1": ("falcon_h1_tiny", dict(dim=32, mlp_dim=48, head_dim=8, inner_dim=40)),
    "nemotron_h": ("nemotron_h_moe_tiny", dict(dim=32, head_dim=8, expert_dim=24, shared_expert_dim=48)),
    "zamba": ("zamba_tiny", dict(dim=32, shared_mlp_dim=48)),
}


def narrow(family, **options):
    name, small = NARROW[family]
    attention = {} if family == "zamba" else {"attention": dict(heads=4, kv_heads=2, head_dim=8)}
    if family == "falcon_h1":
        attention["attention"]["rotary_dim"] = 8
    return statescan.create_model(name, **(small | attention | options)).eval()


def older_names(family, tensors):
    """As files that transformers 4 wrote, and the hub holds, name them."""
    older = {}
    for name, tensor in tensors.items():
        if family == "jamba" and "experts.gate_up_proj" in name:
            for number, expert in enumerate(tensor):
                place = name.replace("gate_up_proj", str(number))
                older[f"{place}.gate_proj.weight"], older[f"{place}.up_proj.weight"] = expert.chunk(2)
        elif family in ("jamba", "nemotron_h") and name.endswith(("experts.down_proj", "experts.up_proj")):
            stem, part = name.rsplit(".", 1)
            older |= {f"{stem}.{number}.{part}.weight": expert for number, expert in enumerate(tensor)}
        elif family == "granitemoehybrid":
            name = name.replace("block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.input_linear.weight")
            name = name.replace("block_sparse_moe.experts.down_proj", "block_sparse_moe.output_linear.weight")
            older[name.replace("block_sparse_moe.router.weight", "block_sparse_moe.router.layer.weight")] = tensor
        else:
            older[name] = tensor
    if family == "nemotron_h":
        older = {n.replace("model.", "backbone.", 1) if n.startswith("model.") else n: t for n, t in older.items()}
        older["mtp.layers.0.norm.weight"] = torch.ones(32)
    if family == "falcon_h1":
        older["model.layers.0.mamba.mup_vector"] = torch.ones(1, 1, 7)
    return {name: tensor.contiguous() for name, tensor in older.items()}


@pytest.mark.parametrize("family", ["jamba", "granitemoehybrid", "falcon_h1", "nemotron_h"])
def test_older_names_of_tensors_are_read(family, tmp_path):
    model = narrow(family)
    checkpoints.save(model, tmp_path, layout="huggingface")
    file = tmp_path / "model.safetensors"
    tensors = older_names(family, load_file(file))
    save_file(tensors, str(file), metadata={"format": "pt"})
    back = statescan.load(tmp_path)
    assert same_weights(model, back)
    assert torch.equal(logits(model), logits(back))


def test_an_expert_that_is_missing_is_named(tmp_path):
    model = narrow("jamba")
    checkpoints.save(model, tmp_path, layout="huggingface")
    file = tmp_path / "model.safetensors"
    tensors = older_names("jamba", load_file(file))
    del tensors["model.layers.1.feed_forward.experts.2.down_proj.weight"]
    save_file(tensors, str(file), metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"unexpected: model.layers.1.*missing: model.layers.1.*experts.down_proj"):
        statescan.load(tmp_path)


def test_a_shared_block_counts_once_and_is_written_once(tmp_path):
    one, two = narrow("zamba", hybrid_layers=(1,)), narrow("zamba", hybrid_layers=(1, 3))
    count = [sum(p.numel() for p in model.parameters()) for model in (one, two)]
    assert count[1] - count[0] == 32 * 32  # a projection of the second call alone
    checkpoints.save(two, tmp_path, layout="huggingface")
    names = [name for name in load_file(tmp_path / "model.safetensors") if name.endswith("self_attn.o_proj.weight")]
    assert len(names) == 1
    assert same_weights(two, statescan.load(tmp_path))


def test_of_a_shared_tensor_the_last_name_is_in_force():
    model = narrow("zamba")
    published = statescan.models.family("zamba").to_published(model.state_dict(), model.config)
    name = "model.layers.{}.shared_transf.input_layernorm.weight"
    published[name.format(3)] = torch.full((64,), 3.0)
    statescan.models.load_published(model, published)
    assert torch.equal(model.stack.shared[0].norm.weight, torch.full((64,), 3.0))


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("jamba", dict(attention_layers=(1, 2)), r"jamba cannot express attention_layers=\(1, 2\)"),
        ("jamba", dict(expert_layers=(0, 1, 3)), r"jamba cannot express expert_layers=\(0, 1, 3\)"),
        ("granitemoehybrid", dict(norm_groups=1), "granitemoehybrid cannot express norm_groups=1"),
        ("nemotron_h", dict(dt_limit=(0.001, 1.0)), "nemotron_h cannot express dt_limit"),
    ],
)
def test_what_a_layout_has_no_words_for_is_named(family, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        checkpoints.save(narrow(family, **options), tmp_path / "out", layout="huggingface")


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("granitemoehybrid", dict(position_embedding_type="alibi"), "position_embedding_type is 'alibi'; known: null"),
        ("falcon_h1", dict(hidden_act="gelu"), "hidden_act is 'gelu'; known: silu"),
        ("falcon_h1", dict(rope_parameters={"rope_type": "yarn"}), "rope_type is 'yarn'; known: default"),
        (
            "nemotron_h",
            dict(layers_block_type=["moe", "lstm"]),
            "layers_block_type has 'lstm'; known: linear_attention",
        ),
        ("nemotron_h", dict(mamba_num_heads=5), "mamba_num_heads is 5, the tensors say 8"),
        ("zamba", dict(n_mamba_heads=4), "n_mamba_heads is 4, the tensors say 2"),
        ("zamba", dict(attention_hidden_size=96), "attention_hidden_size is 96; the shared block reads two streams"),
        ("zamba", dict(hidden_mamba_act="relu"), "hidden_mamba_act is 'relu'; known: silu"),
        ("jamba", dict(mamba_dt_rank=9), "mamba_dt_rank is 9, the tensors say 2"),
    ],
)
def test_configs_that_do_not_fit_are_refused(family, fields, message, tmp_path):
    checkpoints.save(narrow(family), tmp_path, layout="huggingface")
    edit_config(tmp_path, **fields)
    with pytest.raises(ValueError, match=message):
        statescan.load(tmp_path)


@pytest.mark.parametrize("family", NARROW)
def test_prefill_and_steps_equal_one_pass(family):
    model = narrow(family)
    tokens = torch.randint(0, 256, (2, 14), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, _ = model(tokens)
        parts, state = model(tokens[:, :5])
        pieces = [parts]
        for t in range(5, 14):
            one, state = model.step(tokens[:, t], state)
            pieces.append(one[:, None])
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-5)


def test_nemotron_patterns_and_lists_mean_the_same(tmp_path):
    checkpoints.save(narrow("nemotron_h"), tmp_path, layout="huggingface")
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["hybrid_override_pattern"] == "ME*E"
    first = statescan.load(tmp_path).config
    edit_config(tmp_path, layers_block_type=None)
    assert statescan.load(tmp_path).config == first
