"""Text generation with plain transformers; nothing of Colossal-AI is needed here."""

from colossal_llama.generation.batches import Continuation, generate, generate_batches
from colossal_llama.generation.loading import choose_device, load_for_generation
from colossal_llama.generation.prompts import (
    PRETRAINED_PROMPT_END,
    PromptEncoder,
    build_prompt,
    check_room,
    context_length,
)
from colossal_llama.generation.settings import SamplingSettings

__all__ = [
    "PRETRAINED_PROMPT_END",
    "Continuation",
    "PromptEncoder",
    "SamplingSettings",
    "build_prompt",
    "check_room",
    "choose_device",
    "context_length",
    "generate",
    "generate_batches",
    "load_for_generation",
]
