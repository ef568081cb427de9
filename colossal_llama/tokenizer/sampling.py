"""A bounded random sample of a corpus, split into text to find pieces in, to rank them on, and to measure on."""

import heapq
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

PASSAGE_CHARACTERS = 10_000
"""Longer texts are cut at line ends into passages of at most this, so that a book is not one draw."""

MEASURED_SHARE = 0.25
"""Share of the held-out text that only measures; the rest of it ranks."""

FINDING, RANKING, MEASURING = range(3)


@dataclass(frozen=True)
class MiningCorpus:
    """Texts by their use; with nothing held out all three are the same list.

    Attributes:
        finding: candidates are found in these.
        ranking: candidates are ranked by the tokens that they save on these.
        measuring: what is reported is measured on these.
        passages_read: passages of the whole corpus, and their characters.
        characters_read: the same.
        passages_kept: passages of the sample.
        characters_kept: their characters.
    """

    finding: list[str]
    ranking: list[str]
    measuring: list[str]
    passages_read: int
    characters_read: int
    passages_kept: int
    characters_kept: int

    def describe(self) -> str:
        """One line for people: what was read, kept, and used for what."""
        sizes = [sum(map(len, texts)) for texts in (self.finding, self.ranking, self.measuring)]
        use = f"found on {sizes[0]:,} characters, ranked on {sizes[1]:,}, measured on {sizes[2]:,} others"
        if self.finding is self.measuring:
            use = "found, ranked and measured on the same text: figures are not those of new text"
        kept = f"; sampled {self.passages_kept:,} with {self.characters_kept:,}"
        everything = self.passages_kept == self.passages_read
        return f"read {self.passages_read:,} passages, {self.characters_read:,} characters" + (
            f"; {use}" if everything else f"{kept}; {use}"
        )


def sample_corpus(texts: Iterable[str], held_out_fraction: float, max_characters: int, seed: int) -> MiningCorpus:
    """Draw a uniform sample of at most ``max_characters`` and split it; the same input gives the same result.

    Every passage draws a random number and those with the smallest are kept, which is a uniform sample without
    replacement whose size need not be known before; memory holds the sample only. A whole text goes to one use,
    unless it is longer than :data:`PASSAGE_CHARACTERS`.

    Args:
        texts: the corpus, read once.
        held_out_fraction: share of the passages that no candidate is found in; 0 uses all text for everything.
        max_characters: the sample's size, for all uses together.
        seed: of the draws.
    """
    random_numbers = random.Random(seed)
    kept: list[tuple[float, int, int, str]] = []
    limit, total, passages, characters = 1.0, 0, 0, 0
    for text in texts:
        for passage in cut_passages(text):
            passages += 1
            characters += len(passage)
            draw, use = random_numbers.random(), _use(random_numbers.random(), held_out_fraction)
            if draw >= limit:
                continue
            heapq.heappush(kept, (-draw, passages, use, passage))
            total += len(passage)
            while total > max_characters and len(kept) > 1:
                worst = heapq.heappop(kept)
                limit = -worst[0]
                total -= len(worst[3])
    uses: list[list[str]] = [[], [], []]
    for _, _, use, passage in sorted(kept, key=lambda entry: entry[1]):
        uses[use].append(passage)
    if held_out_fraction == 0:
        uses = [uses[FINDING]] * 3
    return MiningCorpus(uses[FINDING], uses[RANKING], uses[MEASURING], passages, characters, len(kept), total)


def _use(draw: float, held_out_fraction: float) -> int:
    if draw >= held_out_fraction:
        return FINDING
    return MEASURING if draw < held_out_fraction * MEASURED_SHARE else RANKING


def cut_passages(text: str, longest: int = PASSAGE_CHARACTERS) -> Iterator[str]:
    """Cut ``text`` behind line ends into passages of at most ``longest`` characters; a longer line is cut anywhere."""
    start = 0
    while len(text) - start > longest:
        end = text.rfind("\n", start, start + longest) + 1 or start + longest
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]
