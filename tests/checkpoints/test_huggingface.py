"""Against `transformers`, with random weights: the same logits, the same greedy text, and the way back without loss."""

import shutil

import pytest
import torch

import statescan
from statescan import checkpoints
from statescan.checkpoints._layouts import read_config, same_model
from tests.checkpoints._folders import edit_config, same_weights

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")

_SPECIAL = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
_ATTENTION = dict(num_attention_heads=4, num_key_value_heads=2)
_GRANITE = dict(
    vocab_size=80,
    hidden_size=32,
    num_hidden_layers=3,
    layer_types=["mamba", "attention", "mamba"],
    shared_intermediate_size=48,
    mamba_n_heads=8,
    mamba_d_state=12,
    mamba_n_groups=2,
    embedding_multiplier=2.0,
    residual_multiplier=0.5,
    attention_multiplier=0.3,
    logits_scaling=6.0,
    **_ATTENTION,
    **_SPECIAL,
)
_FALCON_H1 = dict(
    vocab_size=80,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    mamba_d_ssm=40,
    mamba_n_heads=5,
    mamba_d_state=12,
    **_ATTENTION,
    **_SPECIAL,
)
_NEMOTRON_H = dict(
    vocab_size=80,
    hidden_size=32,
    intermediate_size=48,
    head_dim=12,
    mamba_num_heads=6,
    mamba_head_dim=8,
    ssm_state_size=12,
    n_groups=2,
    **_ATTENTION,
    **_SPECIAL,
)

CONFIGS = {
    "mamba": lambda: transformers.MambaConfig(
        vocab_size=80, hidden_size=32, num_hidden_layers=3, state_size=6, time_step_rank=3, **_SPECIAL
    ),
    "mamba untied": lambda: transformers.MambaConfig(
        vocab_size=80, hidden_size=32, num_hidden_layers=2, tie_word_embeddings=False, use_bias=True, **_SPECIAL
    ),
    "mamba2": lambda: transformers.Mamba2Config(
        vocab_size=80,
        hidden_size=32,
        num_hidden_layers=2,
        state_size=12,
        head_dim=8,
        num_heads=8,
        n_groups=1,
        **_SPECIAL,
    ),
    "mamba2 groups, tied": lambda: transformers.Mamba2Config(
        vocab_size=80,
        hidden_size=32,
        num_hidden_layers=2,
        state_size=12,
        head_dim=8,
        num_heads=8,
        n_groups=2,
        tie_word_embeddings=True,
        **_SPECIAL,
    ),
    "falcon_mamba": lambda: transformers.FalconMambaConfig(
        vocab_size=80, hidden_size=32, num_hidden_layers=2, state_size=6, **_SPECIAL
    ),
    "bamba": lambda: transformers.BambaConfig(
        vocab_size=80,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        attn_layer_indices=[1],
        mamba_n_heads=8,
        mamba_d_state=12,
        mamba_n_groups=2,
        **_ATTENTION,
        **_SPECIAL,
    ),
    "zamba2": lambda: transformers.Zamba2Config(
        vocab_size=80,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_hidden_layers=5,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid", "hybrid"],
        num_mem_blocks=2,
        n_mamba_heads=8,
        mamba_d_state=12,
        mamba_ngroups=2,
        adapter_rank=4,
        use_shared_attention_adapter=True,
        use_mem_rope=True,
        **_SPECIAL,
    ),
    "jamba": lambda: transformers.JambaConfig(
        vocab_size=80,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=6,
        attn_layer_period=3,
        attn_layer_offset=2,
        num_experts=4,
        mamba_dt_rank=3,
        mamba_d_state=6,
        **_ATTENTION,
        **_SPECIAL,
    ),
    "granite, experts": lambda: transformers.GraniteMoeHybridConfig(
        **_GRANITE,
        intermediate_size=20,
        num_local_experts=6,
        num_experts_per_tok=3,
        position_embedding_type="rope",
        tie_word_embeddings=True,
    ),
    "granite": lambda: transformers.GraniteMoeHybridConfig(**_GRANITE, num_local_experts=0, num_experts_per_tok=0),
    "falcon_h1": lambda: transformers.FalconH1Config(
        **_FALCON_H1,
        mamba_rms_norm=True,
        rope_theta=1e6,
        embedding_multiplier=2.0,
        lm_head_multiplier=0.5,
        key_multiplier=0.7,
        attention_in_multiplier=1.1,
        attention_out_multiplier=0.9,
        ssm_in_multiplier=1.2,
        ssm_out_multiplier=0.8,
        ssm_multipliers=[1.1, 0.9, 0.8, 1.2, 0.7],
        mlp_multipliers=[0.9, 1.1],
    ),
    "falcon_h1, biases": lambda: transformers.FalconH1Config(
        **_FALCON_H1, projectors_bias=True, attention_bias=True, mlp_bias=True, mamba_proj_bias=True, head_dim=12
    ),
    "nemotron_h": lambda: transformers.NemotronHConfig(
        **_NEMOTRON_H, hybrid_override_pattern="M-M*-", mlp_bias=True, use_bias=True
    ),
    "nemotron_h, experts": lambda: transformers.NemotronHConfig(
        **_NEMOTRON_H,
        layers_block_type=["linear_attention", "moe", "full_attention", "moe"],
        n_routed_experts=8,
        num_experts_per_tok=3,
        moe_intermediate_size=20,
        moe_shared_expert_intermediate_size=24,
        moe_latent_size=16,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.5,
    ),
    "zamba": lambda: transformers.ZambaConfig(
        vocab_size=80,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=5,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid", "mamba"],
        n_mamba_heads=4,
        mamba_d_state=6,
        **_SPECIAL,
    ),
    "zamba, nothing tied": lambda: transformers.ZambaConfig(
        vocab_size=80,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_hidden_layers=4,
        layers_block_type=["hybrid", "mamba", "hybrid", "mamba"],
        n_mamba_heads=1,
        mamba_d_state=6,
        hidden_act="silu",
        tie_word_embeddings=False,
        mamba_proj_bias=True,
        **_SPECIAL,
    ),
}


