"""The command lines that users know: a frozen table, the examples, and --config."""

import argparse
import json
import os
import subprocess
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import pytest

from colossal_llama.config.benchmark import BenchmarkConfig
from colossal_llama.config.chat import ChatConfig
from colossal_llama.config.cli import build_parser, parse_config
from colossal_llama.config.evaluate import BENCHMARK_NAMES, CompareConfig, EvaluateConfig
from colossal_llama.config.inference import InferenceConfig
from colossal_llama.config.inspect import InspectConfig
from colossal_llama.config.io import write_config
from colossal_llama.config.merge_lora import MergeLoraConfig
from colossal_llama.config.mining import METHOD_NAMES, TokenizerReportConfig, TrainTokenizerConfig
from colossal_llama.config.plan import PlanConfig
from colossal_llama.config.prepare import PretrainPrepareConfig, SftPrepareConfig
from colossal_llama.config.quickstart import QuickstartConfig
from colossal_llama.config.recipe import RunStagesConfig
from colossal_llama.config.train import PLUGIN_NAMES, TrainConfig
from colossal_llama.config.vocabulary import INIT_METHOD_NAMES, InitModelConfig, InitTokenizerConfig
from colossal_llama.errors import UserError
from colossal_llama.evaluation.benchmarks import BENCHMARKS
from colossal_llama.model.new_rows import INIT_METHODS
from colossal_llama.plugins import PLUGINS
from colossal_llama.tokenizer.candidates import METHODS

ROOT = Path(__file__).resolve().parents[2]
REQUIRED = "required"

