"""Whether the weights stored in a folder are those of the model that its ``config.json`` describes.

transformers draws random numbers for weights that are missing and leaves out those that it does not know, with a
warning at most. Both are found here from the headers of the files, before anything is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from colossal_llama.constants import CONFIG_FILE
from colossal_llama.errors import UserError
from colossal_llama.model.model_folder import load_pickle
from colossal_llama.model.stored_tensors import StoredTensor

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

HARMLESS = (r"rotary_emb\.inv_freq$", r"\.(attn|attention)\.(masked_)?bias$")
"""Constants that older versions of transformers stored beside the weights."""

PLAIN_DTYPES = ("F64", "F32", "F16", "BF16")
"""How weights that can be trained are stored, in the format's names."""

_ROWS = 4096
"""Rows compared at a time."""


def check_weights(model: PreTrainedModel, stored: Mapping[str, StoredTensor], folder: Path, flag: str) -> None:
    """Refuse weights that are not exactly the model's.

    Args:
        model: the outline of the model, tied where it ties its weights.
        stored: of ``stored_weights``.
        folder, flag: where they come from, for messages.

    Raises:
        UserError: a weight is missing, has another shape, is not of a floating dtype, or is none of the model's.
    """
    unmatched = unmatched_weights(model, stored)
    if unmatched:
        _explain_unmatched(model, stored, folder, flag, unmatched)
    if _is_quantised(model):
        return
    refuse_unknown(folder, flag, unexpected_weights(model, stored))
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    weights = [one for one in stored.values() if names.intersection(spellings([one.name], model.base_model_prefix))]
    coded = next((one for one in weights if one.dtype not in PLAIN_DTYPES), None)
    if coded is not None:
        raise UserError(
            f"{coded.file}: {coded.name} is stored as {coded.dtype}; expected one of {', '.join(PLAIN_DTYPES)}: give "
            "the model before it was quantised"
        )


def refuse_quantised(model_config: Mapping[str, Any], folder: Path, flag: str) -> None:
    """Refuse to train a quantised model.

    Raises:
        UserError: its configuration names a quantisation.
    """
    settings = model_config.get("quantization_config")
    if settings is not None:
        method = settings.get("quant_method", "unknown") if isinstance(settings, dict) else settings
        raise UserError(
            f"{flag} {folder}: is quantised (quant_method {method} in {CONFIG_FILE}) and cannot be trained; give the "
            "model before it was quantised"
        )


def unmatched_weights(model: PreTrainedModel, stored: Mapping[str, StoredTensor]) -> list[str]:
    """Names of the model's weights that a checkpoint lacks or holds in another shape; tied ones count once.

    Of a quantised model only the embeddings are looked at; the other weights' names are its method's.

    Args:
        model: the outline of the model.
        stored: the checkpoint's tensors.
    """
    names_of: dict[int, list[str]] = {}
    shapes = {}
    persistent = set(model.state_dict())
    for name, one in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        if name in persistent:
            names_of.setdefault(id(one), []).append(name)
            shapes[id(one)] = tuple(one.shape)
    optional = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or []]
    unmatched = []
    for key, names in names_of.items():
        places = [stored[name] for name in spellings(names, model.base_model_prefix) if name in stored]
        may_lack = any(pattern.search(name) for pattern in optional for name in names)
        if any(place.shape != shapes[key] for place in places) or not (places or may_lack):
            unmatched.append(names[0])
    if _is_quantised(model):
        embeddings = _embedding_names(model)
        unmatched = [name for name in unmatched if name in embeddings]
    return unmatched


def unexpected_weights(model: PreTrainedModel, stored: Mapping[str, StoredTensor]) -> list[str]:
    """Names in a checkpoint that are none of the model's and that its class does not pass over on purpose."""
    own = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    own += [name for name, _ in model.named_buffers(remove_duplicate=False)]
    known = set(spellings(own, model.base_model_prefix))
    passed = [re.compile(one) for one in model._keys_to_ignore_on_load_unexpected or []]
    return [name for name in stored if name not in known and not any(one.search(name) for one in passed)]


def spellings(names: Sequence[str], prefix: str) -> list[str]:
    """The names with and without the base model's prefix: a checkpoint may be of the model without its head."""
    found = dict.fromkeys(names)
    found |= {name.removeprefix(f"{prefix}."): None for name in names}
    found |= {f"{prefix}.{name}": None for name in names}
    return list(found)


def _is_quantised(model: PreTrainedModel) -> bool:
    return getattr(model.config, "quantization_config", None) is not None


