"""Flags that ``benchmark.py`` and ``plan.py`` share: a model's sizes, rows, precision, and how ranks are laid out."""

from dataclasses import dataclass, fields
from typing import Any

from colossal_llama.config.cli import flag
from colossal_llama.config.train import OPTIMIZER_NAMES, PLUGIN_NAMES, PRECISIONS, SEQUENCE_PARALLEL_MODES, TrainConfig

MODEL_NAMES = ("tiny", "smollm2-135m", "1b", "7b", "13b", "70b", "llama3-8b")
"""The models whose sizes are known by name, see :data:`planning.shapes.KNOWN_SHAPES`."""


@dataclass
class WorkloadConfig:
    """One optimizer step of a training: names and meanings of ``train.py``, with the short flags of Colossal-AI's
    benchmark of Llama beside them.
    """

    model: str = flag(
        "7b",
        aliases=("-c",),
        help=f"sizes of the model: {', '.join(MODEL_NAMES)}, a config.json, or a folder that holds one",
    )
    plugin: str = flag("gemini", aliases=("-p",), help="how the model is distributed", choices=PLUGIN_NAMES)
    max_length: int = flag(4096, aliases=("-l",), help="tokens of a row")
    micro_batch_size: int = flag(
        2,
        aliases=("--batch_size", "-b"),
        help="rows per data-parallel rank and forward pass; with --pp the rows that enter the pipeline together",
    )
    accumulation_steps: int = flag(1, help="forward and backward passes per optimizer step")
    mixed_precision: str = flag("bf16", help="precision of the forward and backward pass", choices=PRECISIONS)
    use_grad_checkpoint: bool = flag(
        False, aliases=("--grad_checkpoint", "-g"), help="recompute activations in the backward pass to save memory"
    )
    use_flash_attn: bool = flag(False, aliases=("-x",), help="flash attention instead of PyTorch's")
    optimizer: str = flag("hybrid_adam", help="what turns gradients into updates", choices=OPTIMIZER_NAMES)
    freeze_non_embeds_params: bool = flag(False, help="train only the input and output embeddings")
    tp: int = flag(1, help="tensor parallel size (plugin 3d)")
    pp: int = flag(1, help="pipeline parallel size (plugin 3d)")
    sp: int = flag(1, help="sequence parallel size (plugin 3d with --sp_mode all_to_all)")
    enable_sequence_parallelism: bool = flag(False, help="split sequences over ranks (plugin 3d)")
    sp_mode: str = flag(
        "split_gather",
        help="kind of sequence parallelism; split_gather and ring share the tensor parallel ranks",
        choices=SEQUENCE_PARALLEL_MODES,
    )
    zero: int = flag(1, aliases=("--zero_stage",), help="ZeRO stage inside plugin 3d: 0, 1 or 2")
    zero_cpu_offload: bool = flag(False, help="keep optimizer states in host memory (plugin 3d with ZeRO)")
    microbatch_size: int = flag(1, aliases=("--mbs",), help="rows of one pipeline micro-batch (with --pp)")
    peak_tflops: float | None = flag(None, help="peak TFLOP/s of one device; unset: known for common GPUs")

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            UserError: names the flag, as train.py would.
        """
        self.train_config()

    def train_config(self, **changes: Any) -> TrainConfig:
        """The configuration of train.py that does the same on random rows.

        Args:
            changes: further flags, or others.

        Raises:
            UserError: train.py would refuse it.
        """
        shared = {field.name for field in fields(TrainConfig)}
        values = {name: value for name, value in vars(self).items() if name in shared}
        common = {"benchmark": True, "lr_schedule": "constant", "warmup_steps": 0, "lr": 1e-4}
        return TrainConfig(**{"pretrained": self.model, **common, **values, **changes})
