"""The CPU accelerator: its Adam, clipping of bf16 gradients, and that it stays away from machines with a GPU.

Installing it changes torch and colossalai for the rest of a process, so each test has a process of its own.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from colossal_llama.distributed import host

ROOT = Path(__file__).resolve().parents[2]


def in_own_process(body: str) -> Any:
    """Run Python code; what it assigns to ``result`` comes back through JSON."""
    code = f"{body}\nimport json\nprint('RESULT' + json.dumps(result))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.rsplit("RESULT", 1)[1])


ADAM = """
import torch
from colossal_llama.distributed import host
host.install_host_accelerator()
host.install_host_accelerator()
from colossalai.nn.optimizer import CPUAdam, HybridAdam

SETTINGS = dict(lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)


def run(make, scale=None, steps=5):
    generator = torch.Generator().manual_seed(0)
    param = torch.nn.Parameter(torch.randn(7, 5, generator=generator))
    optimizer = make([param])
    for _ in range(steps):
        param.grad = torch.randn(7, 5, generator=generator)
        if scale is None:
            optimizer.step()
        else:
            param.grad *= scale
            optimizer.step(div_scale=scale)
    return param.detach()


def distance(ours, theirs, scale=None):
    return (run(ours, scale) - run(theirs)).abs().max().item()


decoupled = lambda params: torch.optim.AdamW(params, **SETTINGS)
coupled = lambda params: torch.optim.Adam(params, **SETTINGS)
result = {
    "hybrid": distance(lambda params: HybridAdam(params, adamw_mode=True, **SETTINGS), decoupled),
    "cpu": distance(lambda params: CPUAdam(params, adamw_mode=True, **SETTINGS), decoupled),
    "coupled": distance(lambda params: HybridAdam(params, adamw_mode=False, **SETTINGS), coupled),
    "scaled": distance(lambda params: HybridAdam(params, adamw_mode=True, **SETTINGS), decoupled, scale=8.0),
    "decay_matters": distance(coupled, decoupled),
}
"""


def test_adam_on_the_host_is_pytorchs() -> None:
    distances = in_own_process(ADAM)
    assert distances.pop("decay_matters") > 1e-3
    assert max(distances.values()) <= 1e-6, distances


CLIPPING = """
import torch
from colossal_llama.distributed import host, upstream_fixes
host.install_host_accelerator()
if {with_remedy}:
    upstream_fixes.apply()
from colossalai.nn.optimizer import CPUAdam, HybridAdam

result = {{}}
for optimizer_class in (CPUAdam, HybridAdam):
    param = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = optimizer_class([param], betas=(0.5, 0.95))
    param.grad = torch.full((4,), 8.0, dtype=torch.bfloat16)
    optimizer.step(div_scale=4.0)
    result[optimizer_class.__name__] = optimizer.state[param]["exp_avg"].float().tolist()
"""


@pytest.mark.parametrize(("with_remedy", "momentum"), [(True, 1.0), (False, 4.0)])
def test_bf16_gradients_are_divided_by_the_clipping_factor(with_remedy: bool, momentum: float) -> None:
    # The first momentum is (1 - beta1) * gradient: 0.5 * 8 / 4 where the factor counts, 0.5 * 8 where it does not.
    moments = in_own_process(CLIPPING.format(with_remedy=with_remedy))
    assert moments == {"CPUAdam": [momentum] * 4, "HybridAdam": [momentum] * 4}


LAUNCH = """
import torch, torch.distributed as dist
from colossal_llama.distributed import host, launch, upstream_fixes

calls = []
torch.cuda.is_available = lambda: {has_gpu}
torch.cuda.current_device = lambda: 0
host.install_host_accelerator = lambda: calls.append("host accelerator")
upstream_fixes.apply = lambda: calls.append("remedies")
import colossalai
colossalai.launch_from_torch = lambda backend, seed, verbose: calls.append(backend)
dist.get_rank, dist.get_world_size = (lambda: 0), (lambda: 1)
result = [*calls, launch.launch(seed=1).device, *calls]
"""


@pytest.mark.parametrize(
    ("has_gpu", "expected"),
    [(True, ["cuda:0", "remedies", "nccl"]), (False, ["cpu", "host accelerator", "remedies", "gloo"])],
)
def test_host_accelerator_is_installed_only_without_a_gpu(has_gpu: bool, expected: list[str]) -> None:
    assert in_own_process(LAUNCH.format(has_gpu=has_gpu)) == expected


@pytest.mark.parametrize("has_gpu", [True, False])
def test_a_gpu_decides(has_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert host.is_host_only() is not has_gpu


def test_every_override_names_the_upstream_file() -> None:
    for override in host.OVERRIDES:
        assert override.__doc__
        assert ".py" in override.__doc__ or "torch 2.5" in override.__doc__, override.__name__
