"""What has to happen before Gradio is imported."""

from __future__ import annotations

import importlib.util
import os
import warnings

from colossal_llama.errors import UserError


def prepare_gradio() -> None:
    """Switch off what Gradio reports to its makers, and its warnings about its own use of other libraries.

    Raises:
        UserError: Gradio is not installed; says how to install it.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError("--web needs Gradio; run: pip install '.[chat]'")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.filterwarnings("ignore", module=r"gradio\..*")
