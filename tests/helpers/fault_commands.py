"""Every command with whole inputs: its flags, the files that it reads, and what it writes."""

from __future__ import annotations

from dataclasses import dataclass

from tests.helpers.fault_inputs import CHECKPOINT, LORA_FLAGS, NEXT_CHECKPOINT, TRAIN_FLAGS

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
MODEL = ("config.json", "model.safetensors", "generation_config.json", *TOKENIZER)
SHARDS = tuple(f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))
SENTENCEPIECE = ("tokenizer.model", *TOKENIZER[1:])
TEXTS = ("a.jsonl", "b.jsonl.gz", "c.json", "d.parquet")
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "base_model.json")
SAVED = ("data-00000-of-00001.arrow", "state.json")
DATASET = ("manifest.json", *(f"part-0000{number}/{name}" for number in (0, 1) for name in SAVED))
CHECKPOINT_FILES = (
    *("running_states.json", "manifest.json", "lr_scheduler", "rng/*", "optimizer/*", "masters/*"),
    *("modeling/model-00001.safetensors", "modeling/model.safetensors.index.json"),
    *(f"modeling/{name}" for name in ("config.json", "generation_config.json", *TOKENIZER)),
)
BENCHMARK_FILES = {
    "mmlu:anatomy": ("mmlu/data/dev/anatomy_dev.csv", "mmlu/data/test/anatomy_test.csv"),
    "cmmlu:agronomy": ("cmmlu/dev/agronomy.csv", "cmmlu/test/agronomy.csv"),
    "ceval:law": ("ceval/dev/law_dev.csv", "ceval/val/law_val.csv"),
    "agieval:sat-math": ("agieval/few_shot_prompts.csv", "agieval/v1_1/sat-math.jsonl"),
    "gaokao:biology": ("gaokao/Data/Objective_Questions/2010-2022_Biology_MCQs.json",),
    "gsm8k": ("gsm8k/train.jsonl", "gsm8k/test.jsonl"),
    "bbh:navigate": ("bbh/navigate.json",),
    "boolq": ("boolq/dev.jsonl",),
    "humaneval": ("humaneval/HumanEval.jsonl.gz",),
}


@dataclass(frozen=True)
class Command:
    """A command with whole inputs.

    Attributes:
        module: in ``colossal_llama.commands``.
        flags: that make it read ``reads`` and write ``writes``; inputs are below ``in``, outputs below ``out``.
        reads: the files that it reads, below ``in``, as patterns.
        writes: what it writes, below ``out``: a file, or a folder with a ``/`` behind its name.
        ignores: patterns of files that it opens too; another entry has their faults.
        keeps: patterns of what a run that had begun leaves when it fails, seen from its folder.
        stdin: what is typed.
    """

    module: str
    flags: str
    reads: tuple[str, ...]
    writes: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()
    stdin: str = ""


def below(folder: str, *names: str) -> tuple[str, ...]:
    """Paths below a folder of the inputs."""
    return tuple(f"{folder}/{name}" for name in names)


TOKENIZE = "--tokenizer_dir in/model --max_length 64 --num_spliced_dataset_bins 2 --num_workers 1"
PREPARED = ("out/data", "out/data/cache*", "out/data/.*.prepare-*")
"""A preparation that a full disk stopped goes on from these."""
TRAIN = f"--pretrained in/model --dataset in/data/arrow {' '.join(TRAIN_FLAGS)}"
TRAIN_OUTPUTS = "--save_dir out/checkpoints --tensorboard_dir out/logs --config_file out/config.json"
TRAIN_WRITES = ("checkpoints/", "logs/", "config.json")
BEGUN = ("out/logs*", "out/config.json", "out/checkpoints")
"""A training that fails after its first step keeps its configuration, its logs and its whole checkpoints."""
FOCUS = "--target_tokenizer_path in/wide --target_model_path out/new --init_method focus --auxiliary_embeddings"
GENERATE = "--prompt_style pretrained --device cpu --max_new_tokens 2"