CONTROL: dict[str, tuple[Any, ...]] = {
    "--special_tokens": ([],),
    "--special_tokens_file": (None,),
    "--chat_template": (None,),
}
PREPARE: dict[str, tuple[Any, ...]] = {
    "--data_input_dirs": (REQUIRED,),
    "--recursive": (False,),
    "--tokenizer_dir": (REQUIRED,),
    "--data_output_dirs": (None,),
    "--data_jsonl_output_dir": (None,),
    "--data_arrow_output_dir": (None,),
    "--data_cache_dir": (None,),
    "--max_length": (4096,),
    "--num_spliced_dataset_bins": (10,),
    "--long_documents": ("split",),
    "--packing": ("best_fit",),
    "--data_format": ("auto",),
    "--text_field": (None,),
    "--ignore_fields": (None,),
    "--on_bad_record": ("stop",),
    "--deduplicate": ("none",),
    "--near_duplicate_threshold": (0.8,),
    "--quality": ("none",),
    "--min_characters": (None,),
    "--max_characters": (None,),
    "--decontaminate": (None,),
    "--sub_dataset_by": ("input",),
    "--mixture": (None,),
    "--validation_fraction": (0.0,),
    "--seed": (42,),
    "--num_workers": (None,),
    "--encoder": ("auto",),
    "--engine": ("local",),
    "--ray_address": (None,),
    "--overwrite": (False,),
}
WORKLOAD: dict[str, tuple[Any, ...]] = {
    "--model": ("7b", "-c"),
    "--plugin": ("gemini", "-p"),
    "--max_length": (4096, "-l"),
    "--micro_batch_size": (2, "--batch_size", "-b"),
    "--accumulation_steps": (1,),
    "--mixed_precision": ("bf16",),
    "--use_grad_checkpoint": (False, "--grad_checkpoint", "-g"),
    "--use_flash_attn": (False, "-x"),
    "--optimizer": ("hybrid_adam",),
    "--freeze_non_embeds_params": (False,),
    "--tp": (1,),
    "--pp": (1,),
    "--sp": (1,),
    "--enable_sequence_parallelism": (False,),
    "--sp_mode": ("split_gather",),
    "--zero": (1, "--zero_stage"),
    "--zero_cpu_offload": (False,),
    "--microbatch_size": (1, "--mbs"),
    "--peak_tflops": (None,),
}
TABLE: dict[type, dict[str, tuple[Any, ...]]] = {
    BenchmarkConfig: WORKLOAD
    | {
        "--num_steps": (5, "-s"),
        "--ignore_steps": (2, "-i"),
        "--split_steps": (2,),
        "--compare": ([],),
        "--output": (None,),
        "--trace_memory": (False,),
        "--check_memory": (True,),
        "--seed": (42,),
    },
    PlanConfig: WORKLOAD
    | {
        "--gpus": (8,),
        "--gpus_per_node": (8,),
        "--gpu_memory": (80.0,),
        "--usable_memory": (0.9,),
        "--gpu": ("H100",),
        "--efficiency": (0.5,),
        "--node_bandwidth": (200.0,),
        "--network_bandwidth": (20.0,),
        "--tokens": (None,),
        "--suggest": (False,),
        "--top": (10,),
        "--output": (None,),
    },
    TrainTokenizerConfig: {
        "--text_files": (REQUIRED, "--text"),
        "--source_tokenizer_dir": (REQUIRED, "--tokenizer_dir"),
        "--output_file": (REQUIRED,),
        "--method": (None,),
        "--merge": ([],),
        "--target_size": (4000,),
        "--target_compression": (None,),
        "--max_characters": (8,),
        "--ascii_pieces": (False,),
        "--held_out_fraction": (0.4,),
        "--sample_characters": (20_000_000,),
        "--seed": (42,),
        "--curve_points": (6,),
        "--plot": (None,),
        "--data_format": ("auto",),
        "--text_field": (None,),
        "--recursive": (False,),
        "--overwrite": (False,),
    },
    TokenizerReportConfig: {
        "--tokenizers": (REQUIRED,),
        "--text_files": (REQUIRED, "--text"),
        "--model": (None,),
        "--hidden_size": (None,),
        "--tied": (False,),
        "--tokens_per_parameter": (20.0,),
        "--markdown": (None,),
        "--html": (None,),
        "--data_format": ("auto",),
        "--text_field": (None,),
        "--recursive": (False,),
        "--overwrite": (False,),
    },
    InitTokenizerConfig: {
        "--source_tokenizer_dir": (REQUIRED,),
        "--target_tokenizer_dir": (REQUIRED,),
        "--expand_tokens_file": (None,),
        **CONTROL,
        "--unreachable": ("repair",),
        "--check_text": ([],),
        "--overwrite": (False,),
    },
    InitModelConfig: {
        "--source_model_and_tokenizer_path": (REQUIRED,),
        "--target_tokenizer_path": (None,),
        **CONTROL,
        "--target_model_path": (REQUIRED,),
        "--pad_to_multiple_of": (1,),
        "--init_method": ("weighted_mean",),
        "--auxiliary_embeddings": (None,),
        "--seed": (42,),
        "--overwrite": (False,),
    },
    PretrainPrepareConfig: PREPARE,
    InspectConfig: {
        "--dataset": (REQUIRED,),
        "--tokenizer_dir": (None,),
        "--row": ([0],),
        "--color": ("auto",),
    },
    SftPrepareConfig: PREPARE | {"--llama_version": (3,), "--chat_template": (None,)},
    TrainConfig: {
        "--pretrained": (REQUIRED,),
        "--dataset": ([],),
        "--plugin": ("gemini",),
        "--load_checkpoint": (None,),
        "--initial_weights": (None,),
        "--save_interval": (1000,),
        "--save_dir": ("checkpoint_dir",),
        "--keep_last": (0,),
        "--keep_every": (0,),
        "--async_save": (False,),
        "--tensorboard_dir": ("logs_dir",),
        "--config_file": ("config_file",),
        "--eval_interval": (0,),
        "--eval_dataset": (None,),
        "--eval_rows": (0,),
        "--on_nan": ("stop",),
        "--peak_tflops": (None,),
        "--num_epochs": (1,),
        "--micro_batch_size": (1, "--batch_size"),
        "--accumulation_steps": (1,),
        "--optimizer": ("hybrid_adam",),
        "--lr": (3e-4,),
        "--embedding_lr": (None,),
        "--lr_schedule": ("cosine",),
        "--lr_floor": (0.1,),
        "--lr_decay_fraction": (0.1,),
        "--weight_decay": (0.1, "-w"),
        "--decay_norms_and_biases": (True,),
        "--galore_rank": (128,),
        "--galore_update_interval": (200,),
        "--galore_scale": (0.25,),
        "--warmup_steps": (None, "-s"),
        "--gradient_clipping": (1.0, "--grad_clip"),
        "--max_length": (4096,),
        "--mixed_precision": ("fp16",),
        "--use_grad_checkpoint": (False,),
        "--use_flash_attn": (False,),
        "--freeze_non_embeds_params": (False,),
        "--freeze_old_embedding_rows": (None,),
        "--tp": (1,),
        "--pp": (1,),
        "--sp": (1,),
        "--enable_sequence_parallelism": (False,),
        "--sp_mode": ("split_gather",),
        "--zero": (1, "--zero_stage"),
        "--zero_cpu_offload": (False,),
        "--microbatch_size": (1,),
        "--pad_token": ("eos",),
        "--padding_mode": ("max_length",),
        "--document_mask": ("auto",),
        "--use_neft": (False,),
        "--neft_alpha": (5.0,),
        "--lora_rank": (0,),
        "--lora_alpha": (32,),
        "--lora_dropout": (0.1,),
        "--lora_target_modules": (None,),
        "--lora_modules_to_save": (None,),
        "--skip_save_each_epoch": (False,),
        "--benchmark": (False,),
        "--num_samples": (500,),
        "--seed": (42,),
        "--overwrite": (False,),
    },
    InferenceConfig: {
        "--model_path": (REQUIRED,),
        "--input_txt": ("明月松间照，",),
        "--input_file": (None,),
        "--output_file": (None,),
        "--batch_size": (8,),
        "--prompt_style": ("sft",),
        "--parse_special": (False,),
        "--device": ("cuda:0",),
        "--dtype": ("auto",),
        "--base_model_path": (None,),
        "--max_new_tokens": (512,),
        "--do_sample": (True,),
        "--temperature": (0.3,),
        "--top_k": (50,),
        "--top_p": (0.95,),
        "--num_beams": (1,),
        "--seed": (42,),
        "--overwrite": (False,),
    },
    ChatConfig: {
        "model_path": (REQUIRED,),
        "--web": (False,),
        "--host": ("127.0.0.1",),
        "--port": (None,),
        "--system": ("",),
        "--parse_special": (False,),
        "--device": ("auto",),
        "--dtype": ("auto",),
        "--base_model_path": (None,),
        "--max_new_tokens": (512,),
        "--do_sample": (True,),
        "--temperature": (0.3,),
        "--top_k": (50,),
        "--top_p": (0.95,),
        "--seed": (42,),
    },
    RunStagesConfig: {
        "recipe": (REQUIRED,),
        "--dry_run": (False,),
        "--overwrite": (False,),
        "--peak_tflops": (None,),
        "--mfu": (None,),
    },
    MergeLoraConfig: {
        "--adapter_path": (REQUIRED,),
        "--output_path": (REQUIRED,),
        "--base_model_path": (None,),
        "--overwrite": (False,),
    },
    EvaluateConfig: {
        "model": (REQUIRED,),
        "--tasks": ([],),
        "--data_dir": (None,),
        "--held_out": ([],),
        "--output_dir": ("evaluation_output",),
        "--num_fewshot": (None,),
        "--max_gen_toks": (None,),
        "--limit": (None,),
        "--batch_size": (8,),
        "--batch_tokens": (4096,),
        "--window_characters": (1000,),
        "--resamples": (1000,),
        "--data_format": ("auto",),
        "--text_field": (None,),
        "--recursive": (False,),
        "--allow_code_execution": (False,),
        "--parse_special": (False,),
        "--device": ("cuda:0",),
        "--seed": (42,),
    },
    CompareConfig: {
        "models": (REQUIRED,),
        "--held_out": ([],),
        "--prompts": ([],),
        "--prompt_format": ("auto",),
        "--results": ([],),
        "--output_dir": ("comparison_output",),
        "--max_new_tokens": (64,),
        "--measure_speed": (True,),
        "--speed_tokens": (1024,),
        "--batch_tokens": (4096,),
        "--window_characters": (1000,),
        "--resamples": (1000,),
        "--data_format": ("auto",),
        "--text_field": (None,),
        "--parse_special": (False,),
        "--recursive": (False,),
        "--device": ("cuda:0",),
        "--seed": (42,),
    },
    QuickstartConfig: {
        "--plugin": ("ddp",),
        "--processes": (2,),
        "--tiny": (False,),
        "--measure_on": ("held_out",),
        "--output_dir": ("quickstart_output",),
    },
}
"""Flag: its default, then its other spellings."""

