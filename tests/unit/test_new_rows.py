"""The initialisation methods: their formulas, their seeds, identical rows, and auxiliary vectors."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama.errors import UserError
from colossal_llama.model import auxiliary, new_rows
from colossal_llama.model.auxiliary import read_auxiliary, similar_tokens, sparsemax
from colossal_llama.model.new_rows import INIT_METHODS, NewTokens, OldRows, mean_of_rows, position_weights
from tests.helpers.widening import TOKENS, llama, load, row_tensors, save, widen


def old_rows(count: int = 20, width: int = 4, **values: object) -> OldRows:
    weight = torch.randn(count, width, generator=torch.Generator().manual_seed(1)) + 0.5
    return OldRows(weight, mean_of_rows(weight, range(count)), **{"role": "input", **values})  # type: ignore[arg-type]


def rows_of(method: str, old: OldRows, tokens: NewTokens = TOKENS) -> torch.Tensor:
    return torch.cat(list(INIT_METHODS.get(method)(old, tokens)))


def tokens_of(*groups: Sequence[int], lengths: Sequence[Sequence[int]] | None = None) -> NewTokens:
    return NewTokens(range(20), range(20, 20 + len(groups)), groups, lengths or [[1] * len(one) for one in groups])


def test_mean_counts_a_sub_token_as_often_as_it_comes() -> None:
    old = old_rows()
    expected = torch.stack([old.weight[list(group)].mean(0) for group in TOKENS.sub_tokens])
    torch.testing.assert_close(rows_of("mean", old), expected)


@pytest.mark.parametrize("method", ["mean", "weighted_mean"])
def test_a_token_that_the_old_tokenizer_does_not_know_gets_the_global_mean(method: str) -> None:
    old = old_rows()
    rows = rows_of(method, old, tokens_of([3], [], [4]))
    torch.testing.assert_close(rows, torch.stack([old.weight[3], old.mean, old.weight[4]]))
    assert torch.equal(rows[1], old.mean)


def test_weights_are_characters_times_a_power_of_the_distance_to_the_role_s_end() -> None:
    tokens = tokens_of([3, 4], lengths=[[1, 3]])
    for role, (left, right) in {"input": (0.8, 3), "tied": (1, 2.4), "output": (1, 2.4)}.items():
        old = old_rows(role=role)
        expected = (left * old.weight[3] + right * old.weight[4]) / (left + right)
        torch.testing.assert_close(rows_of("weighted_mean", old, tokens)[0], expected)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=24), st.randoms(), st.sampled_from(["input", "output"]))
def test_anagrams_get_different_weights(group: list[int], shuffler, role: str) -> None:  # type: ignore[no-untyped-def]
    """For every order of the same sub-tokens; linear weights would make 1+4 equal 2+3."""
    other = list(group)
    shuffler.shuffle(other)
    lengths = {token: 1 + token % 3 for token in group}

    def shares(order: list[int]) -> np.ndarray:
        weights = [lengths[t] * w for t, w in zip(order, position_weights(len(order), role), strict=True)]  # type: ignore[arg-type]
        return np.bincount(order, weights, minlength=6) / sum(weights)

    assert (np.abs(shares(group) - shares(other)).max() > 1e-9) == (group != other)


def test_identical_rows_are_counted_and_mean_warns(tmp_path: Path) -> None:
    save(llama(), tmp_path / "source", torch.bfloat16)
    report = widen(tmp_path / "source")
    assert report.identical == {"lm_head.weight": 2, "model.embed_tokens.weight": 2}
    assert "warning: tokens with identical rows" in report.describe()
    assert "--init_method weighted_mean" in report.describe()
    rows = row_tensors(load(tmp_path / "wide"))["input"]
    assert torch.equal(rows[20], rows[23])


@pytest.mark.parametrize(("method", "identical"), [("weighted_mean", 0), ("global_mean", 4), ("gaussian", 0)])
def test_other_methods_count_too_and_do_not_warn(method: str, identical: int, tmp_path: Path) -> None:
    save(llama(), tmp_path / "source", torch.bfloat16)
    report = widen(tmp_path / "source", method=method)
    assert set(report.identical.values()) == {identical}
    assert "warning" not in report.describe()


def test_gaussian_has_mean_and_covariance_of_the_old_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_rows, "BLOCK", 7)  # sums over blocks, on both sides
    old = old_rows(count=300)
    tokens = NewTokens(range(300), range(300, 20300), [[]] * 20000, [[]] * 20000)
    rows = rows_of("gaussian", old, tokens)
    torch.testing.assert_close(rows.mean(0), old.weight.mean(0), atol=0.03, rtol=0)
    torch.testing.assert_close(torch.cov(rows.T), torch.cov(old.weight.T), atol=0.05, rtol=0)


def test_gaussian_of_rows_that_span_few_directions() -> None:
    """Fewer old rows than dimensions: the draws stay in the old rows' span."""
    old = old_rows(count=20, width=64)
    rows = rows_of("gaussian", old) - old.mean
    basis = torch.linalg.svd(old.weight - old.mean, full_matrices=False).Vh[:19]
    assert (rows - rows @ basis.T @ basis).norm() < 0.02 * rows.norm()


def test_random_has_the_model_s_initialiser_and_no_bias() -> None:
    tokens = NewTokens(range(20), range(20, 5020), [[]] * 5000, [[]] * 5000)
    rows = rows_of("random", old_rows(deviation=0.05), tokens)
    assert abs(float(rows.mean())) < 0.002
    assert abs(float(rows.std()) - 0.05) < 0.002
    assert torch.equal(rows_of("random", old_rows(width=1, is_bias=True)), torch.zeros(4, 1))