@pytest.fixture(scope="module", params=CONFIGS)
def published(request, tmp_path_factory):
    """A random model of transformers and the folder it was saved to, in several shards."""
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[request.param]()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "A_log" not in name and "conv" not in name:
                parameter.normal_(0, 0.2)  # far from the near-uniform logits of a fresh model
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0, 0.2)
    folder = tmp_path_factory.mktemp("published")
    model.save_pretrained(folder, max_shard_size="40KB")
    return model, folder


def test_the_checkpoint_is_in_shards(published):
    assert len(list(published[1].glob("*.safetensors"))) > 1


def test_logits_agree(published):
    model, folder = published
    ours = statescan.load(folder)
    tokens = torch.randint(0, 80, (2, 21), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, (have, _) = model(tokens).logits, ours(tokens)
    torch.testing.assert_close(have[..., :80], wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))


def test_greedy_text_agrees(published):
    model, folder = published
    ours = statescan.load(folder)
    prompt = torch.randint(3, 80, (1, 7), generator=torch.Generator().manual_seed(1))
    tokens = prompt
    with torch.no_grad():
        for _ in range(64):  # without a cache: what transformers computes anew is its own best oracle
            tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], dim=1)
    result = statescan.generate(ours, [prompt[0].tolist()], max_new_tokens=64, temperature=0)[0]
    assert result.tokens == tokens[0, 7:].tolist()


def test_the_way_back_loses_nothing(published, tmp_path):
    model, folder = published
    checkpoints.save(statescan.load(folder), tmp_path / "back", layout="huggingface", max_shard_bytes=50_000)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    theirs, ours = model.state_dict(), back.state_dict()
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        assert torch.equal(tensor, ours[name]), name
    assert type(back) is type(model)


# Which file it came from, and how it is computed.
_NO_MEANING = {"_name_or_path", "transformers_version", "dtype", "chunk_size", "mamba_chunk_size"}


