"""Recipes: what is read, what is refused and by which words, and what a dry run says of those in recipes/."""

import dataclasses
import json
import re
import shlex
import socket
from pathlib import Path

import pytest

from colossal_llama.commands.run_stages import main, run_stages
from colossal_llama.config.cli import parse_config
from colossal_llama.config.recipe import RunStagesConfig, read_recipe, train_flags
from colossal_llama.config.train import TrainConfig
from colossal_llama.config.workload import MODEL_NAMES
from colossal_llama.errors import UserError
from colossal_llama.planning.shapes import KNOWN_SHAPES
from colossal_llama.stages.hosts import check_reachable, parse_hosts, read_hostfile, ssh_address
from colossal_llama.stages.launcher import Launcher
from colossal_llama.stages.plan import make_plan

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))

GOOD = """\
pretrained: base
output_dir: out
launcher: {nproc_per_node: 4}
defaults: {plugin: zero2, lr: 2e-4}
stages:
  - {name: one, dataset: [a, b], freeze_non_embeds_params: true, lr: 1e-3}
  - {name: two, dataset: a, max_length: 8}
"""


def recipe_with(tmp_path: Path, old: str = "", new: str = "") -> Path:
    assert old in GOOD
    file = tmp_path / "plan.yaml"
    file.write_text(GOOD.replace(old, new, 1) if old else GOOD)
    return file


def test_stages_are_chained_and_resolved(tmp_path: Path) -> None:
    one, two = read_recipe(recipe_with(tmp_path)).stages
    assert (one.settings.lr, two.settings.lr, two.settings.plugin) == (1e-3, 2e-4, "zero2")
    assert one.settings.load_checkpoint is None
    assert two.settings.load_checkpoint == "out/one/modeling"
    assert (two.settings.save_dir, two.settings.tensorboard_dir) == ("out/two", "out/two/logs")


