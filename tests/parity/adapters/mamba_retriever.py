"""The Mamba retriever, an encoder made of state-spaces' `MixerModel`, and the scanner that has its name."""

from __future__ import annotations

import re
from typing import Any

import torch

from statescan.models import build_model, load_published
from statescan.models.document_scanner import sentence_logits, sentence_loss
from statescan.models.retriever import contrastive_loss
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture, ParityError
from tests.parity.adapters.mamba import (
    ALONE,
    ATTENTION_DEFAULTS,
    ATTENTION_NAMES,
    BOOKKEEPING,
    LANGUAGE_MODEL_NAMES,
    MAMBA2_NAMES,
    MAMBA_NAMES,
)

_CAUSAL = {"causal": (True,), "rotary_emb_interleaved": (False,)}


@torch.no_grad()
def encoder(fixture: Fixture) -> dict[str, Any]:
    """`MixerModel` with texts pooled at their last token, which is the vocabulary's last."""
    given = dict(fixture.kwargs)
    ssm, attention = (dict(given.pop(name, None) or {}) for name in ("ssm_cfg", "attn_cfg"))
    layer = ssm.pop("layer", "Mamba1")
    tables = {"Mamba1": ("mamba", MAMBA_NAMES), "Mamba2": ("mamba2", MAMBA2_NAMES)}
    if layer not in tables:
        raise ParityError(f"ssm_cfg: layer {layer!r} is not supported; supported: {', '.join(tables)}")
    family, names = tables[layer]
    # What stands for the argument where the stored state dict speaks more clearly.
    tensors = fixture.state_dict()
    norm = "layer" if "norm_f.bias" in tensors else "rms"
    unused = ("rms_norm", "fused_add_norm", "initializer_cfg", *BOOKKEEPING)
    inner = translate(given, {**LANGUAGE_MODEL_NAMES, "norm_epsilon": "norm_eps"}, ignored=unused)
    inner |= translate(ssm, names, ignored=BOOKKEEPING, only=ALONE)
    if inner.get("attention_layers"):
        table = {name: ours for name, ours in ATTENTION_NAMES.items() if name not in _CAUSAL}
        inner["attention"] = translate(ATTENTION_DEFAULTS | attention, table, ignored=BOOKKEEPING, only=_CAUSAL)
    inner |= {"norm": norm, "pad_vocab_size_multiple": 1}
    end = inner["vocab_size"] - 1
    model = build_model("retriever", {"backbone": family, "language_model": inner, "end_token": end}).eval()
    fixture.check_parameters(model)
    load_published(model, tensors)

    queries, query_lengths, passages, passage_lengths = fixture.inputs()
    texts = []
    for tokens, lengths in ((queries, query_lengths.long()), (passages, passage_lengths.long())):
        ended = tokens.clone()
        ended[torch.arange(tokens.shape[1]) >= lengths[:, None] - 1] = end
        texts.append((ended, lengths))
    query, passage = (model(*text) for text in texts)
    loss, scores = contrastive_loss(query, passage)
    outputs = {
        "query_ids": texts[0][0],
        "passage_ids": texts[1][0],
        "query_embedding": query,
        "passage_embedding": passage,
        "scores": scores,
        "infonce_per_query": loss,
    }
    for name in fixture.outputs:
        if found := re.fullmatch(r"cosine_scores_tau_(\d)(\d*)", name):
            query, passage = (torch.nn.functional.normalize(each, dim=-1) for each in (query, passage))
            temperature = float(".".join(found.groups()))
            outputs["infonce_cosine_per_query"], outputs[name] = contrastive_loss(
                query, passage, temperature=temperature
            )
    return {name: value for name, value in outputs.items() if name in fixture.outputs}


@torch.no_grad()
def scanner(fixture: Fixture) -> dict[str, Any]:
    """`CustomMambaLMHeadModel`, whose arguments were not written down: the shapes of its tensors tell its sizes."""
    translate(fixture.kwargs, {})
    tensors = fixture.state_dict()
    rows, dim = tensors["backbone.embedding.weight"].shape
    first = "backbone.layers.0.mixer."
    heads, inside = tensors[first + "A_log"].shape[0], tensors[first + "out_proj.weight"].shape[1]
    convolved, _, kernel = tensors[first + "conv1d.weight"].shape
    inner = {
        "dim": dim,
        "depth": len({name.split(".")[2] for name in tensors if name.startswith("backbone.layers.")}),
        "vocab_size": rows,
        "pad_vocab_size_multiple": 1,
        "state_dim": (convolved - inside) // 2,
        "head_dim": inside // heads,
        "expand": inside / dim if inside % dim else inside // dim,
        "conv_kernel": kernel,
        "norm": "layer" if "backbone.norm_f.bias" in tensors else "rms",
    }
    model = build_model("document_scanner", {"language_model": inner}).eval()
    fixture.check_parameters(model)
    load_published(model, tensors)
    tokens, ends, labels = fixture.inputs()
    ends, labels = (each.long().reshape(len(tokens), -1) for each in (ends, labels))
    logits, _ = model(tokens)
    sentences = sentence_logits(logits, ends)
    loss, each, weight = sentence_loss(sentences, labels, ends != 0)
    return {
        "lm_logits": model.language_model(tokens)[0],
        "binary_logits": logits[..., None],
        "sentence_logits": sentences,
        "sentence_loss": each,
        "loss_and_pos_weight": torch.stack([loss, weight]),
    }


ADAPTERS = {"MixerModel": encoder, "train.CustomMambaLMHeadModel": scanner}
