"""Names and numbers that several packages must agree on."""

IGNORE_INDEX = -100
"""Label of a position that carries no loss (the convention of torch.nn.CrossEntropyLoss and transformers)."""

TORCH_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Names in torch of the dtypes of ``--mixed_precision`` and ``--dtype``; here torch need not be imported."""

CONFIG_FILE = "config.json"
"""What makes a folder a Hugging Face model's."""

ADAPTER_CONFIG_FILE = "adapter_config.json"
"""What makes a folder a LoRA adapter's (peft)."""

MANIFEST_FILE = "manifest.json"
"""Describes what lies beside it: the ``part-*`` folders of a prepared dataset, or the files of a checkpoint."""

PART_PREFIX = "part-"
"""Prepared bins are folders ``part-00000``, ``part-00001``, ..."""

WHOLE, SPLIT, FLAT, CHUNKS = "whole", "split", "flat", "chunks"
"""What an optimizer gets to see of a weight matrix. WHOLE: all of it. SPLIT: some of its rows or columns (tensor
parallelism). FLAT: a piece of its flattened elements (ZeRO). CHUNKS: a piece of a chunk of such weights (Gemini)."""

BASE_MODEL_FILE = "base_model.json"
"""Beside LoRA adapters: the fingerprint of the weights that they were trained on."""
