"""What a layout sends, how long its steps take, which layouts are suggested, and the command that says so."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from colossal_llama.commands import plan as command
from colossal_llama.commands.plan import build_cluster
from colossal_llama.config.cli import parse_config
from colossal_llama.config.plan import PlanConfig
from colossal_llama.config.train import TrainConfig
from colossal_llama.errors import UserError
from colossal_llama.metrics.flops import flops_per_token
from colossal_llama.planning.description import flags_of
from colossal_llama.planning.layouts import Model, Plan, make_plan, suggest
from colossal_llama.planning.shapes import KNOWN_SHAPES, find_model_config

N = 6_738_415_616
"""Parameters of Llama 2 7B."""
GIB = 2**30


def plan_of(*flags: str) -> Plan:
    config = parse_config(PlanConfig, ["-c", "7b", "-b", "1", *flags], "")
    return make_plan(Model.find(config.model, "--model"), config.train_config(), build_cluster(config), 72 * GIB)


def test_data_parallelism_sends_what_the_papers_say() -> None:
    share = 7 / 8
    assert plan_of("-p", "ddp").traffic.total == pytest.approx(2 * share * 4 * N)
    assert plan_of("-p", "zero2").traffic.total == pytest.approx(2 * share * 2 * N)
    assert plan_of("-p", "zero2", "--accumulation_steps", "4").traffic.total == pytest.approx(5 * share * 2 * N)
    assert plan_of("-p", "gemini").traffic.total == pytest.approx(3 * share * 2 * N)
    assert plan_of("-p", "3d", "--zero", "1").traffic.total == pytest.approx(3 * share * 2 * N)
    assert plan_of("-p", "ddp", "--gpus", "1").traffic.total == 0


def test_model_parallelism_sends_activations() -> None:
    stream = 4096 * 4096 * 2
    tensor = plan_of("-p", "3d", "--tp", "8", "--zero", "0").traffic
    assert tensor.data == 0
    assert tensor.tensor == (7 * 32 + 2) * 2 * 7 / 8 * stream
    again = plan_of("-p", "3d", "--tp", "8", "--zero", "0", "-g").traffic
    assert again.tensor == (9 * 32 + 2) * 2 * 7 / 8 * stream
    pipeline = plan_of("-p", "3d", "--pp", "8", "--zero", "0", "-b", "16").traffic
    assert pipeline.pipeline == 16 * 2 * stream
    sequence = plan_of("-p", "3d", "--sp", "8", "--enable_sequence_parallelism", "--sp_mode", "all_to_all").traffic
    assert sequence.sequence == 32 * 2 * 7 / 8 * (4 * stream / 8)


def test_the_time_of_a_step_follows_from_the_stated_speeds() -> None:
    flags = ("-p", "3d", "--pp", "8", "--zero", "0", "-b", "16", "--peak_tflops", "100", "--efficiency", "0.5")
    time = plan_of(*flags, "--node_bandwidth", "10").time
    flops = 16 * 4096 * flops_per_token(KNOWN_SHAPES["7b"], 4096)
    assert time.compute == pytest.approx(flops / (8 * 100e12 * 0.5))
    assert time.bubble == pytest.approx(time.compute * 7 / 16)
    assert time.communication == pytest.approx(16 * 2 * 4096 * 4096 * 2 / 10e9)
    assert plan_of(*flags, "-g").time.compute == pytest.approx(time.compute * 4 / 3)
    slow = plan_of(*flags, "--gpus_per_node", "4", "--network_bandwidth", "1").time
    assert slow.communication == pytest.approx(10 * time.communication)


def suggested(*flags: str) -> tuple[list[Plan], list[Plan]]:
    config = parse_config(PlanConfig, ["--suggest", *flags], "")
    model = Model.find(config.model, "--model")
    return suggest(model, config.train_config(), build_cluster(config), config.gpu_memory * 0.9 * GIB)


def test_suggestions_fit_and_the_fastest_is_first() -> None:
    fitting, too_large = suggested("-c", "70b", "--gpus", "64", "-b", "2", "-x")
    times = [plan.time.total for plan in fitting]
    assert times == sorted(times)
    assert len(fitting) > 10
    assert all(plan.fits for plan in fitting)
    assert not any(plan.fits for plan in too_large)
    assert {plan.time.tokens for plan in fitting} == {128 * 4096}
    assert "ddp" in {plan.settings.plugin for plan in too_large}  # 4 + 4 + 4 + 8 bytes a parameter
    for plan in fitting:
        assert 64 % (plan.settings.tp * plan.settings.pp * plan.settings.sp) == 0


def test_nothing_is_suggested_where_nothing_fits() -> None:
    fitting, too_large = suggested("-c", "70b", "--gpus", "2", "--gpu_memory", "24", "-b", "1")
    assert not fitting
    assert too_large


def test_suggested_flags_are_train_pys() -> None:
    fitting, _ = suggested("-c", "tiny", "--gpus", "4", "-b", "4", "-l", "64")
    for plan in fitting:
        config = parse_config(
            TrainConfig, ["--pretrained", "m", "--dataset", "d", *flags_of(plan.settings).split()], ""
        )
        for name in ("plugin", "tp", "pp", "sp", "micro_batch_size", "accumulation_steps", "use_grad_checkpoint"):
            assert getattr(config, name) == getattr(plan.settings, name)


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "plan.json"
    flags = ["-c", "70b", "--gpus", "64", "-p", "3d", "--tp", "8", "--pp", "2", "-b", "8", "-g", "--tokens", "1e11"]
    assert command.main([*flags, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "68,976,648,192 parameters" in printed
    assert "that tensors may take: fits" in printed
    assert "days" in printed
    (written,) = json.loads(output.read_text())["plans"]
    assert written["fits"]
    assert f"{written['needed_bytes'] / GIB:,.2f} GiB at the peak" in printed
    assert command.main([*flags, "--gpu_memory", "16"]) == 0
    assert "DOES NOT FIT" in capsys.readouterr().out
    assert command.main(["-c", "tiny", "-p", "3d", "--zero_cpu_offload", "--suggest", "--tokens", "1e11"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^   100,000,000,000 tokens with the fastest: [\d.]+ days$", printed, re.MULTILINE)


def test_every_flag_of_a_layout_is_named() -> None:
    assert flags_of(plan_of("-p", "3d", "--zero_cpu_offload", "-b", "2").settings) == (
        "--plugin 3d --zero 1 --zero_cpu_offload --micro_batch_size 2"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--gpus", "0"), "--gpus must be at least 1"),
        (("--output", f"{__file__}/plan.json"), f"--output: the folder {__file__}: is a file"),
        (("--efficiency", "2"), "--efficiency must lie above 0"),
        (("--gpu", "abacus"), "--gpu abacus: unknown; give --peak_tflops"),
        (("-c", "nothing"), "--model nothing: neither a known model"),
        (("-p", "3d", "--tp", "3"), "does not divide"),
        (("-p", "3d", "--tp", "16", "--gpus", "8"), "does not divide the 8 processes"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(
    flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_models_are_found_by_name_file_and_folder(tmp_path: Path) -> None:
    content: dict[str, Any] = KNOWN_SHAPES["tiny"] | {"vocab_size": 77}
    (tmp_path / "config.json").write_text(json.dumps(content))
    for name in (str(tmp_path), str(tmp_path / "config.json")):
        assert find_model_config(name, "--model")["vocab_size"] == 77
    assert find_model_config("7B", "--model") == KNOWN_SHAPES["7b"]
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        find_model_config(str(tmp_path), "--model")
