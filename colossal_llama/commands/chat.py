"""``scripts/chat.py``: chat with a trained model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from colossal_llama.config.chat import ChatConfig
from colossal_llama.config.cli import parse_config
from colossal_llama.errors import UserError, run_command

if TYPE_CHECKING:
    from colossal_llama.chat.session import ChatSession

DESCRIPTION = "Chat with a trained model, on the terminal or in a browser."

MEMORY_ADVICE = "lower --max_new_tokens, give --dtype bf16, or take --device cpu"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command; returns the exit code."""
    return run_command(lambda: chat(parse_config(ChatConfig, argv, DESCRIPTION)), MEMORY_ADVICE)


def chat(config: ChatConfig) -> None:
    """Chat until the user leaves.

    Raises:
        UserError: the folder holds no model that chats, or the page cannot be served.
    """
    if not Path(config.model_path).is_dir():
        raise UserError(f"{config.model_path}: no such folder; give that of a model")
    if config.web:
        chat_in_browser(config)
    else:
        chat_on_terminal(config)


def chat_on_terminal(config: ChatConfig) -> None:
    """Read questions from the standard input."""
    from colossal_llama.chat.terminal import TerminalChat

    new_session = load_sessions(config)
    TerminalChat(new_session(), interactive=sys.stdin.isatty()).run()


def chat_in_browser(config: ChatConfig) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        UserError: Gradio is not installed, or the port cannot be had; both before the model is loaded.
    """
    from colossal_llama.chat.gradio_setup import prepare_gradio
    from colossal_llama.chat.server import is_local, open_port, serve, url_of

    prepare_gradio()
    listener = open_port(config.host, config.port)
    new_session = load_sessions(config)
    from colossal_llama.chat.rooms import Rooms
    from colossal_llama.chat.web import build_page

    rooms = Rooms(new_session)
    page = build_page(rooms, Path(config.model_path).resolve().name, new_session().settings, config.system)
    if not is_local(config.host):
        print("everyone who reaches this machine's network address can use the page", file=sys.stderr)
    print(f"chat at {url_of(config.host, listener)} (Ctrl-C ends it)", flush=True)
    try:
        serve(page, listener, config.host)
    finally:
        rooms.close()


def load_sessions(config: ChatConfig) -> Callable[[], ChatSession]:
    """Load the model, once, and return what makes a conversation with it.

    Raises:
        UserError: it cannot be loaded, or has no chat template.
    """
    import torch

    from colossal_llama.chat.session import ChatSession
    from colossal_llama.generation import PromptEncoder, SamplingSettings, choose_device, load_for_generation

    device = choose_device(config.device)
    model, tokenizer = load_for_generation(
        Path(config.model_path), device, "model_path", config.dtype, config.base_model_path
    )
    settings = SamplingSettings(config.max_new_tokens, config.do_sample, config.temperature, config.top_k, config.top_p)
    encoder = PromptEncoder(tokenizer, config.parse_special)
    ChatSession(model, tokenizer, settings, encoder=encoder)  # refuses a model that does not chat before it is shown
    torch.manual_seed(config.seed)
    dtype = str(model.dtype).removeprefix("torch.")
    print(f"{config.model_path} on {device} in {dtype}", file=sys.stderr, flush=True)
    return lambda: ChatSession(model, tokenizer, settings, config.system, encoder=encoder)
