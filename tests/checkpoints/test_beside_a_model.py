"""What lies beside a model: the token that ends a text, the folder of the run that trained it."""

from __future__ import annotations

import json

import pytest
from tokenizers import AddedToken, Tokenizer, models

import statescan
from statescan.checkpoints import ByteTokenizer, load_tokenizer, locate


@pytest.fixture
def folder(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[unk]": 2}, unk_token="[unk]"))
    tokenizer.add_special_tokens([AddedToken("<|end|>")])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.mark.parametrize(
    ("settings", "token"),
    [
        ({"eos_token": "<|end|>"}, 3),
        ({"eos_token": {"content": "<|end|>"}}, 3),
        ({"eos_token": None}, None),
        ({}, None),
    ],
)
def test_the_settings_beside_a_tokenizer_name_the_end_of_text(folder, settings, token, tmp_path_factory):
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.end_of_text == token
    copied = tmp_path_factory.mktemp("copied")
    tokenizer.save(copied)
    assert load_tokenizer(copied).end_of_text == token


def test_without_settings_no_token_ends_a_text(folder):
    assert load_tokenizer(folder).end_of_text is None
    assert ByteTokenizer().end_of_text is None


def test_the_folder_of_a_run_leads_to_its_model(tmp_path):
    model = statescan.create_model("mamba_tiny", dim=16, depth=1)
    model.save(tmp_path / "model")
    assert locate(tmp_path) == locate(tmp_path / "model") == tmp_path / "model"
    assert statescan.load(tmp_path).config == model.config
