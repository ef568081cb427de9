"""How the next token is chosen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: longest continuation.
        do_sample: sample; otherwise take the likeliest token, and the next three settings mean nothing.
        temperature, top_k, top_p: the usual sampling settings; ``top_k`` 0 means no limit.
        num_beams: sequences that a beam search keeps; 1 for none.
    """

    max_new_tokens: int = 512
    do_sample: bool = True
    temperature: float = 0.3
    top_k: int = 50
    top_p: float = 0.95
    num_beams: int = 1

    def as_arguments(self) -> dict[str, Any]:
        """Arguments of ``model.generate``; sampling settings only where they are used."""
        arguments: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": self.do_sample,
            "num_beams": self.num_beams,
        }
        if self.do_sample:
            # transformers refuses a temperature that is an integer, as a web page's 2.0 is.
            return arguments | {"temperature": float(self.temperature), "top_k": self.top_k, "top_p": self.top_p}
        # None overrides what the model's own generation configuration says.
        return arguments | {"temperature": None, "top_k": None, "top_p": None}

    def limited(self, max_new_tokens: int) -> SamplingSettings:
        """The same settings with at most this many new tokens."""
        return replace(self, max_new_tokens=min(self.max_new_tokens, max_new_tokens))
