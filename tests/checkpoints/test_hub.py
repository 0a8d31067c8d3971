"""The Hugging Face hub's cache, without a network."""

import huggingface_hub.constants
import pytest

import statescan
from statescan import checkpoints
from tests.checkpoints._folders import same_weights, small

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and the folder of one snapshot in it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    (repository / "blobs").mkdir()
    return repository / "snapshots" / REVISION


@pytest.mark.parametrize("layout", ["statescan", "state-spaces", "huggingface"])
def test_a_cached_model_loads_by_its_id(cache, layout):
    model = small()
    checkpoints.save(model, cache, layout=layout, tokenizer=checkpoints.ByteTokenizer())
    assert same_weights(statescan.load("owner/name"), model)
    assert same_weights(statescan.load("owner/name", revision="main", local_files_only=True), model)
    assert same_weights(statescan.load("owner/name", revision=REVISION), model)
    assert same_weights(statescan.create_model("mamba_tiny", checkpoint="owner/name", dim=32, depth=2), model)
    assert checkpoints.detect("owner/name") == ("mamba" if layout == "huggingface" else layout)
    assert checkpoints.load_tokenizer("owner/name").vocab_size == 256


def test_what_the_cache_has_not(cache):
    advice = r"the hub gave nothing under this id \(.*hub is switched off: .*run `hf download {}` once"
    with pytest.raises(FileNotFoundError, match=advice.format("nobody/nothing")):
        statescan.load("nobody/nothing")
    with pytest.raises(FileNotFoundError, match=advice.format("owner/name")):
        statescan.load("owner/name", revision="other")
    with pytest.raises(FileNotFoundError, match=advice.format("owner/words")):
        checkpoints.load_tokenizer("owner/words")


def test_an_interrupted_download_into_the_cache(cache):
    checkpoints.save(small(), cache, max_shard_bytes=10_000)
    first, second = sorted(cache.glob("model-*.safetensors"))[:2]
    first.unlink()
    (cache.parent.parent / "blobs" / "abc.incomplete").write_bytes(b"part")
    with pytest.raises(FileNotFoundError) as error:
        statescan.load("owner/name")
    message = str(error.value)
    assert f"lacks 1 of {first.stem[-1]} shards: {first.name}; its download was" in message
    assert "interrupted (there is abc.incomplete): fetch it again, with `hf download owner/name`" in message
    second.unlink()
    second.symlink_to(cache.parent.parent / "blobs" / "gone")
    with pytest.raises(FileNotFoundError, match=r"lacks 2 of \d+ shards"):
        statescan.load("owner/name")