CHOICES = {
    "--optimizer": {"hybrid_adam", "lion", "adamw_8bit", "adafactor", "came", "galore"},
    "--lr_schedule": {"cosine", "wsd", "linear", "constant"},
    "--plugin": {"gemini", "gemini_auto", "zero2", "zero2_cpu", "3d", "ddp"},
    "--mixed_precision": {"fp16", "bf16", "fp32"},
    "--sp_mode": {"split_gather", "ring", "all_to_all"},
    "--pad_token": {"eos", "unk"},
    "--padding_mode": {"max_length", "longest"},
    "--on_nan": {"stop", "skip"},
    "--document_mask": {"auto", "on", "off"},
    "--prompt_style": {"sft", "pretrained"},
    "--dtype": {"auto", "fp32", "bf16", "fp16"},
    "--prompt_format": {"auto", "text", "pretrained", "sft"},
    "--color": {"auto", "always", "never"},
    "--long_documents": {"split", "truncate", "sample"},
    "--packing": {"best_fit", "concat", "none"},
    "--on_bad_record": {"stop", "skip"},
    "--deduplicate": {"none", "exact", "near"},
    "--quality": {"none", "gopher"},
    "--sub_dataset_by": {"input", "category"},
    "--encoder": {"auto", "tokenizers"},
    "--engine": {"local", "ray"},
    "--init_method": {"mean", "weighted_mean", "global_mean", "gaussian", "random", "focus"},
    "--measure_on": {"held_out", "validation"},
    "--unreachable": {"repair", "drop", "keep", "error"},
    "--method": {"bpe", "unigram", "ngrams"},
}


