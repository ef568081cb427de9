"""Text generation with plain transformers; nothing of Colossal-AI is needed here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossal_llama.errors import UserError

PRETRAINED_PROMPT_END = "\n\n->\n\n"
"""Upstream's separator between a prompt and what a pretrained model writes after it."""


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: longest continuation.
        do_sample: sample; otherwise take the likeliest token, and the other settings mean nothing.
        temperature, top_k, top_p: the usual sampling settings.
    """

    max_new_tokens: int = 512
    do_sample: bool = True
    temperature: float = 0.3
    top_k: int = 50
    top_p: float = 0.95

    def as_arguments(self) -> dict[str, Any]:
        """Arguments of ``model.generate``; sampling settings only where they are used."""
        arguments: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "do_sample": self.do_sample}
        if self.do_sample:
            return arguments | {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return arguments | {"temperature": None, "top_k": None, "top_p": None}


def choose_device(wanted: str) -> str:
    """``wanted``, or the CPU where the machine has no such GPU."""
    import torch

    if wanted.startswith("cuda") and not torch.cuda.is_available():
        return "cpu"
    return wanted


def load_for_generation(folder: Path, device: str, flag: str = "--model_path") -> tuple[Any, Any]:
    """Model (bf16 on a GPU, as stored in fp32 on a CPU) and tokenizer of a Hugging Face folder.

    Raises:
        UserError: the folder holds no loadable model or tokenizer.
    """
    from colossal_llama.model.loader import load_model
    from colossal_llama.tokenizer.loading import load_tokenizer

    tokenizer = load_tokenizer(folder, flag)
    model = load_model(folder, flag, "fp32" if device == "cpu" else "bf16", "sdpa")
    model.config.use_cache = True
    return model.to(device).eval(), tokenizer


def build_prompt(tokenizer: Any, text: str, prompt_style: str) -> list[int]:
    """Token ids of the prompt.

    Args:
        tokenizer: for ``sft`` one with a chat template.
        text: the question or the beginning.
        prompt_style: ``sft`` puts the text into the chat template as the user's message; ``pretrained`` puts the
            beginning-of-sequence token before it and :data:`PRETRAINED_PROMPT_END` behind; ``text`` only the former.

    Raises:
        UserError: ``sft`` with a tokenizer without chat template.
    """
    if prompt_style == "sft":
        if not tokenizer.chat_template:
            raise UserError(
                "--prompt_style sft: the model has no chat template, it was not fine-tuned on conversations; use "
                "--prompt_style pretrained"
            )
        messages = [{"role": "user", "content": text}]
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    ending = PRETRAINED_PROMPT_END if prompt_style == "pretrained" else ""
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return start + tokenizer(text + ending, add_special_tokens=False)["input_ids"]


def generate(model: Any, tokenizer: Any, prompt: list[int], settings: SamplingSettings, seed: int = 42) -> str:
    """The continuation of ``prompt`` as text, without special tokens; the same for the same seed."""
    import torch

    torch.manual_seed(seed)
    input_ids = torch.tensor([prompt], device=model.device)
    with torch.inference_mode():
        output = model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            pad_token_id=tokenizer.eos_token_id,
            eos_token_id=sorted(_end_tokens(model, tokenizer)),
            **settings.as_arguments(),
        )
    return tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True)


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Ids that end an answer: the tokenizer's, and those the model's generation configuration names."""
    configured = model.generation_config.eos_token_id
    ids = set(configured if isinstance(configured, list) else [configured])
    return (ids | {tokenizer.eos_token_id}) - {None}
