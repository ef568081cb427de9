"""The benchmark's instruments: the clock, the count of what is sent, the trace of memory, and the figures."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from colossal_llama.benchmarking.bare_loop import BareLoop, run_bare
from colossal_llama.benchmarking.clock import OTHER, PhaseClock
from colossal_llama.benchmarking.collectives import COMMUNICATION, CollectiveMeter, wait_for
from colossal_llama.benchmarking.figures import RunFigures
from colossal_llama.benchmarking.memory_trace import mark, traced_memory
from colossal_llama.benchmarking.peers import PEERS
from colossal_llama.benchmarking.processes import contender_environment
from colossal_llama.benchmarking.recorder import StepRecorder
from colossal_llama.commands.benchmark import failure_of
from colossal_llama.config.benchmark import PEER_NAMES, BenchmarkConfig
from colossal_llama.config.cli import parse_config
from colossal_llama.errors import UserError


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def spend(self, seconds: float) -> None:
        self.seconds += seconds


def test_every_moment_is_charged_to_one_phase() -> None:
    hand = Hand()
    clock = PhaseClock(now=hand)
    clock.start()
    hand.spend(1)
    with clock.phase("backward"):
        hand.spend(2)
        with clock.phase(COMMUNICATION):
            hand.spend(4)
        hand.spend(8)
    clock.timed("forward", hand.spend)(16)
    assert clock.end_step() == {OTHER: 1, "backward": 10, COMMUNICATION: 4, "forward": 16}
    hand.spend(32)
    assert clock.end_step() == {OTHER: 32}


def test_the_clock_waits_for_the_device_at_every_change() -> None:
    waits: list[int] = []
    clock = PhaseClock(lambda: waits.append(1))
    with clock.phase("forward"):
        pass
    clock.end_step()
    assert len(waits) == 3


def test_waiting_for_rows_is_taken_out_of_what_is_left_and_the_sum_stays() -> None:
    hand = Hand()
    clock = PhaseClock(now=hand)
    recorder = StepRecorder(clock)
    with clock.phase("forward"):
        hand.spend(3)
    hand.spend(2)
    recorder.write(1, {"loss": 1.0, "seconds": 5.0, "loader_wait_seconds": 1.5})
    phases, seconds = recorder.taken().mean_phases()
    assert (phases["loader"], phases[OTHER], phases["forward"]) == (1.5, 0.5, 3)
    assert sum(phases.values()) == seconds == 5
    assert recorder.taken().losses == []


@pytest.fixture
def group(tmp_path: Any) -> Any:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_collectives_are_timed_counted_and_given_back(group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    original = dist.all_reduce
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 4)
    clock = PhaseClock()
    meter = CollectiveMeter(clock)
    tensor = torch.zeros(100)
    with meter.installed():
        work = dist.all_reduce(tensor, async_op=True)
        assert work.is_completed()
        dist.all_gather([torch.empty(100) for _ in range(1)], tensor)
        dist.barrier()
    assert dist.all_reduce is original
    assert meter.calls == {"all_reduce": 1, "all_gather": 1, "barrier": 1}
    # Four ranks: an all-reduce sends 2 * 3/4 of its 400 bytes, an all-gather its input three times.
    assert meter.sent_bytes == 600 + 1200
    assert set(clock.end_step()) == {OTHER, COMMUNICATION}


def test_sends_and_receives_are_not_waited_for() -> None:
    """Gloo would wait for ever when they are waited for again."""

    class Work:
        waits = 0

        def wait(self) -> None:
            self.waits += 1

    work, sent = Work(), Work()
    wait_for(work)
    wait_for([sent])
    wait_for(None)
    assert (work.waits, sent.waits) == (1, 0)


def test_the_trace_counts_what_tensors_take_and_gives_back() -> None:
    with traced_memory(True) as trace:
        kept = torch.ones(1000, 256)
        large = torch.ones(3000, 256)
        del large
        with mark("after"):
            pass
        kept.add_(1)
    assert trace.peak == 4000 * 256 * 4
    assert trace.at_marks == {"after": 1000 * 256 * 4}
    with traced_memory(False) as nothing:
        torch.ones(10)
    assert nothing.peak == 0


def test_figures_follow_from_steps_and_survive_json() -> None:
    figures = RunFigures(
        "bare_loop", [3.0, 2.0, 1.0], [1.0, 3.0], tokens_per_step=200, rows_per_step=2, devices=2, flops_per_token=1e9
    )
    assert figures.tokens_per_second == 100
    assert figures.rows_per_second == 1
    assert figures.tflops_per_device == pytest.approx(0.05)
    assert figures.mfu is None
    figures.peak_flops = 1e12
    assert figures.mfu == pytest.approx(0.05)
    assert RunFigures.from_dict(figures.as_dict()) == figures


def test_the_bare_loop_does_adams_update() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(5, 5)

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> dict[str, torch.Tensor]:
            return {"logits": self.table(input_ids)}

    torch.manual_seed(0)
    model = Model()
    expected = model.table.weight.detach().clone().requires_grad_()
    batches = [
        {"input_ids": torch.tensor([[0, 1, 2]]), "targets": torch.tensor([[1, 2, -100]])},
        {"input_ids": torch.tensor([[3, 4, 0]]), "targets": torch.tensor([[4, 0, -100]])},
    ]
    loop = BareLoop(model, torch.optim.SGD(model.parameters(), lr=1.0), "cpu", None, max_norm=100.0)
    losses, seconds = run_bare(loop, [batches])
    loss = torch.nn.functional.cross_entropy(expected[torch.tensor([0, 1, 3, 4])], torch.tensor([1, 2, 4, 0]))
    loss.backward()
    assert losses == [pytest.approx(loss.item())]
    assert len(seconds) == 1
    assert torch.allclose(model.table.weight, expected - expected.grad)


def test_contenders_meet_apart_from_each_other() -> None:
    launcher = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "1", "TORCHELASTIC_RESTART_COUNT": "0"}
    counts = [contender_environment(launcher, order)["TORCHELASTIC_RESTART_COUNT"] for order in range(3)]
    assert len(set(counts)) == 3
    alone = contender_environment({**launcher, "WORLD_SIZE": "1", "PYTHONPATH": "elsewhere"}, 0)
    assert not {"RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"} & set(alone)
    assert alone["PYTHONPATH"].endswith(":elsewhere")


def test_what_a_failed_contender_said_is_passed_on() -> None:
    assert failure_of("warning\nerror: --tp 3 does not fit\nnoise\n") == "error: --tp 3 does not fit"
    assert failure_of("Traceback\nRuntimeError: out of memory\n") == "RuntimeError: out of memory"
    assert failure_of("") == "ended without a word"


def test_contenders_are_the_registered_ones() -> None:
    assert sorted(PEERS.names()) == sorted(PEER_NAMES)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--compare", "deepspeed"), "--compare deepspeed: unknown"),
        (("--num_steps", "0"), "--num_steps must be at least 1"),
        (("--trace_memory", "--compare", "bare_loop"), "--trace_memory makes steps slow"),
        (("--compare", "bare_loop", "--mixed_precision", "fp16"), "--compare needs --mixed_precision bf16 or fp32"),
        (("--plugin", "ddp", "--tp", "2"), "--tp 2 needs --plugin 3d"),
    ],
)
def test_values_that_cannot_work_are_refused(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_config(BenchmarkConfig, flags, "")


def test_upstreams_short_flags_mean_the_same() -> None:
    short = parse_config(BenchmarkConfig, ["-c", "13b", "-p", "zero2", "-l", "64", "-b", "3", "-g", "-s", "9"], "")
    assert (short.model, short.plugin, short.max_length, short.micro_batch_size) == ("13b", "zero2", 64, 3)
    assert short.use_grad_checkpoint
    assert short.num_steps == 9
    assert parse_config(BenchmarkConfig, ["--compare", "bare_loop,hf_trainer"], "").compare == [
        "bare_loop", "hf_trainer",
    ]  # fmt: skip


@pytest.mark.parametrize("lazily", [False, True])
def test_lazy_initialisation_takes_no_memory_for_weights(lazily: bool) -> None:
    from transformers import LlamaConfig

    from colossal_llama.benchmarking.random_model import build_random_model
    from colossal_llama.distributed.lazy import lazy_initialisation
    from colossal_llama.planning.shapes import KNOWN_SHAPES, ModelShape

    sizes = KNOWN_SHAPES["tiny"] | {"vocab_size": 8192}
    context = lazy_initialisation("cpu") if lazily else None
    with traced_memory(True) as trace:
        model = build_random_model(LlamaConfig(**sizes), "fp32", "sdpa", 0, "cpu", context)
    weights = 4 * ModelShape.from_config(sizes, "tiny").parameters
    assert model.config.use_cache is False
    assert (trace.peak < weights / 10) if lazily else (trace.peak >= weights)
