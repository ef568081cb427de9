"""Measuring one model after the other; what is finished is kept on disk."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colossal_llama.comparison.speed import Size, Speed, measure_size, measure_speed
from colossal_llama.errors import UserError
from colossal_llama.evaluation.documents import DocumentScores, Windows
from colossal_llama.evaluation.measured_texts import HeldOutTexts, measure_texts, model_identity
from colossal_llama.evaluation.store import ResultStore
from colossal_llama.generation import (
    PromptEncoder,
    SamplingSettings,
    check_room,
    choose_device,
    context_length,
    generate,
    load_for_generation,
)

Result = dict[str, Any]


@dataclass(frozen=True)
class NamedModel:
    """A model folder and what the tables call it."""

    name: str
    folder: Path


@dataclass(frozen=True)
class Plan:
    """What to measure of every model.

    Attributes:
        device: where to run.
        texts, windows: texts to score and how; None for none.
        prompts: to go on from.
        prompt_format: ``auto``, ``text``, ``pretrained`` or ``sft``, as ``--prompt_format`` says.
        max_new_tokens: longest continuation.
        speed_tokens: tokens of a forward pass that is timed; None for no timing.
    """

    device: str
    texts: HeldOutTexts | None
    windows: Windows
    prompts: tuple[str, ...] = ()
    prompt_format: str = "auto"
    max_new_tokens: int = 64
    speed_tokens: int | None = None


@dataclass
class ModelFigures:
    """Everything that is known of one model.

    Attributes:
        name, folder, fingerprint: of the model.
        size: how large it is.
        speed: None where it was not timed.
        scores: on the documents; None without texts.
        continuations: of the prompts, in their order.
        tasks: benchmark results, of evaluate.py.
    """

    name: str
    folder: Path
    fingerprint: str
    size: Size
    speed: Speed | None = None
    scores: DocumentScores | None = None
    continuations: list[str] = field(default_factory=list)
    tasks: dict[str, Result] = field(default_factory=dict)


def named_models(specs: Sequence[str]) -> list[NamedModel]:
    """The models of folders or NAME=FOLDER; a folder's own name is its last part, or the whole where that is taken.

    Raises:
        UserError: no such folder, or a name is given twice.
    """
    models: list[NamedModel] = []
    for spec in specs:
        # The name of a folder may hold the sign itself, as in runs/lr=1e-5.
        name, separator, path = ("", "", spec) if Path(spec).is_dir() else spec.partition("=")
        folder = Path(path if separator else spec)
        if not folder.is_dir():
            raise UserError(f"models {spec}: no such folder; give folders, or NAME=FOLDER")
        if not separator:
            taken = {one.name for one in models}
            name = folder.resolve().name if folder.resolve().name not in taken else spec
        if name in {one.name for one in models}:
            raise UserError(f"models {spec}: two models are called {name!r}; give NAME=FOLDER")
        models.append(NamedModel(name, folder))
    return models


def measure_model(model: NamedModel, fingerprint: str, plan: Plan, store: ResultStore) -> ModelFigures:
    """Load a model and measure what the plan says.

    Args:
        model: the folder.
        fingerprint: of its files (:func:`model_fingerprint`).
        plan: what to measure.
        store: of finished measurements.

    Raises:
        UserError: the folder holds no loadable model or tokenizer, or a prompt's format does not fit it.
    """
    loaded = load_for_generation(model.folder, choose_device(plan.device), "models")
    encoded = _encode_prompts(loaded, model.name, plan)
    identity = model_identity(fingerprint, loaded[0], plan.windows.parse_special)
    figures = ModelFigures(model.name, model.folder, fingerprint, measure_size(model.folder, *loaded))
    if plan.texts is not None:
        figures.scores = measure_texts(loaded, identity, plan.texts, plan.windows, store)
    if plan.speed_tokens is not None:
        figures.speed = _speed(loaded[0], identity, plan.speed_tokens, store)
    if plan.prompts:
        figures.continuations = _continuations(loaded, identity, encoded, plan, store)
    return figures


def _speed(model: Any, identity: dict[str, str], tokens: int, store: ResultStore) -> Speed:
    import torch

    machine = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else platform.node()
    settings = {**identity, "tokens": tokens, "threads": torch.get_num_threads(), "machine": machine}
    known = store.load("speed", settings)
    if known is not None:
        return Speed(**known)
    speed = measure_speed(model, tokens)
    store.save("speed", settings, {"forward": speed.forward, "generation": speed.generation})
    return speed


def _style(tokenizer: Any, plan: Plan) -> str:
    if plan.prompt_format != "auto":
        return plan.prompt_format
    return "sft" if tokenizer.chat_template else "text"


def _encode_prompts(loaded: tuple[Any, Any], name: str, plan: Plan) -> list[list[int]]:
    """Token ids of the prompts, each of which leaves room for its continuation."""
    model, tokenizer = loaded
    style = _style(tokenizer, plan)
    if style == "sft" and plan.prompts and not tokenizer.chat_template:
        raise UserError(f"--prompt_format sft: the model {name} has no chat template; use text or auto")
    encoder = PromptEncoder(tokenizer, plan.windows.parse_special)
    encoded = [encoder.prompt(one, style) for one in plan.prompts]
    for number, ids in enumerate(encoded, start=1):
        check_room(len(ids), plan.max_new_tokens, context_length(model), f"--prompts, number {number}, to {name}")
    return encoded


def _continuations(
    loaded: tuple[Any, Any], identity: dict[str, str], encoded: list[list[int]], plan: Plan, store: ResultStore
) -> list[str]:
    """Greedy, so that they are the same on every run."""
    style = _style(loaded[1], plan)
    settings = {**identity, "prompts": list(plan.prompts), "format": style, "max_new_tokens": plan.max_new_tokens}
    known = store.load("continuations", settings)
    if known is not None:
        return known["texts"]
    sampling = SamplingSettings(max_new_tokens=plan.max_new_tokens, do_sample=False)
    texts = [generate(*loaded, ids, sampling) for ids in encoded]
    store.save("continuations", settings, {"texts": texts})
    return texts
