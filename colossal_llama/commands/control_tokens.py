"""Control tokens and a chat template for a base model's tokenizer: what init_tokenizer.py and init_model.py share."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from colossal_llama.config.vocabulary import ControlTokenFlags


def add_control_tokens(config: ControlTokenFlags, source: Path, flag: str, folder: Path) -> None:
    """Write the tokenizer of ``source`` with the tokens and the template of the flags, and say what was added.

    Raises:
        UserError: a token or the template will not do.
    """
    from colossal_llama.tokenizer.special_tokens import read_special_tokens, write_special_tokens

    tokens = list(config.special_tokens)
    if config.special_tokens_file is not None:
        tokens += read_special_tokens(Path(config.special_tokens_file))
    tokens += template_tokens(config.chat_template)
    added = write_special_tokens(source, flag, tokens, folder, partial(chat_settings, config.chat_template, flag))
    kept = [token for token in dict.fromkeys(tokens) if token not in added]
    print(f"special tokens added: {' '.join(added) or 'none'}; in the vocabulary already: {' '.join(kept) or 'none'}")


def template_tokens(name: str | None) -> list[str]:
    """The control tokens that a chat template needs besides the tokenizer's own bos and eos."""
    from colossal_llama.data.chat_templates import BOS, CHAT_TEMPLATES, EOS, ChatTemplate, Control

    template = None if name is None else CHAT_TEMPLATES.get(name)
    if not isinstance(template, ChatTemplate):
        return []
    parts = (*template.start, *template.system, *template.human, *template.assistant)
    return list(dict.fromkeys(one.token for one in parts if isinstance(one, Control) and one not in (BOS, EOS)))


def chat_settings(name: str | None, flag: str, tokenizer: Any) -> Any:
    """What the template asks of a tokenizer that has its control tokens, or None without a template."""
    from colossal_llama.data.chat_templates import CHAT_TEMPLATES
    from colossal_llama.tokenizer.special_tokens import ChatSettings

    if name is None:
        return None
    bound = CHAT_TEMPLATES.get(name).bind(tokenizer, name, flag)
    return ChatSettings(bound.jinja(), tokenizer.convert_ids_to_tokens(bound.end_token_id))
