"""Bits per UTF-8 byte against a computation by hand."""

import math
from typing import Any

import pytest
import torch

from colossal_llama.evaluation.perplexity import TextScore, plan_batches, score_texts, split_text
from colossal_llama.generation import load_for_generation
from tests.helpers.tiny import save_tiny_model

TEXTS = ["the class statement", "却说曹操", "a", "import statements are executed in two steps: find a module"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return load_for_generation(save_tiny_model(tmp_path_factory.mktemp("tiny") / "model"), "cpu")


def nats_by_hand(model: Any, tokenizer: Any, text: str) -> float:
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        log_probabilities = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)
    return -sum(log_probabilities[place, token].item() for place, token in enumerate(ids[1:]))


def test_sums_agree_with_the_definition(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    score = score_texts(model, tokenizer, TEXTS, batch_size=3)
    nats = sum(nats_by_hand(model, tokenizer, text) for text in TEXTS)
    assert score.nats == pytest.approx(nats, rel=1e-4)
    assert score.utf8_bytes == sum(len(text.encode()) for text in TEXTS)
    assert score.characters == sum(len(text) for text in TEXTS)
    assert score.tokens == sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS)
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / score.utf8_bytes, rel=1e-4)


def test_batches_and_order_do_not_matter(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    one = score_texts(model, tokenizer, TEXTS, batch_size=1)
    assert score_texts(model, tokenizer, TEXTS[::-1], batch_size=8).nats == pytest.approx(one.nats, rel=1e-5)


def test_a_uniform_model_costs_the_logarithm_of_its_vocabulary(tiny: tuple[Any, Any]) -> None:
    _, tokenizer = tiny

    class Uniform(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
            return type("Output", (), {"logits": torch.zeros(*input_ids.shape, 512)})

    score = score_texts(Uniform(), tokenizer, TEXTS)
    assert score.nats == pytest.approx(score.tokens * math.log(512))


def test_training_mode_is_restored(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    model.train()
    score_texts(model, tokenizer, ["text"])
    assert model.training
    model.eval()
    score_texts(model, tokenizer, ["text"])
    assert not model.training


def test_figures_of_a_score() -> None:
    score = TextScore(nats=8 * math.log(2), tokens=3, characters=2, utf8_bytes=4)
    assert score.bits_per_byte == pytest.approx(2.0)
    assert score.tokens_per_character == 1.5


def test_batches_hold_every_text_once_within_their_bounds() -> None:
    encoded = [[0] * length for length in (5, 90, 100, 7, 80, 30, 29, 100, 1, 300)]
    batches = plan_batches(encoded, rows=3, tokens=200)
    assert sorted(index for batch in batches for index in batch) == list(range(len(encoded)))
    assert batches[0] == [9]  # longer than a batch
    for batch in batches[1:]:
        lengths = [len(encoded[index]) for index in batch]
        assert len(batch) <= 3
        assert len(batch) * max(lengths) <= 200
        assert min(lengths) >= 0.75 * max(lengths)
    assert len(plan_batches(encoded[:3])) == 2


def test_split_text_keeps_every_character() -> None:
    assert split_text("一二三四五", 2) == ["一二", "三四", "五"]
    assert split_text("", 2) == []