def test_conversion_through_our_layout_keeps_the_config(published, tmp_path):
    model, folder = published
    checkpoints.convert(folder, tmp_path / "ours", layout="statescan")
    checkpoints.convert(tmp_path / "ours", tmp_path / "back", layout="huggingface")
    back = transformers.AutoConfig.from_pretrained(tmp_path / "back").to_dict()
    wanted = transformers.AutoConfig.from_pretrained(folder).to_dict()
    assert {
        key: (wanted.get(key), back.get(key)) for key in wanted if wanted[key] != back.get(key)
    }.keys() <= _NO_MEANING
    loaded = [statescan.load(place) for place in (folder, tmp_path / "ours", tmp_path / "back")]
    assert loaded[0].config == loaded[1].config == loaded[2].config
    assert same_weights(loaded[0], loaded[1]) and same_weights(loaded[0], loaded[2])


def test_half_precision_is_kept_by_a_conversion(published, tmp_path):
    model, folder = published
    half = type(model)(model.config).bfloat16()
    half.save_pretrained(tmp_path / "half")
    checkpoints.convert(tmp_path / "half", tmp_path / "ours", layout="statescan")
    checkpoints.convert(tmp_path / "ours", tmp_path / "back", layout="huggingface")
    # transformers itself widens a few: A_log of Zamba, the correction of Nemotron-H's router
    wanted, back = (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("half", "back")
    )
    assert {tensor.dtype for tensor in wanted.values()} >= {torch.bfloat16}
    for name, tensor in wanted.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name


def test_older_spellings_are_read(published, tmp_path):
    """Configs of transformers 4, and sizes that were left out because they had their default, or by mistake."""
    model, folder = published
    changes = {
        "mamba": dict(intermediate_size=None, ssm_cfg={}, rms_norm=True, d_model=32, n_layer=3),
        "falcon_mamba": dict(intermediate_size=None, time_step_rank="auto", use_falcon_mambapy=False),
        "mamba2": dict(time_step_limit=[0.0, float("inf")], rms_norm=True, num_heads=None, state_size=None),
        "bamba": dict(rope_parameters=None, rope_theta=10000.0, mamba_d_head="auto"),
        "zamba2": dict(
            rope_parameters=None,
            rope_theta=10000,
            layers_block_type=["mamba", "hybrid", "mamba", "hybrid", "hybrid"],
            vocab_size=None,
            adapter_rank=None,
        ),
        "jamba": dict(mamba_dt_rank=None, use_mamba_kernels=True, sliding_window=None),
        "granitemoehybrid": dict(rope_parameters=None, rope_theta=10000.0, mamba_d_head="auto"),
        "falcon_h1": dict(
            rope_parameters=None,
            rope_theta=model.config.to_dict().get("rope_parameters", {}).get("rope_theta"),
            mamba_d_head="auto",
            mamba_d_ssm=40,
        ),
        "nemotron_h": dict(
            layers_block_type=None,
            hybrid_override_pattern=getattr(model.config, "hybrid_override_pattern", None),
            n_groups=None,
            mamba_n_groups=2,
            num_hidden_layers=None,
        ),
        "zamba": dict(mamba_dt_rank=None, n_mamba_heads=None),
    }[model.config.model_type]
    for file in folder.iterdir():
        shutil.copy(file, tmp_path)
    edit_config(tmp_path, tie_word_embeddings=None, **changes)
    assert same_model(statescan.load(tmp_path).config, statescan.load(folder).config)


@pytest.mark.parametrize("field", ["layers_block_type", "layer_types"])
@pytest.mark.parametrize("kinds", [["mamba", "attention", "mamba"], ["linear_attention", "full_attention"] * 2])
def test_layers_are_named_in_older_and_newer_words(field, kinds):
    config = CONFIGS["bamba"]().to_dict() | {"attn_layer_indices": None, "num_hidden_layers": len(kinds), field: kinds}
    _, ours = read_config("bamba", config, "here")
    assert ours.attention_layers == ((1,) if len(kinds) == 3 else (1, 3))
