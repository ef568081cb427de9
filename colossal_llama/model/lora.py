"""LoRA adapters (Hu et al. 2021, arXiv:2106.09685) by peft: made for training, and merged into plain weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from colossal_llama.errors import UserError, is_out_of_memory
from colossal_llama.model.adapter_shapes import make_room

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""All linear layers of a Llama's decoder."""


@dataclass(frozen=True)
class LoraOptions:
    """New adapters.

    Attributes:
        rank: rank of the two factors.
        alpha: the product of the factors is multiplied by alpha / rank.
        dropout: share of an adapter's inputs that is dropped in training.
        target_modules: last names of the layers that get adapters; None for those of :data:`TARGET_MODULES` that the
            model has.
        modules_to_save: last names of layers that are trained whole beside them.
    """

    rank: int
    alpha: int = 32
    dropout: float = 0.1
    target_modules: Sequence[str] | None = None
    modules_to_save: Sequence[str] = ()


def add_lora(booster: Any, model: Any, options: LoraOptions, adapter: Path | None) -> Any:
    """Wrap a model for LoRA training, before it is boosted.

    Args:
        booster: its plugin must support LoRA.
        model: a causal LM; its own weights are frozen.
        options: the adapters.
        adapter: folder of adapters to go on from, or None for new ones.

    Raises:
        UserError: the model has no such layers, ties one that is trained to one that is not, or the adapter does not
            fit the model or the options.
    """
    from peft import LoraConfig

    options = _resolved(model, options)
    if adapter is None:
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=options.rank,
            lora_alpha=options.alpha,
            lora_dropout=options.dropout,
            target_modules=list(options.target_modules or ()),
            modules_to_save=list(options.modules_to_save) or None,
        )
        wrapped = booster.enable_lora(model, lora_config=config)
    else:
        try:
            wrapped = booster.enable_lora(model, pretrained_dir=str(adapter))
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _misfit("--load_checkpoint", adapter, error) from error
        _check_adapter(wrapped.peft_config["default"], options, adapter)
    if _ties_embeddings(model):
        _tie_copies(model)
    return wrapped


def _resolved(model: Any, options: LoraOptions) -> LoraOptions:
    """The options with the names of target modules that the model has, after a look at all names.

    Raises:
        UserError: see :func:`add_lora`.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    linear, every = set(), set()
    for name, module in model.named_modules():
        every.add(name.rpartition(".")[2])
        if isinstance(module, torch.nn.Linear | Conv1D):
            linear.add(name.rpartition(".")[2])
    wanted = options.target_modules
    targets = [name for name in TARGET_MODULES if name in linear] if wanted is None else list(wanted)
    for flag, names, known in (
        ("--lora_target_modules", targets or TARGET_MODULES[:1], linear),
        ("--lora_modules_to_save", options.modules_to_save, every),
    ):
        unknown = [name for name in names if name not in known]
        if unknown:
            shown = sorted(name for name in known if name and not name.isdigit())
            raise UserError(f"{flag} {unknown[0]}: the model has no such layer; it has {', '.join(shown)}")
    _check_combination(model, targets, options.modules_to_save)
    return replace(options, target_modules=targets)


def _check_combination(model: Any, targets: Sequence[str], modules_to_save: Sequence[str]) -> None:
    both = set(targets) & set(modules_to_save)
    if both:
        raise UserError(f"--lora_modules_to_save {sorted(both)[0]}: also in --lora_target_modules; name it once")
    embeddings = embedding_names(model)
    saved = [name for name in embeddings if name in modules_to_save]
    adapted = [name for name in embeddings if name in targets]
    if _ties_embeddings(model) and adapted:
        raise UserError(
            f"--lora_target_modules {adapted[0]}: the model ties it to its input embedding, which an adapter would "
            f"untie; train both whole with --lora_modules_to_save {' '.join(embeddings)}"
        )
    if _ties_embeddings(model) and saved and len(saved) < len(embeddings):
        raise UserError(
            f"--lora_modules_to_save {saved[0]}: the model ties its input to its output embedding; name both: "
            f"{' '.join(embeddings)}"
        )


def _check_adapter(config: Any, options: LoraOptions, adapter: Path) -> None:
    """Refuse to go on with adapters that are not what the flags say.

    Raises:
        UserError: names the flag, what it says and what the adapters were made with.
    """
    for flag, found, wanted in (
        ("--lora_rank", config.r, options.rank),
        ("--lora_alpha", config.lora_alpha, options.alpha),
        ("--lora_dropout", config.lora_dropout, options.dropout),
        ("--lora_target_modules", _listed(config.target_modules), _listed(options.target_modules)),
        ("--lora_modules_to_save", _listed(config.modules_to_save), _listed(options.modules_to_save)),
    ):
        if found != wanted:
            raise UserError(f"--load_checkpoint {adapter}: the adapters were made with {flag} {found}, not {wanted}")


def _listed(names: Any) -> str:
    """Names of layers in one order; peft also knows a pattern instead of them."""
    return names if isinstance(names, str) else " ".join(sorted(names or ())) or "unset"


def _misfit(flag: str, adapter: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:300]
    return UserError(f"{flag} {adapter}: the adapter does not fit the model ({reason})")


def _ties_embeddings(model: Any) -> bool:
    return bool(model.config.tie_word_embeddings) and model.get_output_embeddings() is not None


def embedding_names(model: Any) -> list[str]:
    """Last names of the input and the output embedding."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    return [
        name.rpartition(".")[2]
        for module in modules
        for name, candidate in model.named_modules()
        if candidate is module
    ]


def _tie_copies(model: Any) -> None:
    """Tie the trainable copies that peft made of tied embeddings; it copies each for itself."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if hasattr(inputs, "modules_to_save") and hasattr(outputs, "modules_to_save"):
        outputs.modules_to_save["default"].weight = inputs.modules_to_save["default"].weight


def merge_adapter(model: Any, adapter: Path, flag: str) -> Any:
    """The model with LoRA adapters added to its weights, as plain as it was before, in its own dtype.

    A base model with fewer rows of embeddings than the adapters hold gets as many as they do.

    Each weight becomes weight + alpha / rank * B @ A, computed in fp32 and rounded once.

    Args:
        model: the causal LM that the adapters were trained on.
        adapter: folder of the adapters.
        flag: the flag that named it, for messages.

    Raises:
        UserError: the adapters do not fit the model.
    """
    import torch
    from peft import PeftModel

    dtype = model.dtype
    make_room(model, adapter, flag)
    try:
        with torch.no_grad():
            merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    except Exception as error:  # by what does not fit, and for settings of another version of peft
        if is_out_of_memory(error):
            raise
        raise _misfit(flag, adapter, error) from error
    merged = merged.to(dtype)
    if _ties_embeddings(merged):
        inputs, outputs = merged.get_input_embeddings(), merged.get_output_embeddings()
        if torch.equal(inputs.weight, outputs.weight):
            merged.tie_weights()
        else:  # adapters made elsewhere, with one of the two trained
            merged.config.tie_word_embeddings = False
    return merged


def bare_model(boosted: Any) -> Any:
    """The transformers model inside a boosted one, without the wrappers of Colossal-AI and peft."""
    model = boosted.unwrap(unwrap_peft=False)
    if hasattr(model, "lora_layers"):  # Colossal-AI's own view of a peft model
        return model.base_model
    return model.get_base_model() if hasattr(model, "get_base_model") else model
