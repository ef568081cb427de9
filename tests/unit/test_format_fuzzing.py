"""A short run of the format fuzzer, and proof that it notices faults."""

from pathlib import Path

import pytest

from colossal_llama.data.formats.parsed import Message
from colossal_llama.data.tokenization import DocumentTokenizer
from tests.helpers.format_fuzzing import SMALL_KITS, FaultError, fuzz, templates_for
from tests.helpers.plain_rendering import OWN_TEMPLATES, TEMPLATES
from tests.helpers.record_strategies import RECORDS


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RECORDS)
def test_random_records_are_learned_as_they_mean(name: str, tmp_path: Path) -> None:
    seen = fuzz(name, 7, 12, SMALL_KITS, tmp_path)
    assert seen["files"] >= 20
    assert seen["kept"] > 0
    assert seen["damaged"] > 0


def test_every_format_and_template_is_fuzzed() -> None:
    from colossal_llama.data.chat_templates import CHAT_TEMPLATES
    from colossal_llama.data.formats import FORMATS

    assert set(RECORDS) == set(FORMATS)
    assert set(TEMPLATES) == {*CHAT_TEMPLATES.names(), *OWN_TEMPLATES} - {"tokenizer"}
    assert {template for name in RECORDS for template in templates_for(name)} == {*TEMPLATES, None}


@pytest.mark.filterwarnings("ignore")
def test_planted_faults_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kits = SMALL_KITS[:1]
    with monkeypatch.context() as patch:
        patch.setattr(Message, "without_loss", classmethod(lambda cls, content: cls("assistant", content)))
        with pytest.raises(FaultError, match=r"learned[\s\S]*\nformat sharegpt, seed 3, tokenizer byte-level"):
            fuzz("sharegpt", 3, 100, kits, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("colossal_llama.data.formats.moss._unmarked", lambda text: text)
        with pytest.raises(FaultError, match="format moss, seed 3"):
            fuzz("moss", 3, 100, kits, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("colossal_llama.data.formats.instructions.array", lambda record, name, of: 1 / 0)
        with pytest.raises(FaultError, match="ZeroDivisionError"):
            fuzz("alpaca", 3, 100, kits, tmp_path)
    with monkeypatch.context() as patch:
        tokenize = DocumentTokenizer.tokenize
        patch.setattr(DocumentTokenizer, "tokenize", lambda self, samples: tokenize(self, samples[:1] * len(samples)))
        with pytest.raises(FaultError, match="expected"):
            fuzz("text", 3, 100, kits, tmp_path)
