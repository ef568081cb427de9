"""Generation and token settings of a model folder, repaired where transformers would read but not write them again.

transformers 4.51 reads contradictory settings (a temperature without sampling, a pad id of -1) with a warning and
raises a ValueError when the model is saved (huggingface/transformers#29665): a training would end at its first
checkpoint.
"""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossal_llama.constants import CONFIG_FILE
from colossal_llama.json_files import read_json_object

GENERATION_CONFIG_FILE = "generation_config.json"

TOKEN_SETTINGS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class RepairedConfig:
    """A ``GenerationConfig`` that can be written.

    Attributes:
        config: the settings.
        repairs: what was changed, a phrase each that names the file; empty where nothing was.
    """

    config: Any
    repairs: tuple[str, ...]


def read_generation_config(folder: Path, model_config: Any) -> RepairedConfig:
    """The generation settings of a model folder: those of ``generation_config.json``, else those of ``config.json``.

    Settings that only sampling uses switch it on, unless the file switches it off: then they are left out. Other
    settings that contradict each other are left out one after the other until transformers accepts the rest.

    Args:
        folder: of the model.
        model_config: its ``PretrainedConfig``.

    Raises:
        UserError: ``generation_config.json`` is damaged.
    """
    from transformers import GenerationConfig

    path = folder / GENERATION_CONFIG_FILE
    if path.is_file():
        named = read_json_object(path, remedy="copy it again, or delete it to do without")
        config = GenerationConfig()
        for name, value in named.items():  # not in its constructor, which checks them
            if not name.startswith("_"):  # _from_model_config: the model's configuration has no say any more
                setattr(config, name, value)
    else:
        path = folder / CONFIG_FILE
        named = read_json_object(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of is repaired
            config = GenerationConfig.from_model_config(model_config)
    return RepairedConfig(config, tuple(f"{path}: {repair}" for repair in _repair(config, named)))


def remove_generation_settings(folder: Path, model_config: Any) -> list[str]:
    """Unset what ``config.json`` says about generation; returns what was changed, in words.

    It is in the settings of :func:`read_generation_config` then, unless ``generation_config.json`` has the say.
    transformers warns of it at each save.
    """
    misplaced = model_config._get_non_default_generation_parameters()
    for name in misplaced:
        setattr(model_config, name, None)
    has_file = (folder / GENERATION_CONFIG_FILE).is_file()
    done = "left out, because there is a" if has_file else "moved to"
    return [f"{name} {value!r} {done} {GENERATION_CONFIG_FILE}" for name, value in misplaced.items()]


def remove_impossible_pad_id(model_config: Any) -> list[str]:
    """Unset a pad id that is no row of the embedding; returns what was changed, in words.

    transformers builds the embedding with it: -1 keeps the last row from being trained, and an id beyond the last row
    cannot be built.
    """
    text_config = model_config.get_text_config()
    pad = getattr(text_config, "pad_token_id", None)
    rows = getattr(text_config, "vocab_size", None)
    if pad is None or rows is None or (isinstance(pad, int) and 0 <= pad < rows):
        return []
    text_config.pad_token_id = None
    return [f"pad_token_id {pad!r} left out (the model has the rows 0 to {rows - 1})"]


def _repair(config: Any, named: dict[str, Any]) -> list[str]:
    """Change ``config`` until transformers would write it; returns what was changed, in words."""
    repairs = []
    if _only_lacks_sampling(config, named):
        config.do_sample = True
        repairs.append("do_sample set to true, because sampling settings are given")
    while found := _problem(config):
        name = _culprit(config, found)
        if name is None:
            for one in _settings(config):
                if one not in TOKEN_SETTINGS:
                    _unset(config, one)
            repairs.append(f"all settings left out ({_shortened(found)})")
            break
        repairs.append(f"{name} {getattr(config, name)!r} left out ({_shortened(found)})")
        _unset(config, name)
    return repairs


def _only_lacks_sampling(config: Any, named: dict[str, Any]) -> bool:
    """Whether ``do_sample`` is not said, the settings are refused without it, and make sense with it."""
    if named.get("do_sample") is not None or config.do_sample or _problem(config) is None:
        return False
    sampling = copy.deepcopy(config)
    sampling.do_sample = True
    is_possible = (
        isinstance(config.temperature, float | int)
        and config.temperature > 0
        and isinstance(config.top_p, float | int)
        and 0 < config.top_p <= 1
    )
    before = _problem(config) or ""
    return is_possible and "do_sample" in before and _problem(sampling) != before


def _problem(config: Any) -> str | None:
    """Why transformers would not write the settings, in its words and one line; None where it would."""
    tried = copy.deepcopy(config)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            tried.validate()
            json.dumps(tried.to_dict())
        except Exception as error:  # ValueError, and TypeError for a value of another type than it compares with
            return " ".join(str(error).split())
    return " ".join(str(caught[0].message).split()) if caught else None


def _shortened(problem: str) -> str:
    """The first sentence of what transformers says."""
    return problem.split(" -- ")[0].split(". This ")[0].removesuffix(".")


def _culprit(config: Any, problem: str) -> str | None:
    """A setting without which the problem is gone, one that the problem names before others."""
    candidates = sorted(_settings(config), key=lambda name: f"`{name}`" not in problem)
    for name in candidates:
        tried = copy.deepcopy(config)
        _unset(tried, name)
        if _problem(tried) != problem:
            return name
    return None


def _settings(config: Any) -> list[str]:
    """Names of the settings that are not what transformers takes unasked."""
    from transformers import GenerationConfig

    usual = GenerationConfig().__dict__
    return [
        name
        for name, value in config.__dict__.items()
        if not name.startswith("_") and name != "transformers_version" and (name not in usual or usual[name] != value)
    ]


def _unset(config: Any, name: str) -> None:
    from transformers import GenerationConfig

    usual = GenerationConfig().__dict__
    if name in usual:
        setattr(config, name, usual[name])
    else:
        delattr(config, name)