@pytest.mark.parametrize("method", ["gaussian", "random"])
def test_draws_follow_the_seed_and_differ_between_tensors(method: str, tmp_path: Path) -> None:
    drawn = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        save(llama(), tmp_path / name / "source")
        widen(tmp_path / name / "source", method=method, seed=seed)
        drawn.append({key: rows[20:] for key, rows in row_tensors(load(tmp_path / name / "wide")).items()})
    # The three models are random too, so only the draws of "random" can be compared across them.
    assert not torch.equal(drawn[0]["input"], drawn[0]["output"])
    if method == "random":
        assert torch.equal(drawn[0]["input"], drawn[1]["input"])
    assert not torch.equal(drawn[0]["input"], drawn[2]["input"])
    assert torch.equal(rows_of(method, old_rows(seed=3)), rows_of(method, old_rows(seed=3)))


def simplex_projection(scores: np.ndarray) -> np.ndarray:
    """The nearest point of the simplex, by bisection on the threshold."""
    low, high = scores.min() - 1, scores.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(scores - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(scores - high, 0)


@pytest.mark.parametrize("spread", [0.001, 0.1, 1.0])
def test_sparsemax_is_the_projection_on_the_simplex(spread: float) -> None:
    scores = spread * torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    shares = sparsemax(scores)
    expected = np.stack([simplex_projection(line.double().numpy()) for line in scores])
    np.testing.assert_allclose(shares.numpy(), expected, atol=1e-6)


VOCABULARY = {f"t{number}": number for number in range(24)}
VECTORS = {"t3": [1, 0, 0], "t4": [0, 2, 0], "t5": [0, 0, 0], "t20": [3, 3, 0], "t21": [0, 5, 0], "other": [1, 1, 1]}


def write_vectors(path: Path) -> Path:
    if path.suffix == ".npz":
        np.savez(path, tokens=np.array(list(VECTORS)), vectors=np.array(list(VECTORS.values()), dtype=np.float64))
    else:
        lines = [f"{token} {' '.join(str(x) for x in vector)} \n" for token, vector in VECTORS.items()]
        path.write_text(f"{len(VECTORS)} 3\n" + "".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["vectors.npz", "vectors.vec"])
def test_focus_combines_the_rows_of_similar_tokens(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """t20 lies between t3 and t4, t21 is as t4; t5's vector is zero; 22 and 23 have none and take their means."""
    monkeypatch.setattr(auxiliary, "_BLOCK", 1)
    vectors = read_auxiliary(write_vectors(tmp_path / name), VOCABULARY, range(20))
    found = similar_tokens(vectors, torch.tensor([20, 21]))
    assert (found.lengths.tolist(), found.numbers.tolist()) == ([2, 1], [3, 4, 4])
    assert found.weights.tolist() == pytest.approx([0.5, 0.5, 1.0])
    old = old_rows(auxiliary=vectors)
    expected = [old.weight[[3, 4]].mean(0), old.weight[4], old.weight[[3, 3, 9]].mean(0), old.weight[[5, 4, 3]].mean(0)]
    torch.testing.assert_close(rows_of("focus", old), torch.stack(expected))


def test_focus_reports_tokens_without_a_vector(tmp_path: Path) -> None:
    save(llama(), tmp_path / "source")
    vectors = read_auxiliary(write_vectors(tmp_path / "v.npz"), VOCABULARY, range(20))
    report = widen(tmp_path / "source", method="focus", auxiliary=vectors)
    assert report.without_vector == 2
    assert "2 new tokens have no auxiliary vector" in report.describe()


def test_focus_without_vectors_is_refused() -> None:
    with pytest.raises(UserError, match="--auxiliary_embeddings"):
        rows_of("focus", old_rows())


BAD_VECTORS = {
    "absent.vec": (None, "no such file"),
    "ragged.vec": (b"t1 1 2\nt2 1\n", "line 2 has 1 numbers, the first one has 2"),
    "words.vec": (b"t1 one two\n", "could not convert string"),
    "latin.vec": (b"t\xff 1 2\n", "decode"),
    "foreign.vec": (b"x 1 2\ny 1 2\n", "no vector of an old token"),
    "only_new.vec": (b"t20 1 2\n", "no vector of an old token"),
    "empty.vec": (b"", "no vector of an old token"),
    "text.npz": (b"not a zip file", "expected arrays"),
}


@pytest.mark.parametrize("name", BAD_VECTORS)
def test_bad_vector_files_are_refused_by_name(name: str, tmp_path: Path) -> None:
    content, message = BAD_VECTORS[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"--auxiliary_embeddings .*{name}") as refusal:
        read_auxiliary(tmp_path / name, VOCABULARY, range(20))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_npz_arrays_must_match(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", tokens=np.array(["t1"]), vectors=np.zeros((2, 3)))
    with pytest.raises(UserError, match=r"'tokens' has shape \(1,\) and 'vectors' \(2, 3\)"):
        read_auxiliary(tmp_path / "v.npz", VOCABULARY, range(20))
    np.savez(tmp_path / "v.npz", words=np.array(["t1"]))
    with pytest.raises(UserError, match="expected arrays 'tokens' and 'vectors'"):
        read_auxiliary(tmp_path / "v.npz", VOCABULARY, range(20))
