"""The quickstart's steps: each runs a documented command, is timed, and is skipped once it is done."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossal_llama.atomic import write_text_atomically
from colossal_llama.checkpoint.folders import discard_checkpoints, existing_checkpoints
from colossal_llama.errors import UserError
from colossal_llama.json_files import read_json_lines, read_json_object
from colossal_llama.quickstart import assets, corpus
from colossal_llama.quickstart.plan import QuickstartPlan, StagePlan
from colossal_llama.stages.launcher import ROOT, Launcher, command_environment, training_environment

Result = dict[str, Any]
Action = Callable[[], Result | None]

COMPARISON = "comparison"
SPEED_TOKENS = 512
WINDOW_CHARACTERS, BATCH_TOKENS, RESAMPLES, SEED = 1000, 4096, 1000, 42
"""Of every measurement on texts; passages are shorter than a window."""


@dataclass(frozen=True)
class Workspace:
    """Folders of one quickstart run."""

    root: Path

    def folder(self, *names: str) -> Path:
        """A folder or file below the root."""
        return self.root.joinpath(*names)

    def measured_texts(self, split: str) -> Path:
        """Records of the texts to measure on."""
        return self.folder("text", f"{split}.jsonl")

    def modeling(self, stage: str) -> Path:
        """Exported weights of a finished stage."""
        return self.folder("runs", stage, "checkpoints", "modeling")


class StepRunner:
    """Runs steps once: a finished step leaves ``steps/<name>.json`` with its result and is not run again."""

    def __init__(self, workspace: Workspace) -> None:
        self._folder = workspace.folder("steps")
        self._folder.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, title: str, action: Action) -> Result:
        """Run ``action`` unless it is done; returns its result with ``seconds``."""
        marker = self._folder / f"{name}.json"
        if marker.is_file():
            result = read_json_object(marker, remedy="delete it to run the step again")
            print(f"== {title}: done before", flush=True)
            return result
        print(f"== {title}", flush=True)
        started = time.perf_counter()
        result = action() or {}
        result = {"title": title, "seconds": round(time.perf_counter() - started, 1), **result}
        write_text_atomically(marker, json.dumps(result, ensure_ascii=False, indent=2) + "\n")
        return result


def run_command(arguments: list[str], environment: dict[str, str] | None = None) -> None:
    """Show a command and run it in the project's root, with this Python's programs first in the PATH.

    Raises:
        UserError: it failed; its own message stands above.
    """
    programs = str(Path(sys.executable).parent)
    print("$ " + " ".join(arguments).replace(f"{programs}/", ""), flush=True)
    done = subprocess.run(arguments, cwd=ROOT, env=command_environment(environment or {}), check=False)
    if done.returncode:
        raise UserError(f"the step above failed with exit code {done.returncode}; mend it and run the quickstart again")


def script(name: str, **flags: Any) -> None:
    """Run ``scripts/<name>`` with flags."""
    arguments = [str(part) for key, value in flags.items() for part in (f"--{key}", value)]
    run_command([sys.executable, f"scripts/{name}", *arguments])


def write_texts(workspace: Workspace, plan: QuickstartPlan, split: str) -> Result:
    """Cut the corpus into stages and texts to measure on; stages share no Chinese passage, English ones start over."""
    texts = corpus.build_corpus(
        assets.novel_chapters(), assets.english_documents(), plan.passage_characters, plan.measured_characters, split
    )
    shutil.rmtree(workspace.folder("text"), ignore_errors=True)
    zh_start = en_start = 0
    for stage in plan.all_stages:
        chinese = corpus.take(texts.chinese, zh_start, stage.chinese)
        english = corpus.take(texts.english * 2, en_start, stage.english)
        zh_start, en_start = zh_start + len(chinese), (en_start + len(english)) % len(texts.english)
        if stage.conversations:
            zh_size, en_size = plan.conversation_characters
            chinese = corpus.all_passages(chinese, zh_size)
            english = corpus.all_passages(english, en_size)
        _write_stage(workspace.folder("text", stage.name), stage, chinese, english)
    corpus.write_pretraining_texts(workspace.folder("text", "mining"), texts.chinese, "novel")
    corpus.write_measured_texts(workspace.measured_texts(split), texts.measured)
    return {name: sum(len(text) for text in passages) for name, passages in texts.measured.items()}


def _write_stage(folder: Path, stage: StagePlan, chinese: list[str], english: list[str]) -> None:
    if stage.conversations:
        corpus.write_conversations(folder / "zh", chinese, corpus.CONTINUE_PROMPT)
        corpus.write_conversations(folder / "en", english, corpus.EXPLAIN_PROMPT)
        return
    if chinese:
        corpus.write_pretraining_texts(folder / "zh", chinese, "novel")
    if english:
        write = corpus.write_continuation_pairs if stage.pairs else corpus.write_pretraining_texts
        write(folder / "en", english, "python documentation")


def mine_and_expand(workspace: Workspace, plan: QuickstartPlan, base: Path) -> Result:
    """Steps 1 and 2: a wider tokenizer and a model with embedding rows for it."""
    tokens, tokenizer, model = (workspace.folder(name) for name in ("new_tokens.jsonl", "tokenizer", "model"))
    script(
        "train_tokenizer.py",
        text_files=workspace.folder("text", "mining", "records.jsonl"),
        source_tokenizer_dir=base,
        output_file=tokens,
        method="ngrams",
        max_characters=4,
        target_size=plan.new_tokens,
        held_out_fraction=0,
        curve_points=0,
        overwrite=True,
    )
    script(
        "init_tokenizer.py",
        source_tokenizer_dir=base,
        target_tokenizer_dir=tokenizer,
        expand_tokens_file=tokens,
        overwrite=True,
    )
    script(
        "init_model.py",
        source_model_and_tokenizer_path=base,
        target_tokenizer_path=tokenizer,
        target_model_path=model,
        pad_to_multiple_of=64,
        overwrite=True,
    )
    return {"pieces": len(tokens.read_text(encoding="utf-8").splitlines())}


def prepare(workspace: Workspace, plan: QuickstartPlan, stage: StagePlan, tokenizer: Path) -> Result:
    """Step 3: pack a stage's texts."""
    inputs = sorted(folder for folder in workspace.folder("text", stage.name).iterdir() if folder.is_dir())
    script(
        "prepare_sft_dataset.py" if stage.conversations else "prepare_pretrain_dataset.py",
        data_input_dirs=",".join(str(folder) for folder in inputs),
        tokenizer_dir=tokenizer,
        data_output_dirs=workspace.folder("data", stage.name),
        max_length=plan.max_length,
        num_spliced_dataset_bins=2,
        overwrite=True,
    )
    manifest = read_json_object(workspace.folder("data", stage.name, "arrow", "manifest.json"))
    return {"tokens": manifest["tokens"], "rows": manifest["rows"]}


