"""Confidence intervals of ratios of sums over documents."""

import math

import numpy as np
import pytest

from colossal_llama.evaluation.bootstrap import Interval, interval, resampled_sums
from colossal_llama.evaluation.documents import (
    BYTES,
    NATS,
    TOKENS,
    DocumentScores,
    change_by_category,
    figures_by_category,
)


def scores(nats: list[float], categories: list[str] | None = None, tokens: list[float] | None = None) -> DocumentScores:
    """Documents of 100 bytes and characters."""
    size = [100.0] * len(nats)
    return DocumentScores(categories or ["a"] * len(nats), np.array([nats, tokens or size, size, size]))


def test_the_interval_of_a_mean_is_the_textbooks() -> None:
    values = np.random.default_rng(0).normal(5.0, 2.0, 400)
    draws = resampled_sums(np.stack([values, np.ones(400)]), 4000, seed=1)
    found = interval(values.mean(), draws[:, 0] / draws[:, 1])
    error = values.std(ddof=1) / math.sqrt(400)
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_draws_are_repeatable_and_shared_by_the_columns() -> None:
    columns = np.arange(12.0).reshape(1, 12)
    draws = resampled_sums(np.concatenate([columns, 3 * columns]), 50, seed=7)
    assert np.array_equal(draws, resampled_sums(np.concatenate([columns, 3 * columns]), 50, seed=7))
    assert np.allclose(draws[:, 1], 3 * draws[:, 0])
    assert len(set(draws[:, 0])) > 10


def test_figures_of_categories_and_of_all() -> None:
    one = scores([100.0, 300.0, 50.0], ["law", "law", "news"], [20.0, 30.0, 10.0])
    figures = figures_by_category(one, 200, 0)
    assert list(figures) == ["law", "news", "(all)"]
    assert figures["law"].bits_per_byte.value == pytest.approx(400 / math.log(2) / 200)
    assert figures["law"].perplexity.value == pytest.approx(math.exp(400 / 50))
    assert figures["law"].bits_per_byte.low == pytest.approx(100 / math.log(2) / 100)
    assert figures["(all)"].bits_per_byte.value == pytest.approx(450 / math.log(2) / 300)
    assert (figures["(all)"].tokens, figures["(all)"].documents) == (60, 3)
    assert figures["(all)"].tokens_per_character == pytest.approx(0.2)


def test_one_document_has_no_interval() -> None:
    (figures,) = figures_by_category(scores([100.0]), 200, 0).values()
    assert figures.bits_per_byte == Interval(100 / math.log(2) / 100)
    assert figures.bits_per_byte.show(2) == "1.44"


def test_changes_are_paired() -> None:
    """Documents that differ a lot, and a second model that is a tenth better on each."""
    nats = list(np.random.default_rng(3).uniform(20, 400, 30))
    before, after = scores(nats), scores([0.9 * one for one in nats])
    (alone,) = figures_by_category(after, 500, 0).values()
    (change,) = change_by_category(before, after, 500, 0).values()
    assert alone.bits_per_byte.high is not None
    assert alone.bits_per_byte.low is not None
    assert alone.bits_per_byte.high - alone.bits_per_byte.low > 0.3
    for bound in (change.relative.value, change.relative.low, change.relative.high):
        assert bound == pytest.approx(-0.1)
    assert change.bits_per_byte.value == pytest.approx(-0.1 * sum(nats) / math.log(2) / 3000)
    assert change.tokens == 0.0


def test_a_model_does_not_differ_from_itself() -> None:
    one = scores([10.0, 200.0, 30.0, 40.0], ["a", "b", "a", "b"])
    changes = change_by_category(one, one, 100, 0)
    assert list(changes) == ["a", "b", "(all)"]
    for change in changes.values():
        assert (change.relative.value, change.relative.low, change.relative.high) == (0.0, 0.0, 0.0)


def test_scores_survive_json() -> None:
    one = scores([10.0, 200.0], ["a", "b"])
    again = DocumentScores.from_json(one.as_json())
    assert again.categories == one.categories
    assert np.array_equal(again.sums[[NATS, TOKENS, BYTES]], one.sums[[NATS, TOKENS, BYTES]])
