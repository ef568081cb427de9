"""Finding pieces among the runs of non-ASCII letters, for scripts written without spaces."""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FOREIGN_RUN = r"[^\x00-\x7F\p{P}\p{S}\p{Z}\p{N}\p{C}]+|[^\x00-\x7F\p{Z}\p{N}\p{C}]"
"""A run of letters outside ASCII, or one mark of punctuation outside ASCII."""


class NgramCutter:
    """A BPE over characters, trained on the runs of non-ASCII letters, which cuts other texts' runs.

    Every character of a text counts for one candidate only. Candidates never hold a space.
    """

    def __init__(self, texts: Iterable[str], size: int, max_characters: int) -> None:
        """Train on ``texts``, of which only counts of distinct runs are kept.

        Args:
            texts: the corpus.
            size: candidates of two characters or more; every character is one, too.
            max_characters: the longest candidate.
        """
        runs = count_runs(texts)
        self._cutter = _train(runs, size, max_characters) if runs else None

    def __call__(self, texts: Iterable[str]) -> Counter[str]:
        """How often each candidate is used to cut ``texts``."""
        used: Counter[str] = Counter()
        if self._cutter is not None:
            for run, times in count_runs(texts).items():
                for piece in self._cutter.encode(run).tokens:
                    used[piece] += times
        return used


def count_runs(texts: Iterable[str]) -> Counter[str]:
    """How often each run of non-ASCII letters (or single mark) occurs in ``texts``."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    splitter = Split(Regex(FOREIGN_RUN), behavior="removed", invert=True)
    runs: Counter[str] = Counter()
    for text in texts:
        # Line by line: offsets into a long text cost the library quadratic time.
        for line in text.splitlines():
            if not line.isascii():
                runs.update(run for run, _ in splitter.pre_tokenize_str(line))
    return runs


def _train(runs: Counter[str], size: int, max_characters: int) -> "Tokenizer":
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    characters = {character for run in runs for character in run}
    cutter = Tokenizer(BPE())
    trainer = BpeTrainer(
        # The alphabet is not limited: every character is a candidate. The trainer would join two in any case.
        vocab_size=len(characters) + (size if max_characters > 1 else 0),
        max_token_length=max_characters,
        min_frequency=2,
        show_progress=False,
    )
    cutter.train_from_iterator((run for run, times in runs.items() for _ in range(times)), trainer)
    return cutter
