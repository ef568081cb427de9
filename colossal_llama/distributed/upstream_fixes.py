"""Wrong results of colossalai 0.5.0 that nothing reports, and their remedies. They hit GPUs and CPUs alike.

Remedies that are an override stand here, one function each, with the upstream location; :func:`apply` installs
them once per process. The others need no override, because the code is arranged so that the fault cannot
happen; they are listed here so that all are in one place:

=============================================================  ==============================================
fault (file of colossalai 0.5.0)                               remedy
=============================================================  ==============================================
sequence parallelism without a causal mask: the replaced       ``plugins.hybrid``: models are built with
attention drops SDPA's implicit causality                      ``attn_implementation="eager"``
(shardformer/modeling/llama.py, attention forward)
RoPE frequencies cast to bf16 with the weights (every          ``model.rope.restore_rope_precision`` after
wrapper's ``module.to(dtype)``)                                ``boost``
fp32 master weights missing from checkpoints                   ``checkpoint.masters``
(zero, hybrid and sharded Gemini checkpoint IO)
Gemini's optimizer checkpoints have step counts as fp32        ``checkpoint.optimizer_state`` writes all states
tensors, other plugins' as integers, and each refuses the      in pieces
other's (zero/gemini/gemini_optimizer.py, ``cast``)
vocabulary not a multiple of 64: cannot be saved               ``plugins.hybrid``: no padding is asked for;
(tensor/padded_tensor/api.py:47, checkpoint_io/utils.py:128)   a vocabulary that tp does not divide is refused
no barrier after saving (checkpoint_io)                        ``checkpoint.manager`` ends each phase with one
a rank that cannot write leaves the others waiting in a        ``checkpoint.file_writer`` keeps the error until
gather (checkpoint_io, ``save_state_dict_shards``)             all ranks are out of it
gradients of shared (tied) parameters summed again at every    ``plugins.steps.PipelineStep``: all micro-batches
``execute_pipeline`` of an accumulation                        of a step go through one pipeline call
(hybrid_parallel_plugin.py, ``sync_shared_params``)
pipeline stages keep the shapes of the first step when rows    ``plugins.steps.PipelineStep``: shapes are announced
become longer or shorter (one_f_one_b.py, ``load_batch``)      anew when the length changes
loss rounded to bf16 without tensor parallelism                ``plugins.loss``: cross entropy in fp32
=============================================================  ==============================================
"""

from __future__ import annotations

from typing import Any

_applied = False


def apply() -> None:
    """Install the overrides below; does nothing the second time."""
    global _applied
    if _applied:
        return
    _fix_ring_gather()
    _fix_gemini_accumulation()
    _fix_gemini_accumulation_after_overflow()
    _fix_accumulation_of_split_sequences()
    _fix_adam_clipping_of_bf16_gradients()
    _fix_gradient_norm_of_empty_stage()
    _fix_safetensors_of_tied_weights()
    _fix_padding_of_layers_that_peft_wraps()
    _fix_unwrapping_of_nested_wrappers()
    _applied = True