def spelling(action: argparse.Action) -> str:
    """The flag, or the name of an argument without one."""
    return action.option_strings[0] if action.option_strings else action.dest


def default_of(config_class: type, name: str) -> Any:
    (field,) = [field for field in fields(config_class) if field.name == name]
    if field.default_factory is not MISSING:
        return field.default_factory()
    return REQUIRED if field.default is MISSING else field.default


def actions(config_class: type) -> list[argparse.Action]:
    parser = build_parser(config_class, "")
    return [action for action in parser._actions if action.dest not in ("help", "config")]


@pytest.mark.parametrize("config_class", TABLE, ids=lambda one: one.__name__)
def test_flags_and_defaults_stay(config_class: type) -> None:
    live = {
        spelling(action): (default_of(config_class, action.dest), *action.option_strings[1:])
        for action in actions(config_class)
    }
    assert live == TABLE[config_class]


@pytest.mark.parametrize("config_class", TABLE, ids=lambda one: one.__name__)
def test_choices_stay_and_every_flag_says_its_default(config_class: type) -> None:
    for action in actions(config_class):
        flag = spelling(action)
        assert set(action.choices or ()) == CHOICES.get(flag, set()), flag
        assert action.help is not None
        assert action.help.endswith((" (required)", f" (default: {default_of(config_class, action.dest)})")), flag


def test_plugin_choices_are_the_registered_plugins() -> None:
    assert sorted(PLUGINS.names()) == sorted(PLUGIN_NAMES)


