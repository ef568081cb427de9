"""The sizes of a LLaMA-like model, and how many parameters they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossal_llama.constants import CONFIG_FILE
from colossal_llama.errors import UserError
from colossal_llama.json_files import read_json_object

_LLAMA2 = {"model_type": "llama", "vocab_size": 32_000, "tie_word_embeddings": False}
KNOWN_SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False,
    },
    "smollm2-135m": {
        "model_type": "llama", "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
    },
    "1b": {
        "model_type": "llama", "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True,
    },
    "7b": _LLAMA2 | {
        "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "13b": _LLAMA2 | {
        "hidden_size": 5120, "intermediate_size": 13_824, "num_hidden_layers": 40, "num_attention_heads": 40,
        "num_key_value_heads": 40,
    },
    "70b": _LLAMA2 | {
        "hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "llama3-8b": {
        "model_type": "llama", "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""The parts of ``config.json`` that decide a model's size: Llama 2 (Touvron et al. 2023, arXiv:2307.09288), Llama 3 8B
(Grattafiori et al. 2024, arXiv:2407.21783), Llama 3.2 1B and SmolLM2-135M (Ben Allal et al. 2025, arXiv:2502.02737) as
published, and the model of the tests."""

SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
)  # fmt: skip


def find_model_config(name: str, flag: str) -> dict[str, Any]:
    """The sizes of a model, by its name or from its file.

    Args:
        name: of :data:`KNOWN_SHAPES`, a ``config.json`` (by any name), or a folder that holds one.
        flag: that gave it, for messages.

    Raises:
        UserError: neither a known name nor a file, or the file is not a model's configuration.
    """
    if name.lower() in KNOWN_SHAPES:
        return dict(KNOWN_SHAPES[name.lower()])
    path = Path(name) / CONFIG_FILE if Path(name).is_dir() else Path(name)
    if not path.is_file():
        raise UserError(
            f"{flag} {name}: neither a known model ({', '.join(KNOWN_SHAPES)}) nor a config.json or a folder with one"
        )
    content = read_json_object(path, f"{flag} {path}", "expected a model's config.json")
    if not isinstance(content.get("model_type"), str):
        raise UserError(f"{flag} {path}: has no model_type; expected the config.json of a Hugging Face model")
    return content


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a dense decoder with gated MLPs.

    Attributes:
        vocab_size: rows of the embeddings.
        hidden_size, intermediate_size: widths of the residual stream and inside the MLP.
        layers, heads, kv_heads, head_size: of the decoder.
        tied: the output embedding is the input embedding.
        qkv_bias, output_bias, mlp_bias: which projections have a bias.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    tied: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str) -> ModelShape:
        """The shape that a ``config.json`` describes.

        Args:
            config: content of the file.
            source: its name, for messages.

        Raises:
            UserError: a size is missing or no positive whole number, or the model is a mixture of experts.
        """
        for key in SIZES:
            if not isinstance(config.get(key), int) or config[key] < 1:
                raise UserError(f"{source}: {key} is {config.get(key)!r}; expected the size of a LLaMA-like model")
        if config.get("num_local_experts") or config.get("num_experts"):
            raise UserError(f"{source}: a mixture of experts; estimates are for dense models only")
        heads, attention_bias = config["num_attention_heads"], bool(config.get("attention_bias"))
        return cls(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_size=config.get("head_dim") or config["hidden_size"] // heads,
            tied=bool(config.get("tie_word_embeddings")),
            qkv_bias=attention_bias or config.get("model_type") == "qwen2",
            output_bias=attention_bias,
            mlp_bias=bool(config.get("mlp_bias")),
        )

    @property
    def embedding_parameters(self) -> int:
        """Elements of one embedding matrix."""
        return self.vocab_size * self.hidden_size

    @property
    def projections(self) -> tuple[tuple[int, int], ...]:
        """Input and output width of each matrix of a layer: query, key, value, output, gate, up, down."""
        hidden, inner = self.hidden_size, self.intermediate_size
        query, key = self.heads * self.head_size, self.kv_heads * self.head_size
        return (hidden, query), (hidden, key), (hidden, key), (query, hidden), *[(hidden, inner)] * 2, (inner, hidden)

    @property
    def layer_matrix_parameters(self) -> int:
        """Elements of a layer's matrices and their biases; what tensor parallelism splits."""
        query, key = self.heads * self.head_size, self.kv_heads * self.head_size
        biases = self.qkv_bias * (query + 2 * key) + self.output_bias * self.hidden_size
        biases += self.mlp_bias * (2 * self.intermediate_size + self.hidden_size)
        return sum(width * out for width, out in self.projections) + biases

    @property
    def parameters(self) -> int:
        """All parameters; tied embeddings count once."""
        layer = self.layer_matrix_parameters + 2 * self.hidden_size
        return (1 if self.tied else 2) * self.embedding_parameters + self.layers * layer + self.hidden_size

    def lora_parameters(self, rank: int) -> int:
        """Parameters of adapters of ``rank`` on all matrices of all layers (Hu et al. 2021, arXiv:2106.09685)."""
        return self.layers * sum(rank * (width + out) for width, out in self.projections)
