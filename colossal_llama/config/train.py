"""Configuration of ``train.py``: every flag, its default and what it must satisfy."""

from dataclasses import dataclass

from colossal_llama.config.cli import flag
from colossal_llama.errors import UserError

PLUGIN_NAMES = ("gemini", "gemini_auto", "zero2", "zero2_cpu", "3d", "ddp")
PRECISIONS = ("fp16", "bf16", "fp32")
AUTO = "auto"
"""``--load_checkpoint``: find out from ``--save_dir``."""
ON_NAN = ("stop", "skip")
OPTIMIZER_NAMES = ("hybrid_adam", "lion", "adamw_8bit", "adafactor", "came", "galore")
SEQUENCE_PARALLEL_MODES = ("split_gather", "ring", "all_to_all")
LR_SCHEDULE_NAMES = ("cosine", "wsd", "linear", "constant")


@dataclass
class TrainConfig:
    """What one training run does. Where upstream's documentation and code differ, the documented default holds."""

    pretrained: str = flag(help="folder of the model and its tokenizer (Hugging Face format)")
    dataset: list[str] = flag(
        default=[],
        help="prepared data: part folders, or a folder that holds them; bucket order is this order",
    )
    plugin: str = flag("gemini", help="how the model is distributed", choices=PLUGIN_NAMES)
    load_checkpoint: str | None = flag(
        None,
        help="a checkpoint folder: resume everything; its modeling folder: start from these weights; auto: resume the "
        "newest whole checkpoint of --save_dir, or start from --initial_weights",
    )
    initial_weights: str | None = flag(
        None,
        help="with --load_checkpoint auto: modeling folder that the run starts from while there is no checkpoint; "
        "unset: --pretrained",
    )
    save_interval: int = flag(1000, help="optimizer steps between checkpoints; 0: only at the ends of epochs")
    save_dir: str = flag("checkpoint_dir", help="folder of the checkpoints and of the final modeling folder")
    keep_last: int = flag(0, help="after a save, delete all but this many of the newest checkpoints; 0: keep all")
    keep_every: int = flag(0, help="with --keep_last: keep also every checkpoint at a multiple of this many steps")
    async_save: bool = flag(
        False, help="copy checkpoints to host memory and write them in the background, while training goes on"
    )
    tensorboard_dir: str = flag("logs_dir", help="folder of the TensorBoard events and of metrics.jsonl")
    config_file: str = flag("config_file", help="file that the resolved configuration is written to")
    eval_interval: int = flag(0, help="optimizer steps between evaluations on held-out rows; 0: none")
    eval_dataset: list[str] | None = flag(
        None, help="prepared rows to evaluate on; unset: the validation parts beside --dataset"
    )
    eval_rows: int = flag(0, help="rows of an evaluation at most, spread evenly over all; 0: all")
    on_nan: str = flag(
        "stop",
        help="a loss or gradient that is not finite ends the run, or its update is dropped and counted",
        choices=ON_NAN,
    )
    peak_tflops: float | None = flag(
        None, help="peak TFLOP/s of one device, for the MFU; unset: known for common GPUs, else no MFU"
    )
    num_epochs: int = flag(1, help="passes over the data")
    micro_batch_size: int = flag(
        1,
        aliases=("--batch_size",),
        help="rows per data-parallel rank and forward pass; with --pp the rows that enter the pipeline together",
    )
    accumulation_steps: int = flag(1, help="forward and backward passes per optimizer step")
    optimizer: str = flag("hybrid_adam", help="what turns gradients into updates", choices=OPTIMIZER_NAMES)
    lr: float = flag(3e-4, help="peak learning rate")
    embedding_lr: float | None = flag(None, help="peak learning rate of input and output embedding; unset: --lr")
    lr_schedule: str = flag("cosine", help="curve of the learning rate after the warm-up", choices=LR_SCHEDULE_NAMES)
    lr_floor: float = flag(0.1, help="share of the peak learning rate that the schedule ends at (not constant)")
    lr_decay_fraction: float = flag(0.1, help="share of the steps after the warm-up in which wsd decays")
    weight_decay: float = flag(0.1, aliases=("-w",), help="decoupled weight decay")
    decay_norms_and_biases: bool = flag(True, help="decay norms and biases too, as Colossal-LLaMA does")
    galore_rank: int = flag(128, help="rank that GaLore projects gradients to")
    galore_update_interval: int = flag(200, help="optimizer steps between GaLore's projections")
    galore_scale: float = flag(0.25, help="factor of GaLore's updates")
    warmup_steps: int | None = flag(None, aliases=("-s",), help="warm-up steps; unset: 0.025 of all steps")
    gradient_clipping: float = flag(1.0, aliases=("--grad_clip",), help="largest gradient norm; 0: no clipping")
    max_length: int = flag(4096, help="longest row in tokens; rows are padded to it with --padding_mode max_length")
    mixed_precision: str = flag("fp16", help="precision of the forward and backward pass", choices=PRECISIONS)
    use_grad_checkpoint: bool = flag(False, help="recompute activations in the backward pass to save memory")
    use_flash_attn: bool = flag(False, help="flash attention; without GPU or package PyTorch's SDPA is used instead")
    freeze_non_embeds_params: bool = flag(False, help="train only the input and output embeddings")
    freeze_old_embedding_rows: int | None = flag(
        None, help="leave the embedding rows of ids below this number (the old vocabulary's size) as they are"
    )
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
    microbatch_size: int = flag(1, help="rows of one pipeline micro-batch (with --pp)")
    pad_token: str = flag("eos", help="token that fills rows", choices=("eos", "unk"))
    padding_mode: str = flag(
        "max_length",
        help="pad rows to --max_length or to the longest of the batch",
        choices=("max_length", "longest"),
    )
    document_mask: str = flag(
        "auto",
        help="keep the documents of one row apart: attention and positions start anew with each; auto: for SFT data",
        choices=("auto", "on", "off"),
    )
    use_neft: bool = flag(False, help="NEFTune: noise on the input embeddings (for SFT)")
    neft_alpha: float = flag(5.0, help="NEFTune noise scale alpha")
    lora_rank: int = flag(0, help="rank of LoRA adapters; 0: train the weights themselves")
    lora_alpha: int = flag(32, help="LoRA scale: adapters are multiplied by alpha / rank")
    lora_dropout: float = flag(0.1, help="share of the adapters' inputs that is dropped in training")
    lora_target_modules: list[str] | None = flag(
        None, help="names of the layers that get adapters; unset: all linear layers of the decoder"
    )
    lora_modules_to_save: list[str] | None = flag(
        None, help="names of layers that are trained whole beside the adapters, such as: embed_tokens lm_head"
    )
    skip_save_each_epoch: bool = flag(False, help="no checkpoint at the end of an epoch")
    benchmark: bool = flag(False, help="train on random rows, report speed, save nothing")
    num_samples: int = flag(500, help="random rows of --benchmark")
    seed: int = flag(42, help="seed of data order, NEFTune noise and dropout")
    overwrite: bool = flag(False, help="train from scratch into a --save_dir that holds checkpoints")

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything heavy is imported.

        Raises:
            UserError: names the flag, the value and what was expected.
        """
        for name, least in (
            ("num_epochs", 1), ("micro_batch_size", 1), ("accumulation_steps", 1), ("max_length", 2), ("tp", 1),
            ("pp", 1), ("sp", 1), ("microbatch_size", 1), ("save_interval", 0), ("lora_rank", 0), ("num_samples", 1),
            ("gradient_clipping", 0), ("weight_decay", 0), ("neft_alpha", 0), ("seed", 0), ("galore_rank", 1),
            ("galore_update_interval", 1), ("lora_alpha", 1), ("eval_interval", 0), ("eval_rows", 0), ("keep_last", 0),
            ("keep_every", 0),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise UserError(f"--{name} must be at least {least}, not {getattr(self, name)}")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise UserError(f"--warmup_steps must be at least 0, not {self.warmup_steps}")
        for name in ("lr", "embedding_lr", "galore_scale", "peak_tflops"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"--{name} must be positive, not {value}")
        if self.freeze_old_embedding_rows is not None and self.freeze_old_embedding_rows < 1:
            raise UserError(f"--freeze_old_embedding_rows must be at least 1, not {self.freeze_old_embedding_rows}")
        if self.eval_interval and self.benchmark:
            raise UserError("--eval_interval does not go with --benchmark: its rows are random")
        if (self.eval_dataset or self.eval_rows) and not self.eval_interval:
            raise UserError("--eval_dataset and --eval_rows need --eval_interval: the steps between evaluations")
        self._check_schedule()
        self._check_lora()
        if self.zero not in (0, 1, 2):
            raise UserError(f"--zero must be 0, 1 or 2, not {self.zero}")
        if self.keep_every and not self.keep_last:
            raise UserError(f"--keep_every {self.keep_every} needs --keep_last: without it, no checkpoint is deleted")
        if self.overwrite and self.load_checkpoint == AUTO:
            raise UserError("--overwrite starts from scratch and --load_checkpoint auto goes on: give one of them")
        if self.initial_weights is not None and self.load_checkpoint != AUTO:
            raise UserError(
                "--initial_weights goes with --load_checkpoint auto; to start from weights alone, give their folder to "
                "--load_checkpoint"
            )
        if not self.dataset and not self.benchmark:
            raise UserError("--dataset is required: name the part folders that prepare_pretrain_dataset.py wrote")
        if self.plugin != "3d":
            for name in ("tp", "pp", "sp"):
                if getattr(self, name) != 1:
                    raise UserError(f"--{name} {getattr(self, name)} needs --plugin 3d, not {self.plugin}")
            if self.enable_sequence_parallelism:
                raise UserError(f"--enable_sequence_parallelism needs --plugin 3d, not {self.plugin}")

    def _check_schedule(self) -> None:
        if not 0 <= self.lr_floor <= 1:
            raise UserError(f"--lr_floor must lie between 0 and 1, not {self.lr_floor}")
        if self.lr_schedule == "wsd" and self.lr_floor == 0:
            raise UserError("--lr_floor 0 does not work with --lr_schedule wsd: it decays exponentially; use 0.01")
        if not 0 < self.lr_decay_fraction <= 1:
            raise UserError(f"--lr_decay_fraction must lie above 0 and up to 1, not {self.lr_decay_fraction}")

    def _check_lora(self) -> None:
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"--lora_dropout must lie between 0 and 1 (below), not {self.lora_dropout}")
        for name in ("lora_target_modules", "lora_modules_to_save"):
            if getattr(self, name) is not None and not self.lora_rank:
                raise UserError(f"--{name} needs --lora_rank; without it all weights are trained")
        if self.lora_rank and self.optimizer == "galore":
            raise UserError(
                "--optimizer galore does not work with --lora_rank: adapters are of low rank already; use hybrid_adam"
            )