COMMANDS: dict[str, Command] = {
    "train_tokenizer": Command(
        "train_tokenizer",
        "--text_files in/texts/a.jsonl in/texts/b.jsonl.gz in/texts/c.json in/texts/d.parquet in/held_out/text.txt "
        "--source_tokenizer_dir in/model --merge in/sentencepiece/tokenizer.model in/wide/tokenizer.json --method bpe "
        "--target_size 20 --held_out_fraction 0 --output_file out/pieces.jsonl --plot out/curve.png",
        (
            *below("texts", *TEXTS),
            "held_out/text.txt",
            *below("model", *TOKENIZER),
            "sentencepiece/tokenizer.model",
            "wide/tokenizer.json",
        ),
        ("pieces.jsonl", "curve.png"),
        ignores=("model/config.json",),
        keeps=("out/curve.png",),  # drawn before the pieces are written, and whole
    ),
    "tokenizer_report": Command(
        "tokenizer_report",
        "--tokenizers in/model in/sentencepiece --text_files in/texts/a.jsonl --model in/model "
        "--markdown out/report.md --html out/report.html",
        ("texts/a.jsonl", *below("model", "config.json", *TOKENIZER), *below("sentencepiece", *SENTENCEPIECE)),
        ("report.md", "report.html"),
        keeps=("out/report.md",),
    ),
    "init_tokenizer": Command(
        "init_tokenizer",
        "--source_tokenizer_dir in/model --expand_tokens_file in/pieces/pieces.jsonl --target_tokenizer_dir out/wide "
        "--check_text in/held_out/exam.jsonl",
        ("pieces/pieces.jsonl", "held_out/exam.jsonl", *below("model", *TOKENIZER)),
        ("wide/",),
        ignores=("model/config.json",),
    ),
    "init_tokenizer (SentencePiece)": Command(
        "init_tokenizer",
        "--source_tokenizer_dir in/sentencepiece --expand_tokens_file in/pieces/pieces.jsonl "
        "--target_tokenizer_dir out/wide",
        below("sentencepiece", *SENTENCEPIECE),
        ("wide/",),
        ignores=("pieces/*",),
    ),
    "init_model": Command(
        "init_model",
        "--source_model_and_tokenizer_path in/model --target_tokenizer_path in/wide --target_model_path out/new",
        (*below("model", *MODEL), *below("wide", *TOKENIZER, "expansion.json")),
        ("new/",),
    ),
    "init_model (sharded)": Command(
        "init_model",
        f"--source_model_and_tokenizer_path in/sharded {FOCUS} in/vectors/vectors.npz",
        (*below("sharded", "model.safetensors.index.json", *SHARDS), "vectors/vectors.npz"),
        ("new/",),
        ignores=("sharded/*", "wide/*"),
    ),
    "init_model (text vectors)": Command(
        "init_model",
        f"--source_model_and_tokenizer_path in/model {FOCUS} in/vectors/vectors.vec",
        ("vectors/vectors.vec",),
        ignores=("model/*", "wide/*"),
    ),
    "prepare_pretrain_dataset": Command(
        "prepare_pretrain_dataset",
        f"--data_input_dirs in/texts --data_output_dirs out/data {TOKENIZE} --deduplicate exact "
        "--decontaminate in/held_out/exam.jsonl,in/held_out/text.txt --validation_fraction 0.1",
        (*below("texts", *TEXTS), *below("held_out", "exam.jsonl", "text.txt"), *below("model", *TOKENIZER)),
        ("data/",),
        ignores=("model/config.json",),
        keeps=PREPARED,
    ),
    "prepare_pretrain_dataset (arrow)": Command(
        "prepare_pretrain_dataset",
        f"--data_input_dirs in/saved --data_output_dirs out/data {TOKENIZE}",
        below("saved", *SAVED),
        ignores=("model/*", "saved/dataset_info.json"),
    ),
    "prepare_sft_dataset": Command(
        "prepare_sft_dataset",
        f"--data_input_dirs in/chats --data_output_dirs out/data {TOKENIZE} --max_length 256",
        ("chats/a.jsonl", *below("model", *TOKENIZER)),
        ("data/",),
        ignores=("model/config.json",),
        keeps=PREPARED,
    ),
    "inspect_dataset": Command(
        "inspect_dataset",
        "in/data/arrow --tokenizer_dir in/model --row 0 17",
        (*below("data/arrow", *DATASET), *below("model", *TOKENIZER)),
        ignores=("model/config.json", "data/arrow/*/dataset_info.json"),
    ),
    "train": Command(
        "train",
        f"{TRAIN} {TRAIN_OUTPUTS} --save_interval 4 --eval_interval 4 --eval_dataset in/validation",
        (*below("model", *MODEL), *below("data/arrow", *DATASET), *below("validation", *SAVED)),
        TRAIN_WRITES,
        ignores=("*/dataset_info.json",),
        keeps=BEGUN,
    ),
    "train --config": Command(
        "train",
        f"--config in/run/config.json {TRAIN_OUTPUTS}",
        ("run/config.json",),
        ignores=("model/*", "data/*"),
    ),
    "train --load_checkpoint": Command(
        "train",
        f"{TRAIN} {TRAIN_OUTPUTS} --load_checkpoint in/run/checkpoints/{CHECKPOINT}",
        below(f"run/checkpoints/{CHECKPOINT}", *CHECKPOINT_FILES),
        ignores=("model/*", "data/*"),
    ),
    "train --load_checkpoint auto": Command(
        "train",
        f"{TRAIN} --save_dir in/run/checkpoints --tensorboard_dir out/logs --config_file out/config.json "
        "--load_checkpoint auto",
        below(f"run/checkpoints/{NEXT_CHECKPOINT}", *CHECKPOINT_FILES),
        ignores=("model/*", "data/*", "run/checkpoints/*"),
    ),
    "train --load_checkpoint (weights)": Command(
        "train",
        f"{TRAIN} {TRAIN_OUTPUTS} --load_checkpoint in/sharded",
        below("sharded", "config.json", "model.safetensors.index.json", *SHARDS),
        ignores=("model/*", "data/*", "sharded/*"),
    ),
    "train --load_checkpoint (adapters)": Command(
        "train",
        f"{TRAIN} {TRAIN_OUTPUTS} {' '.join(LORA_FLAGS)} --load_checkpoint in/adapters",
        below("adapters", *ADAPTERS),
        ignores=("model/*", "data/*", "adapters/*"),
    ),
    "train (its own logs)": Command(
        "train",
        f"{TRAIN} --save_dir out/checkpoints --tensorboard_dir in/run/logs --config_file out/config.json "
        f"--load_checkpoint in/run/checkpoints/{CHECKPOINT}",
        below("run/logs", "metrics.jsonl", "events.jsonl"),
        ignores=("model/*", "data/*", "run/*"),
        keeps=("out/config.json", "in/run/logs/*"),
    ),
    "run_stages --dry_run": Command(
        "run_stages",
        "in/settings/recipe.yaml --dry_run",
        (*below("settings", "recipe.yaml", "hostfile"), "model/config.json", "data/arrow/manifest.json"),
        ignores=("data/*", "model/*"),
    ),
    "run_stages": Command(
        "run_stages",
        "in/settings/recipe.yaml",
        (
            *below("settings", "recipe.yaml", "hostfile"),
            *("staged/first/stage.json", "model/model.safetensors", f"data/arrow/part-00000/{SAVED[0]}"),
        ),
        ignores=("model/*", "data/*", "staged/.run_stages.lock", "staged/stages.*"),
        keeps=("in/staged/.run_stages.lock",),
    ),
    "plan": Command("plan", "--model in/model --output out/plan.json", ("model/config.json",), ("plan.json",)),
    "plan --config": Command("plan", "--config in/settings/plan.yaml", ("settings/plan.yaml",)),
    "evaluate": Command(
        "evaluate",
        "in/model --held_out in/held_out/exam.jsonl in/held_out/text.txt --output_dir out/evaluation --device cpu",
        (*below("model", *MODEL), *below("held_out", "exam.jsonl", "text.txt")),
        ("evaluation/",),
        keeps=("out/evaluation*",),  # each measurement is kept as soon as it is done
    ),
    **{
        f"evaluate --tasks {task}": Command(
            "evaluate",
            f"in/model --tasks {task} --data_dir in/benchmarks --output_dir out/evaluation --device cpu "
            "--max_gen_toks 2 --allow_code_execution",
            below("benchmarks", *files),
            ignores=("model/*", "benchmarks/agieval/*"),
        )
        for task, files in BENCHMARK_FILES.items()
    },
    "evaluate (a second time)": Command(
        "evaluate",
        "in/model --tasks boolq --data_dir in/benchmarks --output_dir in/results --device cpu",
        ("results/parts/boolq-boolq-*.json",),
        ignores=("model/*", "benchmarks/*", "results/results.*"),
        keeps=("in/results/parts/*.answers",),
    ),
    "compare_models": Command(
        "compare_models",
        "base=in/model other=in/sharded --held_out in/held_out/exam.jsonl --prompts in/prompts/prompts.txt "
        "in/prompts/prompts.jsonl --results in/results --output_dir out/comparison --device cpu --measure_speed false "
        "--max_new_tokens 2",
        (
            *below("sharded", "config.json", "model.safetensors.index.json", SHARDS[1], *TOKENIZER),
            *("held_out/exam.jsonl", "prompts/prompts.txt", "prompts/prompts.jsonl", "results/results.json"),
        ),
        ("comparison/",),
        ignores=("model/*", "sharded/*"),
        keeps=("out/comparison*",),
    ),
    "chat": Command(
        "chat",
        "in/model --device cpu --max_new_tokens 2",
        below("model", *MODEL),
        stdin="hello\n",
    ),
    "merge_lora": Command(
        "merge_lora",
        "--adapter_path in/adapters --output_path out/merged",
        (*below("adapters", *ADAPTERS, "generation_config.json", *TOKENIZER), *below("model", *MODEL[:3])),
        ("merged/",),
    ),
    "benchmark": Command(
        "benchmark",
        "--model in/model --plugin ddp --mixed_precision fp32 -l 16 -b 1 -s 1 -i 0 --split_steps 0 "
        "--output out/figures.json",
        ("model/config.json",),
        ("figures.json",),
    ),
    "inference_example": Command(
        "inference",
        f"--model_path in/model --input_file in/prompts/prompts.jsonl --output_file out/answers.jsonl {GENERATE}",
        (*below("model", *MODEL), "prompts/prompts.jsonl"),
        ("answers.jsonl",),
    ),
    "inference_example (texts)": Command(
        "inference",
        f"--model_path in/model --input_file in/prompts/prompts.txt {GENERATE}",
        ("prompts/prompts.txt",),
        ignores=("model/*",),
    ),
    "inference_example (adapters)": Command(
        "inference",
        f"--model_path in/adapters {GENERATE}",
        below("adapters", *ADAPTERS, *TOKENIZER, "generation_config.json"),
        ignores=("model/*",),
    ),
    "inference_example (sharded)": Command(
        "inference",
        f"--model_path in/sharded {GENERATE}",
        below("sharded", "model.safetensors.index.json", SHARDS[1]),
        ignores=("sharded/*",),
    ),
}