def test_the_command_line_gives_the_settings_back(tmp_path: Path) -> None:
    for stage in read_recipe(recipe_with(tmp_path)).stages:
        flags = train_flags(stage, resume=False)
        assert parse_config(TrainConfig, flags, "") == stage.settings
    one, two = read_recipe(recipe_with(tmp_path)).stages
    resumed = parse_config(TrainConfig, train_flags(two, resume=True), "")
    assert (resumed.load_checkpoint, resumed.initial_weights) == ("auto", "out/one/modeling")
    resumed = parse_config(TrainConfig, train_flags(one, resume=True), "")
    assert (resumed.load_checkpoint, resumed.initial_weights) == ("auto", None)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("pretrained", "pretraned", ("unknown key 'pretraned'", "did you mean pretrained")),
        ("output_dir: out\n", "", ("missing key 'output_dir'",)),
        ("nproc_per_node", "nproc_per_nod", ("launcher: unknown key 'nproc_per_nod'", "did you mean nproc_per_node")),
        ("nproc_per_node: 4", "nproc_per_node: 0", ("launcher: nproc_per_node must be at least 1",)),
        ("nproc_per_node: 4", "nproc_per_node: 4, num_nodes: 2", ("launcher: num_nodes is 2", "hostfile")),
        ("nproc_per_node: 4", "hostfile: h, host: a", ("launcher: give hostfile or host",)),
        ("plugin: zero2", "plugn: zero2", ("defaults: unknown key 'plugn'", "did you mean plugin")),
        ("plugin: zero2", "save_dir: x", ("defaults: save_dir follows from the recipe",)),
        ("plugin: zero2", "name: x", ("defaults: name belongs to a stage",)),
        ("max_length: 8", "max_lenght: 8", ("stage two: unknown key 'max_lenght'", "did you mean max_length")),
        ("max_length: 8", "max_length: 1", ("stage two: --max_length must be at least 2",)),
        ("max_length: 8", "max_length: long", ("stage two: max_length must be int",)),
        ("max_length: 8", "load_checkpoint: x", ("stage two: load_checkpoint follows from the recipe",)),
        ("max_length: 8", "expected_tokens: 0", ("stage two: expected_tokens must be at least 1",)),
        ("dataset: a,", "", ("stage two: --dataset is required",)),
        ("name: two", "name: one", ("two stages are called 'one'",)),
        ("name: two", "name: ../two", ("stage ../two: name is '../two'",)),
        ("name: two, ", "", ("stage 2: name is ''",)),
        ("lr: 1e-3", "lora_rank: 4", ("stage two", "adapters of stage one", "lora_rank 4")),
        ("output_dir: out", "output_dir: out\nmfu: 2", ("mfu must be above 0 and at most 1",)),
        ("output_dir: out", "output_dir: out\nmodel: 8b", ("model must be one of",)),
        ("stages:", "steps:", ("unknown key 'steps'",)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_recipes_are_refused_by_file_and_key(old: str, new: str, words: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"plan\.yaml") as refusal:
        read_recipe(recipe_with(tmp_path, old, new))
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize(
    ("new", "words"),
    [
        ("plugin: 3d, tp: 3", "tp * pp * sp = 3 * 1 * 1 = 3 does not divide the 4 processes"),
        ("plugin: 3d, tp: 2, pp: 4, micro_batch_size: 4", "does not divide the 4 processes"),
        ("plugin: zero2, optimizer: came", "--optimizer came does not work with --plugin zero2"),
        ("plugin: gemini, mixed_precision: fp32", "--mixed_precision fp32 does not work with --plugin gemini"),
    ],
)
def test_impossible_layouts_are_refused_before_anything_starts(new: str, words: str, tmp_path: Path) -> None:
    recipe = read_recipe(recipe_with(tmp_path, "plugin: zero2", new))
    with pytest.raises(UserError, match=r"plan\.yaml: stage one") as refusal:
        make_plan(recipe)
    assert words in str(refusal.value)


def test_sizes_that_do_not_divide_are_refused_too(tmp_path: Path) -> None:
    file = recipe_with(tmp_path, "plugin: zero2", "plugin: 3d, tp: 4")
    make_plan(read_recipe(file))
    file.write_text(file.read_text() + "model: tiny\n")  # 2 key/value heads
    with pytest.raises(UserError, match=r"plan\.yaml: --tp 4 does not divide"):
        make_plan(read_recipe(file))


def test_missing_inputs_are_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    recipe_with(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["plan.yaml"]) == 2
    assert "plan.yaml: stage one: pretrained base: no such folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a\n\nb\n", "hosts:2: an empty line"),
        ("a\nb\na\n", "hosts:3: a is named twice"),
        ("", "empty"),
        ("a slots=8\n", "hosts:1: 'a slots=8' is more than a host name"),
        ("# ours\n", "hosts:1"),
    ],
)
def test_bad_hostfiles_are_refused_by_line(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text(content)
    with pytest.raises(UserError) as refusal:
        read_hostfile(tmp_path / "hosts")
    assert words in str(refusal.value)


def test_hosts_are_counted_and_a_missing_hostfile_is_no_plan(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("a\nb\nc\n")
    hostfile = f"nproc_per_node: 2, hostfile: {tmp_path / 'hosts'}"
    plan = make_plan(read_recipe(recipe_with(tmp_path, "nproc_per_node: 4", hostfile)))
    assert plan.launcher.processes == 6
    assert "--num_nodes 3" in " ".join(plan.launcher.command("train.py", []))
    plan = make_plan(read_recipe(recipe_with(tmp_path, "nproc_per_node: 4", hostfile + ", num_nodes: 2")))
    assert (plan.launcher.processes, len(plan.hosts)) == (4, 2)
    with pytest.raises(UserError, match=r"num_nodes is 4, but .* names 3"):
        make_plan(read_recipe(recipe_with(tmp_path, "nproc_per_node: 4", hostfile + ", num_nodes: 4")))
    with pytest.raises(UserError, match="no such file"):
        make_plan(read_recipe(recipe_with(tmp_path, "nproc_per_node: 4", "hostfile: nowhere")))


def test_unreachable_hosts_are_named_together() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.2", 0))  # bound but not listening: connections are refused
        port = closed.getsockname()[1]
        with pytest.raises(UserError) as refusal:
            check_reachable(parse_hosts("localhost,no-such-host.invalid,127.0.0.2"), port, seconds=5.0)
    message = str(refusal.value)
    assert "no-such-host.invalid" in message
    assert f"127.0.0.2 (host 'localhost,no-such-host.invalid,127.0.0.2'): no ssh server on port {port}" in message
    assert "localhost (" not in message
    check_reachable(parse_hosts("localhost,127.0.0.1"), port)


def test_the_ssh_configuration_counts(tmp_path: Path) -> None:
    config = tmp_path / "config"
    assert ssh_address("node1", None, config) == ("node1", 22)
    config.write_text("Host node*\n  HostName 10.0.0.1\n  Port 2222\nHost far\n  ProxyJump gate\n")
    assert ssh_address("node1", None, config) == ("10.0.0.1", 2222)
    assert ssh_address("node1", 23, config) == ("10.0.0.1", 23)
    assert ssh_address("far", None, config) is None


def test_arguments_survive_the_shell_of_the_launcher() -> None:
    command = Launcher(nproc_per_node=2, master_port=1).command("train.py", ["--dataset", "my data", "a;b"])
    assert shlex.split(" ".join(command[command.index("train.py") :])) == ["train.py", "--dataset", "my data", "a;b"]


def test_model_names_are_the_known_shapes() -> None:
    assert list(MODEL_NAMES) == list(KNOWN_SHAPES)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_parsed_and_dry_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    run_stages(RunStagesConfig(str(path), dry_run=True, peak_tflops=100.0))
    printed = capsys.readouterr().out
    recipe = read_recipe(path)
    for stage in recipe.stages:
        assert f"== stage {stage.name}\n" in printed
        assert f"missing: dataset {stage.settings.dataset[0]}: no such folder" in printed
    commands = re.findall(r"^   \$ (.*)$", printed, re.M)
    assert len(commands) == len(recipe.stages)
    for command, stage in zip(commands, recipe.stages, strict=True):
        words = shlex.split(command)
        flags = words[words.index(next(word for word in words if word.endswith("train.py"))) + 1 :]
        assert parse_config(TrainConfig, flags, "") == stage.settings
    assert printed.count("memory per rank, from known sizes of") == len(recipe.stages)
    if recipe.stages[0].expected_tokens:
        assert printed.count("FLOPs at") == len(recipe.stages)
        assert "all stages:" in printed
    assert list(tmp_path.iterdir()) == []


def test_dry_run_takes_rows_and_tokens_from_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from colossal_llama.data.manifest import Manifest, PartInfo, write_manifest

    parts = [PartInfo(f"part-0000{i}", 40 + i, 1, 1000 + i, 900, 1, 0, 0, {}) for i in range(2)]
    empty = {field.name: 0 for field in dataclasses.fields(Manifest) if field.type == "int" or field.type is int}
    manifest = Manifest(
        **empty
        | {"kind": "pretrain", "tokenizer_fingerprint": "x", "rows": 81, "tokens": 2001, "parts": parts}
        | {"settings": {}, "tokens_dropped": {}, "dropped": {}, "inputs": [], "sub_datasets": [], "validation": None}
        | {"versions": {}, "format_version": 2}
    )
    for name in ("a", "b"):
        (tmp_path / name / "part-00001").mkdir(parents=True)
        write_manifest(manifest, tmp_path / name)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(KNOWN_SHAPES["tiny"]))
    recipe_with(tmp_path, "dataset: a,", "dataset: a/part-00001, padding_mode: longest,")
    monkeypatch.chdir(tmp_path)
    assert main(["plan.yaml", "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "missing" not in printed
    assert "data: 162 rows, 4,002 tokens (manifest.json)" in printed
    assert "steps: 41 of 4 rows (4 data parallel * 1 rows * 1 accumulation)" in printed
    assert "663,552 tokens with padding" in printed  # 162 rows of 4,096
    assert "data: 41 rows, 1,001 tokens (manifest.json)" in printed
    assert "1,001 tokens with padding" in printed
    assert "unknown without a peak, give --peak_tflops" in printed