def test_mining_method_choices_are_the_registered_methods() -> None:
    assert METHODS.names() == list(METHOD_NAMES)


def test_initialisation_choices_are_the_registered_methods() -> None:
    assert INIT_METHODS.names() == list(INIT_METHOD_NAMES)


def test_benchmark_names_are_the_registered_benchmarks() -> None:
    assert BENCHMARKS.names() == list(BENCHMARK_NAMES)


def arguments_of_example(example: str, folder: Path) -> list[str]:
    """Run an example script with a ``colossalai`` that prints its arguments instead of training."""
    stand_in = folder / "colossalai"
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(ROOT / example)], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize(("example", "rows_per_step"), [("train.example.sh", 8), ("train_sft.example.sh", 64)])
def test_example_scripts_parse(example: str, rows_per_step: int, tmp_path: Path) -> None:
    launcher, flags = [], arguments_of_example(example, tmp_path)
    while flags[0] != "scripts/train.py":
        launcher.append(flags.pop(0))
    assert launcher == ["run", "--nproc_per_node", "8", "--hostfile", "hostfile", "--master_port", "31312"]
    config = parse_config(TrainConfig, flags[1:], "")
    assert config.micro_batch_size * config.accumulation_steps == rows_per_step
    assert config.use_neft == (example == "train_sft.example.sh")
    assert len(config.dataset) >= 2
    assert config.save_dir.startswith("checkpoints/my-llama")
    for variable in ("PROJECT_NAME", "PARENT_SAVE_DIR", "PARENT_TENSORBOARD_DIR", "PARENT_CONFIG_FILE"):
        assert f"\n{variable}=" in (ROOT / example).read_text(encoding="utf-8")


def test_hostfile_has_one_host_a_line() -> None:
    lines = (ROOT / "hostfile.example").read_text(encoding="utf-8").splitlines()
    assert lines
    assert all(line and len(line.split()) == 1 for line in lines)


def train_config(*flags: str) -> TrainConfig:
    return parse_config(TrainConfig, ["--pretrained", "m", "--dataset", "d", *flags], "")


def test_both_spellings_mean_the_same() -> None:
    documented = train_config(
        "--micro_batch_size", "3", "-w", "0.2", "-s", "7", "--gradient_clipping", "2", "--zero", "2"
    )
    current = train_config(
        "--batch_size", "3", "--weight_decay", "0.2", "--warmup_steps", "7", "--grad_clip", "2", "--zero_stage", "2"
    )
    assert documented == current


def test_booleans_take_a_value() -> None:
    assert train_config("--use_neft").use_neft is True
    assert train_config("--use_neft", "False").use_neft is False
    assert parse_config(InferenceConfig, ["--model_path", "m", "--do_sample", "False"], "").do_sample is False
    with pytest.raises(UserError, match="--use_neft"):
        train_config("--use_neft", "perhaps")


def test_flags_override_the_file_and_the_file_overrides_defaults(tmp_path: Path) -> None:
    file = tmp_path / "stage.yaml"
    file.write_text("lr: 1e-5\nbatch_size: 4\nplugin: zero2\ndataset: [a, b]\n")
    config = parse_config(TrainConfig, ["--config", str(file), "--pretrained", "m", "--plugin", "ddp"], "")
    assert (config.lr, config.micro_batch_size, config.plugin, config.dataset) == (1e-5, 4, "ddp", ["a", "b"])
    assert config.num_epochs == 1


