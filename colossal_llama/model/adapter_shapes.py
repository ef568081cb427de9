"""Whether LoRA adapters fit a base model, told from the shapes of their tensors before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from colossal_llama.constants import ADAPTER_CONFIG_FILE
from colossal_llama.errors import UserError
from colossal_llama.model.adapters import adapter_weights
from colossal_llama.model.model_folder import load_pickle
from colossal_llama.model.stored_tensors import read_header

_PREFIX = "base_model.model."


def make_room(model: Any, adapter: Path, flag: str) -> None:
    """Widen the embeddings of a base model whose adapters hold wider ones whole; refuse other shapes than its own.

    Args:
        model: the causal LM below the adapters; its embeddings get as many rows as the adapters'.
        adapter: folder of the adapters.
        flag: the flag that named it, for messages.

    Raises:
        UserError: there are no weights, a layer is missing or of another shape in the base model, or wider embeddings
            are not there as a whole.
    """
    shapes = _read_shapes(adapter)
    embeddings = _embedding_names(model)
    rows = {name: shapes[name][0] for name in embeddings if name in shapes}
    base_rows = model.get_input_embeddings().weight.shape[0]
    if any(count > base_rows for count in rows.values()):
        _check_whole(model, adapter, flag, embeddings, rows)
        model.resize_token_embeddings(max(rows.values()), mean_resizing=False)
    for name, shape in shapes.items():
        _check_layer(model, name, shape, f"{flag} {adapter}")


def _read_shapes(adapter: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by the names of the base model's parameters, with peft's endings for factors."""
    file = adapter_weights(adapter)
    if file.suffix == ".safetensors":
        shapes = {one.name: one.shape for one in read_header(file)[0]}
    else:
        shapes = {name: tuple(tensor.shape) for name, tensor in load_pickle(file, "meta").items()}
    return {name.removeprefix(_PREFIX).replace(".modules_to_save.", "."): shape for name, shape in shapes.items()}


def _embedding_names(model: Any) -> list[str]:
    """Names of the weights of the input and the output embedding."""
    modules = [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]
    return [f"{name}.weight" for module in modules for name, other in model.named_modules() if other is module]


def _check_whole(model: Any, adapter: Path, flag: str, embeddings: list[str], rows: dict[str, int]) -> None:
    config = json.loads((adapter / ADAPTER_CONFIG_FILE).read_text(encoding="utf-8"))
    apart = not model.config.tie_word_embeddings or bool(config.get("modules_to_save"))
    missing = [name for name in embeddings if name not in rows] if apart else []
    if missing or len(set(rows.values())) > 1:
        held = ", ".join(f"{name} with {count:,} rows" for name, count in rows.items())
        raise UserError(
            f"{flag} {adapter}: the adapters were trained on a base model with more tokens, whose embeddings they hold "
            f"in part only ({held}); give the widened base model with --base_model_path"
        )


def _check_layer(model: Any, name: str, shape: tuple[int, ...], where: str) -> None:
    """Compare one tensor with the layer that it belongs to; other kinds of tensors are peft's to judge."""
    layer, kind = name, ""
    for ending in (".lora_A.weight", ".lora_B.weight", ".weight"):
        if name.endswith(ending):
            layer, kind = name.removesuffix(ending), ending
            break
    if not kind:
        return
    try:
        weight = model.get_submodule(layer).weight
    except AttributeError as error:
        raise UserError(
            f"{where}: the base model has no layer {layer}; name the base that they were made for"
        ) from error
    expected = _expected(model.get_submodule(layer), tuple(weight.shape), kind)
    found = {".lora_A.weight": shape[1:], ".lora_B.weight": shape[:1], ".weight": shape}[kind]
    if found != expected:
        raise UserError(
            f"{where}: made for a base model of another shape ({layer}: {_show(found)} instead of {_show(expected)}); "
            "name the base that they were made for with --base_model_path"
        )


def _expected(module: Any, shape: tuple[int, ...], kind: str) -> tuple[int, ...]:
    from transformers.pytorch_utils import Conv1D

    if kind == ".weight":
        return shape
    rows, columns = reversed(shape) if isinstance(module, Conv1D) else shape
    return (columns,) if kind == ".lora_A.weight" else (rows,)


def _show(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{size:,}" for size in shape)
