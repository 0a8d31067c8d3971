"""Models in files: our own layout, published and Hugging Face ones, in and out; tokenisers beside them."""

from statescan.checkpoints._files import read_tensors
from statescan.checkpoints._store import convert, detect, load, load_weights, locate, save
from statescan.checkpoints._tokenizer import ByteTokenizer, FileTokenizer, check_tokenizer, load_tokenizer

__all__ = [
    "ByteTokenizer",
    "FileTokenizer",
    "check_tokenizer",
    "convert",
    "detect",
    "load",
    "load_tokenizer",
    "load_weights",
    "locate",
    "read_tensors",
    "save",
]
