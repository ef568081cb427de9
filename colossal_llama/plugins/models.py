"""Which models a plugin and layout trains, and what their sizes must be: refused before anything is loaded.

Data parallelism, ZeRO and Gemini take every causal language model of transformers as it is. Plugin 3d rewrites the
model by Colossal-AI's policy for its architecture, where a fault may show as nothing but another loss.
:data:`POLICIES` holds the architectures whose policy is known to work; ``benchmarks/model_matrix.py`` measures that,
and complains about what is let through and does not work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from colossal_llama.errors import UserError
from colossal_llama.plugins.base import PluginOptions, PluginSpec


@dataclass(frozen=True)
class Policy:
    """What of an architecture's policy may be used.

    Attributes:
        tp, pp: tensor and pipeline parallelism; False where it fails or trains wrongly.
        sp: kinds of sequence parallelism that are measured to train rightly. Others are refused untried, because a
            lost causal mask or gradient raises nothing, and so are those that a policy drops with a warning (Mistral's,
            Falcon's, GPT-J's, OPT's).
        sp_with_pp: whether that holds inside a pipeline too.
        attention: implementation in transformers that the policy rewrites.
    """

    tp: bool = True
    pp: bool = True
    sp: tuple[str, ...] = ()
    sp_with_pp: bool = False
    attention: str = "sdpa"

    def refused(self, options: PluginOptions) -> str:
        """The flag that this policy cannot follow, or an empty string."""
        if options.tp > 1 and not self.tp:
            return f"--tp {options.tp}"
        if options.pp > 1 and not self.pp:
            return f"--pp {options.pp}"
        if options.sp_mode is not None and options.sp_mode not in self.sp:
            return f"--sp_mode {options.sp_mode}"
        if options.sp_mode is not None and options.pp > 1 and not self.sp_with_pp:
            return f"--pp {options.pp} with --sp_mode {options.sp_mode}"
        return ""


POLICIES: dict[str, Policy] = {
    "llama": Policy(sp=("split_gather", "ring", "all_to_all"), sp_with_pp=True),
    "mistral": Policy(),
    "mixtral": Policy(),
    "qwen2": Policy(sp=("split_gather", "ring")),
    "falcon": Policy(pp=False),
    "bloom": Policy(),
    "opt": Policy(pp=False, attention="eager"),
    "gptj": Policy(pp=False),
}
"""By ``model_type``; for transformers 4.51.3 and Colossal-AI 0.5.0.

Colossal-AI has policies of more architectures: Command-R's and GPT-2's need flash attention."""

LEARNED_POSITIONS = frozenset({"gpt2", "gptj", "gpt_neo", "gpt_bigcode", "codegen", "opt", "biogpt", "xglm"})
"""Architectures with a table of positions: a longer row has no position, where rotary ones have."""


def read_architecture(pretrained: str, model_config: dict[str, Any]) -> Any:
    """The configuration with its architecture's defaults and names (``n_head`` is ``num_attention_heads`` too).

    Args:
        pretrained: folder, for messages.
        model_config: content of its ``config.json``.

    Returns:
        transformers' configuration object.

    Raises:
        UserError: transformers has no such causal language model of its own, or the content makes no sense to it.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    model_type = model_config["model_type"]
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(
            f"--pretrained {pretrained}: transformers has no causal language model of type {model_type!r} of its own, "
            "and code from a model's folder is not run; convert it to a known architecture, such as llama"
        )
    try:
        return AutoConfig.for_model(**model_config)
    except Exception as error:  # TypeError, ValueError, KeyError, by what is wrong
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--pretrained {pretrained}: config.json is not usable ({reason})") from error


def check_model(
    plugin: str, spec: PluginSpec, options: PluginOptions, pretrained: str, architecture: Any, max_length: int
) -> None:
    """Refuse a model that the plugin cannot train in this layout, or would train wrongly.

    Args:
        plugin: its name.
        spec, options: the plugin and what it is built from.
        pretrained: the model's folder, for messages.
        architecture: of :func:`read_architecture`.
        max_length: tokens of the longest row.

    Raises:
        UserError: says what to use instead.
    """
    positions = getattr(architecture, "max_position_embeddings", None)
    if architecture.model_type in LEARNED_POSITIONS and positions is not None and max_length > positions:
        raise UserError(
            f"--max_length {max_length} exceeds the {positions} positions that --pretrained {pretrained} has learned; "
            "lower it, and prepare the data with that"
        )
    _refuse_architecture(plugin, spec, architecture.model_type)
    if spec.rewrites_model:
        _check_policy(plugin, options, architecture.model_type)
        _check_sizes(options, pretrained, architecture)


def attention_for(spec: PluginSpec, options: PluginOptions, model_type: str) -> str:
    """The attention implementation that a model is built with: ``sdpa``, ``eager`` or ``flash_attention_2``.

    Eager attention makes its causal mask itself; see distributed.upstream_fixes on sequence parallelism.
    """
    if options.flash_attention and not spec.shards_attention:
        return "flash_attention_2"
    if options.sp_mode:
        return "eager"
    return POLICIES.get(model_type, Policy()).attention if spec.rewrites_model else "sdpa"


def _refuse_architecture(plugin: str, spec: PluginSpec, model_type: str) -> None:
    if model_type in spec.cannot_train:
        raise UserError(
            f"--plugin {plugin} does not work with models of type {model_type}: Colossal-AI 0.5.0 fails at their "
            "gradients; use zero2, zero2_cpu or ddp"
        )


def _check_policy(plugin: str, options: PluginOptions, model_type: str) -> None:
    policy = POLICIES.get(model_type)
    if policy is None:
        raise UserError(
            f"--plugin {plugin} does not work with models of type {model_type}: Colossal-AI 0.5.0 has no policy that "
            "trains them rightly; use zero2, zero2_cpu, gemini, gemini_auto or ddp"
        )
    refused = policy.refused(options)
    if refused:
        raise UserError(
            f"{refused} does not work with models of type {model_type}: Colossal-AI 0.5.0 is not known to train them "
            "rightly there; see the table of models in docs/plugins.md, or use zero2 or gemini"
        )


def _check_sizes(options: PluginOptions, pretrained: str, architecture: Any) -> None:
    heads = architecture.num_attention_heads
    kv_heads = (
        getattr(architecture, "num_key_value_heads", None) or getattr(architecture, "num_kv_heads", None) or heads
    )
    for name, size in (("--tp", options.tp), ("--sp", options.sp)):
        if heads % size or kv_heads % size:
            raise UserError(
                f"{name} {size} does not divide the model's {heads} attention heads and {kv_heads} key/value heads"
            )
    if architecture.vocab_size % options.tp:
        raise UserError(
            f"--tp {options.tp} does not divide the vocabulary of {architecture.vocab_size}, and Colossal-AI cannot "
            f"save padded vocabularies; pad {pretrained} with init_model.py --pad_to_multiple_of 64"
        )
    if options.pp > architecture.num_hidden_layers:
        raise UserError(f"--pp {options.pp} exceeds the model's {architecture.num_hidden_layers} layers")


def _key_value_heads(architecture: Any) -> int:
    # Falcon says "one" with a flag, and its policy then ignores --tp.
    if getattr(architecture, "multi_query", False) and not getattr(architecture, "new_decoder_architecture", False):
        return 1
    names = ("num_key_value_heads", "num_kv_heads", "num_attention_heads")
    return next(number for name in names if (number := getattr(architecture, name, None)))
