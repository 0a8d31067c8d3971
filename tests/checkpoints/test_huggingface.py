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
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").state_dict()
    for name, tensor in half.state_dict().items():
        assert back[name].dtype == torch.bfloat16 and torch.equal(back[name], tensor), name


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
