"""Settings of the two data preparation commands."""

import os
from dataclasses import dataclass
from pathlib import Path

from colossal_llama.config.cli import flag
from colossal_llama.errors import UserError

MAX_BINS = 10_000


@dataclass(kw_only=True)
class PretrainPrepareConfig:
    """Flags of prepare_pretrain_dataset.py; refuses contradictory values."""

    data_input_dirs: str = flag(
        help="comma-separated directories of data files (jsonl, ndjson, json, txt, each also gz, zst, bz2, xz; "
        "parquet) or folders of save_to_disk, one sub-dataset each"
    )
    recursive: bool = flag(False, help="read the files in subfolders of the directories too")
    tokenizer_dir: str = flag(help="Hugging Face tokenizer folder")
    data_output_dirs: str | None = flag(
        None,
        help="one folder that gets the subfolders jsonl and arrow (train on arrow); data_output_dirs if no "
        "output folder is given",
    )
    data_jsonl_output_dir: str | None = flag(None, help="folder for the packed rows as jsonl")
    data_arrow_output_dir: str | None = flag(None, help="folder for the packed rows as arrow, for training")
    data_cache_dir: str | None = flag(
        None, help="folder for scratch files, which are removed at the end; beside the output if not given"
    )
    max_length: int = flag(4096, help="longest row in tokens")
    num_spliced_dataset_bins: int = flag(10, help="number of parts; each gets its share of every sub-dataset")
    long_documents: str = flag(
        "split",
        help="documents longer than max_length: cut into rows, cut off, or one random window of them",
        choices=("split", "truncate", "sample"),
    )
    packing: str = flag(
        "best_fit",
        help="best_fit cuts no document that fits; concat makes one stream and cuts it; none: one document a row",
        choices=("best_fit", "concat", "none"),
    )
    data_format: str = flag("auto", help="record format of all files; auto recognises it file by file and says so")
    text_field: str | None = flag(None, help="field that holds the text of plain text records")
    ignore_fields: str | None = flag(
        None, help="comma-separated fields to leave out that would be refused, such as tools or reasoning_content"
    )
    on_bad_record: str = flag(
        "stop",
        help="stop at the first bad record, or skip bad records, count them by reason and list them in rejects.jsonl",
        choices=("stop", "skip"),
    )
    deduplicate: str = flag(
        "none", help="drop texts that equal an earlier one, or nearly do", choices=("none", "exact", "near")
    )
    near_duplicate_threshold: float = flag(0.8, help="Jaccard similarity of 5-grams from which texts are nearly equal")
    quality: str = flag("none", help="drop texts by rules; gopher: repetition", choices=("none", "gopher"))
    min_characters: int | None = flag(None, help="drop shorter texts")
    max_characters: int | None = flag(None, help="drop longer texts")
    decontaminate: str | None = flag(
        None, help="comma-separated files of evaluation questions; texts that share 13 words with one are dropped"
    )
    sub_dataset_by: str = flag(
        "input", help="what is spread evenly over the bins and weighed by mixture", choices=("input", "category")
    )
    mixture: str | None = flag(
        None,
        help="NAME=WEIGHT,...: shares of the sub-datasets in all tokens; none is shortened, others are repeated",
    )
    validation_fraction: float = flag(
        0.0, help="share of each sub-dataset's documents that goes into the part validation and into no bin"
    )
    seed: int = flag(42, help="seed of the shuffles; the result does not depend on num_workers")
    num_workers: int | None = flag(None, help="processes that tokenise; the number of cores if not given")
    encoder: str = flag(
        "auto",
        help="library that tokenises texts: auto takes sentencepiece, which is faster, where it gives the same ids",
        choices=("auto", "tokenizers"),
    )
    engine: str = flag("local", help="where the work runs: this machine, or a Ray cluster", choices=("local", "ray"))
    ray_address: str | None = flag(None, help="address of a running Ray cluster; a local one is started if not given")
    overwrite: bool = flag(False, help="replace an older prepared dataset in the output folders")

    def __post_init__(self) -> None:
        """Check the values against each other.

        Raises:
            UserError: a number out of range, or output folders that contradict each other or the input.
        """
        _check_range("max_length", self.max_length, 2)
        _check_range("num_spliced_dataset_bins", self.num_spliced_dataset_bins, 1, MAX_BINS)
        _check_range("seed", self.seed, 0)
        if not 0 <= self.validation_fraction < 1:
            raise UserError(f"--validation_fraction must be 0 to less than 1, not {self.validation_fraction}")
        if self.ray_address and self.engine != "ray":
            raise UserError("--ray_address needs --engine ray")
        if self.num_workers is not None:
            _check_range("num_workers", self.num_workers, 1)
        if self.data_output_dirs and (self.data_jsonl_output_dir or self.data_arrow_output_dir):
            raise UserError(
                "--data_output_dirs excludes --data_arrow_output_dir and --data_jsonl_output_dir; "
                "give the one or the others"
            )
        if self.data_jsonl_output_dir and not self.data_arrow_output_dir:
            raise UserError("--data_jsonl_output_dir needs --data_arrow_output_dir, which training reads")
        self._check_input_dirs()
        self._check_overlap()

    def _check_input_dirs(self) -> None:
        inputs = self.inputs()
        if not inputs:
            raise UserError("--data_input_dirs is empty; expected comma-separated directories, files or globs")
        resolved = [Path(spec).resolve() for spec in inputs]
        for position, path in enumerate(resolved):
            if path in resolved[:position]:
                raise UserError(f"--data_input_dirs names {inputs[position]} twice")

    def _check_overlap(self) -> None:
        """Outputs are replaced as whole folders, so none may hold an input or another output."""
        named = [("--data_arrow_output_dir", self.arrow_dir())]
        jsonl = self.jsonl_dir()
        if jsonl is not None:
            named.append(("--data_jsonl_output_dir", jsonl))
        precious = [("--data_input_dirs", Path(spec)) for spec in self.inputs()]
        precious.append(("--tokenizer_dir", Path(self.tokenizer_dir)))
        for name, output in named:
            for other_name, other in [*precious, *(entry for entry in named if entry[0] != name)]:
                if output.resolve() in (other.resolve(), *other.resolve().parents):
                    raise UserError(f"{name} {output} holds {other_name} {other}; choose separate folders")

    def inputs(self) -> list[str]:
        """The inputs (directories, files or globs), in the order given."""
        return [text.strip() for text in self.data_input_dirs.split(",") if text.strip()]

    def ignored_fields(self) -> tuple[str, ...]:
        """Names of the fields to leave out, sorted."""
        return tuple(sorted({text.strip() for text in (self.ignore_fields or "").split(",") if text.strip()}))

    def _output_root(self) -> Path | None:
        if self.data_arrow_output_dir:
            return None
        return Path(self.data_output_dirs or "data_output_dirs")

    def arrow_dir(self) -> Path:
        """Where the parts go."""
        root = self._output_root()
        return root / "arrow" if root else Path(str(self.data_arrow_output_dir))

    def jsonl_dir(self) -> Path | None:
        """Where the jsonl files go; None when only an arrow folder was asked for."""
        root = self._output_root()
        if root:
            return root / "jsonl"
        return Path(self.data_jsonl_output_dir) if self.data_jsonl_output_dir else None

    def cache_dir(self) -> Path:
        """Where scratch files go."""
        if self.data_cache_dir:
            return Path(self.data_cache_dir)
        root = self._output_root()
        return root / "cache" if root else self.arrow_dir().resolve().parent

    def worker_count(self) -> int:
        """Number of processes that tokenise."""
        return self.num_workers or len(os.sched_getaffinity(0))

    def template_name(self) -> str | None:
        """The chat template; None, because pretraining has none."""
        return None


@dataclass(kw_only=True)
class SftPrepareConfig(PretrainPrepareConfig):
    """Flags of prepare_sft_dataset.py."""

    llama_version: int = flag(3, help="2 or 3: selects the chat template colossal_llama_2 or colossal_llama_3")
    chat_template: str | None = flag(
        None,
        help="colossal_llama_2, colossal_llama_3, chatml, llama3, open_llama, or tokenizer for the tokenizer's own; "
        "overrides llama_version",
    )

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: as for pretraining, or a version that has no template.
        """
        super().__post_init__()
        if self.llama_version not in (2, 3):
            raise UserError(f"--llama_version must be 2 or 3, not {self.llama_version}")

    def template_name(self) -> str:
        """The chat template's registered name."""
        return self.chat_template or f"colossal_llama_{self.llama_version}"


def _check_range(name: str, value: int, lowest: int, highest: int | None = None) -> None:
    if value < lowest or (highest is not None and value > highest):
        allowed = f"at least {lowest}" if highest is None else f"{lowest} to {highest}"
        raise UserError(f"--{name} must be {allowed}, not {value}")