@pytest.mark.parametrize(("written", "meant"), [("on", "on"), ("off", "off"), ("auto", "auto"), ('"on"', "on")])
def test_on_and_off_need_no_quotes_in_yaml(written: str, meant: str, tmp_path: Path) -> None:
    file = tmp_path / "stage.yaml"
    file.write_text(f"document_mask: {written}\n")
    config = parse_config(TrainConfig, ["--config", str(file), "--pretrained", "m", "--dataset", "d"], "")
    assert config.document_mask == meant


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rte: 1", "unknown key 'learning_rte'"),
        ("num_epoch: 1", "did you mean num_epochs"),
        ("lr: fast", "lr must be float"),
        ("tp: true", "tp must be int"),
        ("plugin: zero3", "plugin must be one of"),
        ("- lr", "expected 'key: value' lines"),
        ("lr: [", "not valid YAML"),
    ],
)
def test_wrong_configuration_files_are_refused_by_name(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "stage.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=r"stage\.yaml") as refusal:
        parse_config(TrainConfig, ["--config", str(file), "--pretrained", "m", "--dataset", "d"], "")
    assert message in str(refusal.value)


def test_written_configuration_reads_back(tmp_path: Path) -> None:
    config = train_config("--lr", "1e-5", "-s", "3", "--use_neft", "--plugin", "3d", "--tp", "2")
    write_config(config, tmp_path / "new" / "config.json")
    again = parse_config(TrainConfig, ["--config", str(tmp_path / "new" / "config.json")], "")
    assert again == config
    assert json.loads((tmp_path / "new" / "config.json").read_text()) == asdict(config)


@pytest.mark.parametrize(
    "flags",
    [
        ("--lr", "0"), ("--lr", "nan"), ("--num_epochs", "0"), ("--micro_batch_size", "0"), ("--warmup_steps", "-1"),
        ("--zero", "3"), ("--tp", "2"), ("--pp", "2"), ("--gradient_clipping", "-1"), ("--no_such_flag", "1"),
        ("--embedding_lr", "0"), ("--lr_floor", "2"), ("--lr_decay_fraction", "0"), ("--galore_rank", "0"),
        ("--lora_dropout", "1"), ("--lora_target_modules", "q_proj"), ("--lora_modules_to_save", "lm_head"),
        ("--freeze_old_embedding_rows", "0"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_values_that_cannot_work_are_refused_by_flag(flags: tuple[str, str]) -> None:
    with pytest.raises(UserError, match=flags[0]):
        train_config(*flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--lr_schedule", "wsd", "--lr_floor", "0"), "--lr_floor 0 does not work with --lr_schedule wsd"),
        (("--optimizer", "galore", "--lora_rank", "4"), "--optimizer galore does not work with --lora_rank"),
    ],
)
def test_flags_that_exclude_each_other_are_refused(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_config(*flags)


@pytest.mark.parametrize(
    ("words", "web"),
    [
        ("m --web", True),
        ("--web m", True),
        ("--web m --port 7000", True),
        ("--web true m", True),
        ("--web=false m", False),
        ("m --web off", False),
        ("--do_sample m", False),
        ("--seed 1 m", False),
    ],
)
def test_a_switch_leaves_the_argument_behind_it_alone(words: str, web: bool) -> None:
    config = parse_config(ChatConfig, words.split(), "")
    assert (config.model_path, config.web) == ("m", web)


def test_a_missing_argument_is_named() -> None:
    for words in ([], ["--web"]):
        with pytest.raises(UserError, match="MODEL_PATH"):
            parse_config(ChatConfig, words, "")


def table_of_flags() -> str:
    """The table in docs/training.md, from the live configuration."""
    lines = ["| flag | default | meaning |", "|---|---|---|"]
    for field in fields(TrainConfig):
        default = default_of(TrainConfig, field.name)
        shown = {REQUIRED: "required", "[]": "required", "None": "", "True": "on", "False": "off"}
        names = ", ".join(f"`{name}`" for name in (f"--{field.name}", *field.metadata["aliases"]))
        choices = f" ({', '.join(field.metadata['choices'])})" if field.metadata["choices"] else ""
        lines.append(f"| {names} | {shown.get(str(default), default)} | {field.metadata['help']}{choices} |")
    return "\n".join(lines)


def test_flags_in_the_documentation_are_the_live_ones() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    documented = text.split("<!-- flags -->\n")[1].split("\n<!-- /flags -->")[0]
    assert documented == table_of_flags(), f"docs/training.md should say\n{table_of_flags()}"