def _fix_ring_gather() -> None:
    """shardformer/layer/_operation.py:470: ``sp_mode ring`` keeps its own input twice instead of the received
    one, so the weight gradients of all column-parallel linears are wrong.

    Replaced by one all-gather, which computes what the ring was meant to.
    """
    import torch
    import torch.distributed as dist
    from colossalai.shardformer.layer import _operation

    def ring_as_gather(
        func: Any,
        input_to_gather: dict[str, torch.Tensor],
        input_local: dict[str, torch.Tensor],
        process_group: Any = None,
        gather_dim: int = 1,
        keep_item: bool = False,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        shards: dict[str, list[torch.Tensor]] = {}
        for name, mine in input_to_gather.items():
            shards[name] = [torch.empty_like(mine) for _ in range(dist.get_world_size(process_group))]
            dist.all_gather(shards[name], mine.contiguous(), group=process_group)
        outputs = [
            func(**dict(zip(shards, parts, strict=True)), **input_local) for parts in zip(*shards.values(), strict=True)
        ]
        gathered = {name: torch.cat(parts, dim=gather_dim) for name, parts in shards.items()}
        return torch.cat(outputs, dim=gather_dim), gathered

    _operation._ring_as_gather = ring_as_gather


def _fix_gemini_accumulation() -> None:
    """zero/gemini/chunk/manager.py:290: with chunks that stay gathered (small models) the gradients of earlier
    micro-batches are multiplied by the world size on every rank and then summed over ranks: counted world-size
    times too often. Dividing before the multiplication leaves each counted once.
    """
    from colossalai.zero.gemini.chunk.manager import ChunkManager

    rearrange = ChunkManager.rearrange_accumulated_grad_chunk

    def rearrange_once(self: Any, chunk: Any) -> Any:
        if chunk.grad_chunk is not None and chunk.grad_chunk.is_gathered:
            chunk.grad_chunk.cuda_global_chunk.div_(chunk.pg_size)
        return rearrange(self, chunk)

    ChunkManager.rearrange_accumulated_grad_chunk = rearrange_once


def _fix_gemini_accumulation_after_overflow() -> None:
    """zero/gemini/gemini_optimizer.py:275: a step that the fp16 loss scaler leaves out stays open: the next one adds
    its gradients to the infinite ones, is left out as well, and so are all that follow, until the end of the run.

    Gradients are no longer accumulated once they are zero.
    """
    from colossalai.zero.gemini.gemini_optimizer import GeminiOptimizer

    zero_grad = GeminiOptimizer.zero_grad

    def zero_grad_and_close(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.module.chunk_manager.accumulating_grads = False
        return zero_grad(self, *args, **kwargs)

    GeminiOptimizer.zero_grad = zero_grad_and_close


def _fix_accumulation_of_split_sequences() -> None:
    """booster/plugin/hybrid_parallel_plugin.py:324, :552 and :810: with ``split_gather`` and ``ring`` the gradients of
    norms, which each rank has for its part of the sequence, are summed over the tensor parallel ranks after every
    backward pass. What earlier micro-batches have left there is whole already, and is counted once for each rank.

    Dividing it before the next backward pass leaves each counted once.
    """
    import torch.distributed as dist
    from colossalai.booster.plugin import hybrid_parallel_plugin as hybrid
    from colossalai.shardformer.layer.utils import SeqParallelUtils

    def gradients_of_parameters(optimizer: Any) -> list[tuple[Any, Any]]:
        if not optimizer.model.require_grad_sync:  # a pipeline sums once, when all its micro-batches are through
            return []
        return [(param, param.grad) for param in optimizer.model.parameters() if param.grad is not None]

    def gradients_of_stores(optimizer: Any) -> list[tuple[Any, Any]]:
        if not optimizer.require_grad_sync:
            return []
        params = {id(param): param for param in optimizer.model.parameters()}
        groups = range(optimizer.num_param_groups)
        grads = [grad for group in groups for grad in optimizer.get_working_grads_by_group_id(group)]
        return [(params[optimizer.get_param_id_for_grad(grad)], grad) for grad in grads]

    def dividing(backward: Any, gradients: Any) -> Any:
        def divide_and_go_backward(self: Any, *args: Any, **kwargs: Any) -> Any:
            config = self.model.shard_config
            if config.enable_sequence_parallelism and config.sequence_parallelism_mode in ("split_gather", "ring"):
                size = dist.get_world_size(self.tp_pg)
                for param, grad in gradients(self):
                    if SeqParallelUtils.is_sp_partial_derived_param(param):
                        grad.data.div_(size)
            return backward(self, *args, **kwargs)

        return divide_and_go_backward

    for optimizer_class in (hybrid.HybridParallelNaiveOptimizer, hybrid.HybridParallelAMPOptimizer):
        optimizer_class.backward = dividing(optimizer_class.backward, gradients_of_parameters)
    zero_class = hybrid.HybridParallelZeroOptimizer
    zero_class.backward = dividing(zero_class.backward, gradients_of_stores)


def _fix_adam_clipping_of_bf16_gradients() -> None:
    """nn/optimizer/hybrid_adam.py:125 and cpu_adam.py:150: bf16 gradients on the CPU take a path that ignores
    ``div_scale``, so an offloaded Gemini never clips. The gradients are divided before that path sees them.
    """
    import torch
    from colossalai.nn.optimizer.cpu_adam import CPUAdam
    from colossalai.nn.optimizer.hybrid_adam import HybridAdam

    def with_clipping(step: Any) -> Any:
        def step_with_clipping(self: Any, closure: Any = None, div_scale: float = -1) -> Any:
            if div_scale > 0:
                for group in self.param_groups:
                    for param in group["params"]:
                        grad = param.grad
                        if grad is not None and grad.dtype is torch.bfloat16 and param.device.type == "cpu":
                            grad.data.div_(div_scale)
            return step(self, closure, div_scale)

        return step_with_clipping

    for optimizer_class in (CPUAdam, HybridAdam):
        optimizer_class.step = with_clipping(optimizer_class.step)


def _fix_gradient_norm_of_empty_stage() -> None:
    """booster/plugin/hybrid_parallel_plugin.py:394, :596 and :855: a pipeline stage without trainable
    parameters returns before the all-reduce of the gradient norm, in which the other stages wait for ever.

    Such a stage now contributes a zero to the same reductions.
    """
    import torch
    import torch.distributed as dist
    from colossalai.accelerator import get_accelerator
    from colossalai.booster.plugin import hybrid_parallel_plugin as hybrid

    def join_norm_reduction(groups: list[Any]) -> float:
        total = torch.zeros(1, dtype=torch.float32, device=get_accelerator().get_current_device())
        for group in groups:
            if group is not None and dist.get_world_size(group) > 1:
                dist.all_reduce(total, group=group)
        return total.item() ** 0.5

    def has_pipeline(optimizer: Any) -> bool:
        return optimizer.pp_pg is not None and dist.get_world_size(optimizer.pp_pg) > 1

    def joining(compute: Any) -> Any:
        def compute_grad_norm(self: Any, param_gradient_pairs: list, norm_type: int = 2) -> Any:
            if not param_gradient_pairs and has_pipeline(self):
                return join_norm_reduction([self.tp_pg, self.pp_pg])
            return compute(self, param_gradient_pairs, norm_type)

        return compute_grad_norm

    def joining_zero(compute: Any) -> Any:
        def compute_grad_norm(self: Any, dp_pg: Any, gradients: list, norm_type: int = 2) -> Any:
            if not gradients and has_pipeline(self):
                return join_norm_reduction([dp_pg, self.tp_pg, self.pp_pg])
            return compute(self, dp_pg, gradients, norm_type)

        return compute_grad_norm

    for optimizer_class in (hybrid.HybridParallelAMPOptimizer, hybrid.HybridParallelNaiveOptimizer):
        optimizer_class._compute_grad_norm = joining(optimizer_class._compute_grad_norm)
    zero_class = hybrid.HybridParallelZeroOptimizer
    zero_class._compute_grad_norm = joining_zero(zero_class._compute_grad_norm)


def _fix_safetensors_of_tied_weights() -> None:
    """checkpoint_io/utils.py:490: tied embeddings share memory, which safetensors refuses to write.

    Each name gets its own copy in the file, as the index beside it announces.
    """
    import torch
    from colossalai.checkpoint_io import utils

    save = utils.save_state_dict

    def save_without_aliases(state_dict: dict, checkpoint_file_path: str, use_safetensors: bool) -> None:
        if use_safetensors:
            seen: set[int] = set()
            state_dict = dict(state_dict)
            for name, tensor in state_dict.items():
                if isinstance(tensor, torch.Tensor) and tensor.data_ptr() in seen:
                    state_dict[name] = tensor.detach().clone()
                elif isinstance(tensor, torch.Tensor):
                    seen.add(tensor.data_ptr())
        save(state_dict, checkpoint_file_path, use_safetensors)

    utils.save_state_dict = save_without_aliases


def _fix_padding_of_layers_that_peft_wraps() -> None:
    """shardformer/layer/linear.py:655 and embedding.py:223: without tensor parallelism, plugin ``3d`` replaces the
    output embedding, and a tied input embedding, by layers that pad the vocabulary. They read the sizes off the layer,
    which peft's wrapper around a layer that is trained beside adapters does not have.

    Wrapped layers are kept as they are, because no padding is asked for.
    """
    from colossalai.shardformer.layer import PaddingEmbedding, PaddingLMHead
    from peft.utils import ModulesToSaveWrapper

    def keeping(convert: Any) -> Any:
        def from_native_module(module: Any, *args: Any, **kwargs: Any) -> Any:
            return module if isinstance(module, ModulesToSaveWrapper) else convert(module, *args, **kwargs)

        return staticmethod(from_native_module)

    for layer_class in (PaddingEmbedding, PaddingLMHead):
        layer_class.from_native_module = keeping(layer_class.from_native_module)


def _fix_unwrapping_of_nested_wrappers() -> None:
    """interface/model.py:107: a wrapper around a wrapper does not pass ``unwrap_peft`` on. Torch's AMP around DDP (ddp
    with fp16) then gives Colossal-AI's own view of a peft model, which ``save_lora_as_pretrained`` refuses.
    """
    from colossalai.interface import ModelWrapper

    unwrap = ModelWrapper.unwrap

    def unwrap_all(self: Any, unwrap_peft: bool = True) -> Any:
        if isinstance(self.module, ModelWrapper):
            return self.module.unwrap(unwrap_peft)
        return unwrap(self, unwrap_peft)

    ModelWrapper.unwrap = unwrap_all
