"""Published configs against the tensors beside them: the wrong field is named, a missing one is found out."""

import json

import pytest

import statescan
from statescan import checkpoints
from tests.checkpoints._folders import edit_config, same_weights, small

MODELS = {
    "mamba": lambda: small("mamba_tiny", dt_rank=5, expand=1.5),
    "falcon_mamba": lambda: small("falcon_mamba_tiny"),
    "mamba2": lambda: small("mamba2_tiny", tie_embeddings=False),
    "bamba": lambda: small("bamba_tiny", dim=64, depth=3, attention_layers=(1,)),
    "zamba2": lambda: small("zamba2_tiny", dim=64, depth=4),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    for name, build in MODELS.items():
        checkpoints.save(build(), root / name, layout="huggingface")
        if name in ("mamba", "mamba2"):
            checkpoints.save(build(), root / f"{name} published", layout="state-spaces")
    return root


def copied(folders, name, tmp_path):
    for file in (folders / name).iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = (folders / name / "config.json").read_text()
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(config)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        # what several Mamba-2 files on the hub have
        (
            "mamba2",
            dict(hidden_size=4096, num_heads=128),
            "hidden_size is 4096, the tensors say 32; num_heads is 128, the",
        ),
        ("mamba", dict(num_hidden_layers=24), "num_hidden_layers is 24, the tensors say 2"),
        (
            "mamba",
            dict(intermediate_size=64, expand=2),
            "expand is 2, the tensors say 1.5; intermediate_size is 64, .* 48",
        ),
        ("mamba", dict(vocab_size=50280), "vocab_size is 50280, the tensors say 256"),
        ("mamba", dict(time_step_rank="auto"), None),
        ("falcon_mamba", dict(expand=16), None),  # as published: the inner width beside it is right
        ("mamba", dict(time_step_rank=2), "time_step_rank is 2, the tensors say 5"),
        ("falcon_mamba", dict(use_bias=True), "use_bias is True, the tensors say False"),
        ("falcon_mamba", dict(tie_word_embeddings=True), "tie_word_embeddings is True, the tensors say False"),
        ("mamba2", dict(tie_word_embeddings=True), "tie_word_embeddings is True, the tensors say False"),
        ("mamba2", dict(state_size=128), "state_size is 128, the tensors say 8"),
        ("mamba2", dict(conv_kernel=3), "conv_kernel is 3, the tensors say 4"),
        ("bamba", dict(attn_layer_indices=[2]), r"attn_layer_indices is \[2\], the tensors say \[1\]"),
        ("bamba", dict(intermediate_size=14336), "intermediate_size is 14336, the tensors say 256"),
        (
            "bamba",
            dict(mamba_n_heads=128, mamba_d_head=64),
            "mamba_n_heads is 128, the tensors say 4; mamba_d_head is 64",
        ),
        ("zamba2", dict(adapter_rank=128), "adapter_rank is 128, the tensors say 8"),
        ("zamba2", dict(n_mamba_heads=8), "n_mamba_heads is 8, the tensors say 4"),
        ("mamba published", dict(d_model=768), "d_model is 768, the tensors say 32"),
        ("mamba published", dict(ssm_cfg={"d_state": 4}), r"ssm_cfg\.d_state is 4, the tensors say 16"),
        ("mamba2 published", dict(n_layer=64), "n_layer is 64, the tensors say 2"),
        ("mamba2 published", dict(tie_embeddings=True), "tie_embeddings is True, the tensors say False"),
        ("mamba2 published", dict(attn_layer_idx=[1]), r"attn_layer_idx is \[1\], the tensors say \[\]"),
    ],
)
def test_the_wrong_field_is_named(folders, tmp_path, name, fields, message):
    folder = copied(folders, name, tmp_path)
    edit_config(folder, **fields)
    if message is None:
        statescan.load(folder)
        return
    with pytest.raises(ValueError, match=rf"contradicts its weights: {message}.*create_model\(name, checkpoint=path\)"):
        statescan.load(folder)


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        (
            "mamba",
            "hidden_size num_hidden_layers vocab_size state_size conv_kernel expand intermediate_size time_step_rank",
        ),
        (
            "falcon_mamba",
            "hidden_size num_hidden_layers vocab_size state_size tie_word_embeddings use_bias use_conv_bias",
        ),
        ("mamba2", "hidden_size num_hidden_layers vocab_size state_size head_dim num_heads expand tie_word_embeddings"),
        ("mamba2", "hidden_size num_hidden_layers vocab_size n_groups head_dim num_heads expand"),
        (
            "bamba",
            "hidden_size num_hidden_layers vocab_size mamba_d_state mamba_n_heads attn_layer_indices intermediate_size",
        ),
        (
            "zamba2",
            "hidden_size num_hidden_layers vocab_size mamba_d_state n_mamba_heads adapter_rank intermediate_size",
        ),
        ("mamba published", "tie_embeddings ssm_cfg"),
        ("mamba2 published", "tie_embeddings attn_layer_idx attn_cfg"),
    ],
)
def test_sizes_that_are_left_out_are_those_of_the_tensors(folders, tmp_path, name, absent):
    folder = copied(folders, name, tmp_path)
    edit_config(folder, **dict.fromkeys(absent.split()))
    loaded, wanted = statescan.load(folder), statescan.load(folders / name)
    assert loaded.config == wanted.config
    assert same_weights(loaded, wanted)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        (
            "mamba published",
            dict(ssm_cfg={"layer": "Mamba9"}),
            "ssm_cfg.layer is 'Mamba9'; known: Mamba1, Mamba2, Mamba3",
        ),
        ("mamba published", dict(ssm_cfg={"d_stat": 16}), "ssm_cfg has options that are not known here: d_stat"),
        ("mamba published", dict(vocab_size=None), "lacks 'vocab_size'"),
        ("mamba2", dict(hidden_act="relu"), "hidden_act is 'relu'; known: silu"),
        ("mamba2", dict(quantization_config={"quant_method": "gptq"}), "the weights are quantised"),
        ("bamba", dict(rope_parameters={"rope_type": "yarn"}), "rope_type is 'yarn'; known: default"),
        ("zamba2", dict(use_long_context=True), "use_long_context is true"),
        ("zamba2", dict(num_attention_heads="many"), "config.json of .* describes no model: "),
    ],
)
def test_models_that_are_not_ours_are_refused(folders, tmp_path, name, fields, message):
    folder = copied(folders, name, tmp_path)
    edit_config(folder, **fields)
    with pytest.raises(ValueError, match=message):
        statescan.load(folder)


def test_attention_that_is_not_ours_is_refused(tmp_path):
    model = small("mamba2_tiny", depth=2, attention_layers=(1,), attention=dict(heads=4, head_dim=8))
    checkpoints.save(model, tmp_path, layout="state-spaces")
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"causal": False}, "attn_cfg.causal must be True"),
        ({"rotary_emb_interleaved": True}, "attn_cfg.rotary_emb_interleaved must be False"),
        ({"windowed": 3}, "attn_cfg has options that are not known here: windowed"),
    ):
        edit_config(tmp_path, attn_cfg=config["attn_cfg"] | change)
        with pytest.raises(ValueError, match=message):
            statescan.load(tmp_path)
    edit_config(tmp_path, attn_cfg=config["attn_cfg"])
    assert same_weights(statescan.load(tmp_path), model)
