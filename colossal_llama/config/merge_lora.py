"""Configuration of ``merge_lora.py``."""

from dataclasses import dataclass

from colossal_llama.config.cli import flag


@dataclass
class MergeLoraConfig:
    """Adapters, their base model and where the merged model goes."""

    adapter_path: str = flag(help="folder of LoRA adapters (a modeling folder of a run with --lora_rank)")
    output_path: str = flag(help="folder of the merged model; must not exist")
    base_model_path: str | None = flag(
        None, help="folder of the model that the adapters were trained on; unset: the one that they name"
    )
    overwrite: bool = flag(False, help="replace an existing --output_path")