def plugin_flags(plugin: str) -> list[str]:
    """Plugin and precision: fp32 where there is no GPU and the plugin has it (CPUs are slow in bf16)."""
    import torch

    precision = "bf16" if torch.cuda.is_available() or plugin.startswith("gemini") else "fp32"
    flags = ["--plugin", plugin, "--mixed_precision", precision]
    return [*flags, "--zero", "0"] if plugin == "3d" else flags


def train_stage(
    workspace: Workspace,
    plan: QuickstartPlan,
    stage: StagePlan,
    flags: list[str],
    processes: int,
    pretrained: Path,
    start: Path,
) -> Result:
    """Step 4: one stage, from ``start``'s weights or from the checkpoint a killed run left."""
    run = workspace.folder("runs", stage.name)
    checkpoints = existing_checkpoints(run / "checkpoints")
    rows = max(1, plan.global_batch // processes)
    train = [
        "--pretrained", str(pretrained),
        "--dataset", str(workspace.folder("data", stage.name, "arrow")),
        "--load_checkpoint", str(checkpoints[-1] if checkpoints else start),
        "--save_dir", str(run / "checkpoints"), "--tensorboard_dir", str(run / "logs"),
        "--config_file", str(run / "config.json"), "--save_interval", str(plan.save_interval), "--skip_save_each_epoch",
        "--max_length", str(plan.max_length), "--padding_mode", "longest", "--micro_batch_size", str(rows),
        "--lr", str(stage.lr), "--warmup_steps", "4", "--weight_decay", "0.01", *flags,
    ]  # fmt: skip
    train += ["--freeze_non_embeds_params"] if stage.embeddings_only else []
    train += ["--use_neft"] if stage.conversations else []
    run_command(Launcher(processes).command("scripts/train.py", train), training_environment(processes))
    discard_checkpoints(run / "checkpoints")
    metrics = read_json_lines(run / "logs" / "metrics.jsonl")
    return {
        "steps": len(metrics),
        "tokens": sum(entry["tokens"] for entry in metrics),
        "training_seconds": round(sum(entry["seconds"] for entry in metrics), 1),
        "losses": [entry["loss"] for entry in metrics],
    }


def measure(workspace: Workspace, model_dir: Path, split: str) -> Result:
    """Bits per byte and tokens per character on the texts set apart for it, as the comparison measures them."""
    from colossal_llama.comparison.figures import NamedModel, Plan, measure_model
    from colossal_llama.evaluation.documents import Windows, figures_by_category
    from colossal_llama.evaluation.measured_texts import read_held_out
    from colossal_llama.evaluation.store import ResultStore, model_fingerprint

    texts = read_held_out([str(workspace.measured_texts(split))], "auto", None)
    plan = Plan("cuda:0", texts, Windows(WINDOW_CHARACTERS, BATCH_TOKENS))
    store = ResultStore(workspace.folder(COMPARISON, "parts"))
    figures = measure_model(NamedModel(model_dir.name, model_dir), model_fingerprint(model_dir), plan, store)
    assert figures.scores is not None  # the plan has texts
    result: Result = {}
    for language, one in figures_by_category(figures.scores, RESAMPLES, SEED).items():
        result[language] = {
            "bits_per_byte": round(one.bits_per_byte.value, 4),
            "tokens_per_character": round(one.tokens_per_character, 4),
            "tokens": one.tokens,
        }
        print(
            f"   {language}: {one.bits_per_byte.show()} bits per byte, "
            f"{one.tokens_per_character:.3f} tokens per character"
        )
    return result


def sample(model_dir: Path, prompt: str, prompt_style: str) -> Result:
    """One generated sample, greedy, so that it is the same on every run."""
    from colossal_llama.generation import SamplingSettings, build_prompt, choose_device, generate, load_for_generation

    model, tokenizer = load_for_generation(model_dir, choose_device("cuda:0"))
    ids = build_prompt(tokenizer, prompt, prompt_style)
    text = generate(model, tokenizer, ids, SamplingSettings(max_new_tokens=32, do_sample=False))
    print(f"   {prompt} -> {text}")
    return {"prompt": prompt, "text": text}


def compare(workspace: Workspace, before: Path, after: Path, split: str, prompt: str) -> None:
    """The table of the whole job: the base model and the last one, side by side."""
    run_command(
        [
            sys.executable, "scripts/compare_models.py", f"before={before}", f"after={after}",
            "--held_out", str(workspace.measured_texts(split)), "--output_dir", str(workspace.folder(COMPARISON)),
            "--window_characters", str(WINDOW_CHARACTERS), "--batch_tokens", str(BATCH_TOKENS),
            "--resamples", str(RESAMPLES), "--seed", str(SEED), "--speed_tokens", str(SPEED_TOKENS),
            "--prompts", prompt, "--prompt_format", "text", "--max_new_tokens", "32",
        ]
    )  # fmt: skip


def comparison_text(workspace: Workspace) -> str:
    """What :func:`compare` found, as Markdown without its title."""
    text = workspace.folder(COMPARISON, "comparison.md").read_text(encoding="utf-8")
    return text.split("\n", 1)[1].strip()
