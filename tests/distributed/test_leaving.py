"""Ending a process whose collectives still run."""

import subprocess
import sys

BUSY = """
import sys
import torch, torch.distributed as dist
from colossal_llama.distributed.launch import leave

dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
sys.setswitchinterval(60)  # the other threads wait long for the interpreter
for _ in range(20_000):
    dist.all_reduce(torch.ones(3_000), async_op=True)
print("the last word")
leave(7)
"""


def test_a_process_leaves_with_its_code_whatever_gloo_still_holds(tmp_path):
    """Ended as usual, every third of these processes aborts (code -6)."""
    done = subprocess.run([sys.executable, "-c", BUSY, str(tmp_path / "store")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (7, "the last word\n"), done.stderr