def _embedding_names(model: PreTrainedModel) -> set[str]:
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    own = {id(one) for module in modules if module is not None for one in module.parameters()}
    return {name for name, one in model.named_parameters(remove_duplicate=False) if id(one) in own}


def _explain_unmatched(
    model: PreTrainedModel, stored: Mapping[str, StoredTensor], folder: Path, flag: str, unmatched: Sequence[str]
) -> NoReturn:
    """Say what is wrong with the embeddings where it is them, and name the weights otherwise."""
    names = _embedding_names(model)
    rows = model.get_input_embeddings().weight.shape[0]
    for name in (one for one in unmatched if one in names):
        place = next((stored[one] for one in spellings([name], model.base_model_prefix) if one in stored), None)
        if place is not None and place.shape[:1] != (rows,):
            raise UserError(
                f"{flag} {folder}: {CONFIG_FILE} says vocab_size {rows}, but {place.name} has {place.shape[0]} rows; "
                "correct vocab_size, or copy the model again"
            )
    output = model.get_output_embeddings()
    heads = [] if output is None else [f"{name}.weight" for name, one in model.named_modules() if one is output]
    if set(unmatched) <= set(heads) and not stored.keys() & set(heads):
        raise UserError(
            f"{flag} {folder}: {CONFIG_FILE} says tie_word_embeddings false, but no {unmatched[0]} is stored, and "
            "transformers would draw a random one; set tie_word_embeddings to true if the model ties them, or copy the "
            "model again"
        )
    refuse_weights(folder, flag, unmatched)


def refuse_unknown(folder: Path, flag: str, names: Sequence[str]) -> None:
    """Refuse a checkpoint with weights that are none of the model's, :data:`HARMLESS` ones aside.

    Raises:
        UserError: there are such weights.
    """
    unknown = [name for name in names if not any(re.search(pattern, name) for pattern in HARMLESS)]
    if unknown:
        raise UserError(
            f"{flag} {folder}: holds {len(unknown)} weights that the model of its {CONFIG_FILE} does not have "
            f"({', '.join(unknown[:3])}), and transformers would leave them out; correct {CONFIG_FILE} (its number of "
            "layers, say) or delete them"
        )


def refuse_weights(path: Path, flag: str, names: Sequence[str]) -> NoReturn:
    """Say which weights are missing or of another shape than the model's.

    Raises:
        UserError: always.
    """
    shown = ", ".join(names[:3])
    raise UserError(f"{flag} {path}: weights are missing or misshapen ({shown}); copy the model again")


def tied_copy_note(model: PreTrainedModel, stored: Mapping[str, StoredTensor], folder: Path, flag: str) -> str | None:
    """What to tell where tied embeddings are stored twice and differ: transformers takes the input embedding for both.

    Args:
        model: the outline of the model, tied where it ties its weights.
        stored: of ``stored_weights``; rows are read only where the embeddings are stored twice.
        folder, flag: where they come from.
    """
    source, output = model.get_input_embeddings(), model.get_output_embeddings()
    if output is None or output.weight is not source.weight:
        return None
    inputs = _places_of(model, source, stored)
    unread = next((one for one in _places_of(model, output, stored) if one not in inputs), None)
    if not inputs or unread is None or _equal_rows(inputs[0], unread):
        return None
    return (
        f"{flag} {folder}: {unread.name} is stored with other values than {inputs[0].name}, but {CONFIG_FILE} ties the "
        f"two: {inputs[0].name} counts for both (if {unread.name} was trained, set tie_word_embeddings to false)"
    )


def _places_of(
    model: PreTrainedModel, module: torch.nn.Module, stored: Mapping[str, StoredTensor]
) -> list[StoredTensor]:
    """Where the weight of one of the embeddings is stored under the module's own name."""
    names = [f"{name}.weight" for name, one in model.named_modules() if one is module]
    return [stored[name] for name in spellings(names, model.base_model_prefix) if name in stored]


def _equal_rows(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two stored tensors of one shape hold the same numbers; stops at the first block that differs."""
    import torch
    from safetensors import safe_open

    if one.file.suffix != ".safetensors":
        return torch.equal(load_pickle(one.file)[one.name], load_pickle(other.file)[other.name])
    with safe_open(one.file, framework="pt") as first, safe_open(other.file, framework="pt") as second:
        mine, others = first.get_slice(one.name), second.get_slice(other.name)
        blocks = [slice(start, start + _ROWS) for start in range(0, one.shape[0], _ROWS)]
        return all(torch.equal(mine[block].float(), others[block].float()) for block in blocks)
