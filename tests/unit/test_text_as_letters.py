"""One rule for texts of users and files: the control tokens that they spell out stay letters, in every program."""

import ast
import functools
import re
from pathlib import Path
from typing import Any

import pytest

from colossal_llama.data.formats.parsed import Sample
from colossal_llama.data.tokenization import DocumentTokenizer, TextEncoder, encoder_spec
from colossal_llama.evaluation.documents import Document, Windows, score_documents
from colossal_llama.evaluation.perplexity import encode_texts
from colossal_llama.generation import PromptEncoder
from colossal_llama.tokenizer.comparison import TokenizerMeter
from colossal_llama.tokenizer.compression import CompressionCurve
from colossal_llama.tokenizer.plain_text import plain_tokenizer, text_encoder
from colossal_llama.tokenizer.text_changes import TextComparer
from tests.helpers import assets
from tests.helpers.sentencepiece_models import train_model, write_dir
from tests.helpers.tiny import save_tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = [
    "sentencepiece",
    "sentencepiece, new prefix",
    "unigram",
    "unigram, new prefix",
    "smollm2",
    "deepseek",
    "tiny",
    "without begin token",
]
CHATML = ("<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module")
def folders(
    tmp_path_factory: pytest.TempPathFactory,
    sentencepiece_dir: Path,
    smollm2_tokenizer_dir: Path,
    deepseek_tokenizer_dir: Path,
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    unigram = train_model("unigram")
    for name in ("tiny", "without"):
        (root / name).mkdir()
        save_tiny_tokenizer(root / name)
    config = root / "without" / "tokenizer_config.json"
    config.write_text(re.sub(r'"bos_token": "[^"]*",?', "", config.read_text()))
    return {
        "sentencepiece": sentencepiece_dir,
        "sentencepiece, new prefix": assets.write_sentencepiece_dir(root / "new", legacy=False),
        "unigram": write_dir(root / "unigram", unigram),
        "unigram, new prefix": write_dir(root / "unigram-new", unigram, legacy=False),
        "smollm2": smollm2_tokenizer_dir,
        "deepseek": deepseek_tokenizer_dir,
        "tiny": root / "tiny",
        "without begin token": root / "without",
    }


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer with a token of its own that is no special token by its files, but a control token by its config."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folders[request.param]))
    tokenizer.add_special_tokens({"additional_special_tokens": [*CHATML]})
    folder = tmp_path_factory.mktemp("family") / "tokenizer"
    tokenizer.save_pretrained(str(folder))
    return AutoTokenizer.from_pretrained(str(folder))


def texts_for(tokenizer: Any) -> list[str]:
    """Texts that spell out every special token at the beginning, inside of words, at the end, and alone."""
    texts = ["明月松间照，what is it?", "  two spaces\n\nand lines "]
    for token in tokenizer.all_special_tokens[:8]:
        texts += [token, f"{token}first", f"what does {token} do", f"x{token}y {token}", f" {token} \n{token}{token}"]
    return texts


def expected_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return encoder_of(tokenizer).ids(texts, at_start=True)


@functools.cache
def encoder_of(tokenizer: Any) -> TextEncoder:
    return TextEncoder(encoder_spec(tokenizer, "--tokenizer_dir"))


def start_of(tokenizer: Any) -> list[int]:
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def test_letters_are_what_the_preparation_makes(family: Any) -> None:
    texts = texts_for(family)
    samples = DocumentTokenizer(encoder_of(family)).tokenize([Sample("", text, "") for text in texts])
    expected = [[*start_of(family), *ids, family.eos_token_id] for ids in expected_ids(family, texts)]
    assert [sample.input_ids.tolist() for sample in samples] == expected
    special = {family.convert_tokens_to_ids(token) for token in family.all_special_tokens} - {family.unk_token_id}
    assert all(not special.intersection(ids) for ids in expected_ids(family, texts))


def test_held_out_texts(family: Any) -> None:
    texts = texts_for(family)
    start = family.bos_token_id if family.bos_token_id is not None else family.eos_token_id
    assert encode_texts(family, texts) == [[start, *ids] for ids in expected_ids(family, texts)]
    assert encode_texts(family, []) == []


@pytest.mark.parametrize("style", ["text", "pretrained"])
def test_prompts(family: Any, style: str) -> None:
    encoder = PromptEncoder(family)
    ending = "\n\n->\n\n" if style == "pretrained" else ""
    for text in texts_for(family):
        [ids] = expected_ids(family, [text + ending])
        assert encoder.prompt(text, style) == start_of(family) + ids


def test_what_the_harness_is_given(family: Any) -> None:
    texts = texts_for(family)
    plain = plain_tokenizer(family)
    expected = expected_ids(family, texts)
    assert [plain.encode(text, add_special_tokens=False) for text in texts] == expected
    assert plain(texts, add_special_tokens=False)["input_ids"] == expected
    # What the tokenizer itself puts around a text stays.
    assert plain.encode("a b") == family.encode("a b")
    assert plain.decode(plain.encode("a b")) == family.decode(family.encode("a b"))


def test_reports_on_tokenizers(family: Any) -> None:
    texts = texts_for(family)
    tokens = sum(map(len, expected_ids(family, texts)))
    meter = TokenizerMeter("one", family, "--tokenizers")
    meter.measure("all", texts)
    assert meter.total.tokens == tokens
    comparison = TextComparer(family, family).compare("texts", texts)
    assert (comparison.old_tokens, comparison.new_tokens) == (tokens, tokens)
    curve = CompressionCurve(Path(family.name_or_path), [], texts)
    assert curve.at(0).tokens == tokens


def test_control_tokens_become_tokens_where_that_is_asked_for(family: Any) -> None:
    text = f"what does {family.eos_token} do"
    assert family.eos_token_id in PromptEncoder(family, parse_special=True).prompt(text, "text")
    assert family.eos_token_id in encode_texts(family, [text], parse_special=True)[0][1:]
    assert text_encoder(family, parse_special=True)([text]) == [family.encode(text, add_special_tokens=False)]


@pytest.mark.parametrize("legacy", [True, False])
def test_slow_tokenizers(legacy: bool, tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor
    from transformers import AutoTokenizer

    folder = assets.write_sentencepiece_dir(tmp_path / "tokenizer", legacy=legacy)
    slow = AutoTokenizer.from_pretrained(str(folder), use_fast=False)
    assert not slow.is_fast
    texts = ["what does </s> do", "x<s>y"]
    expected = [SentencePieceProcessor(str(folder / "tokenizer.model")).encode(text) for text in texts]
    assert [PromptEncoder(slow).prompt(text, "text")[1:] for text in texts] == expected
    assert [ids[1:] for ids in encode_texts(slow, texts)] == expected
    assert plain_tokenizer(slow).encode(texts[0], add_special_tokens=False) == expected[0]


def test_evaluated_tokens_and_bytes(tmp_path: Path) -> None:
    from colossal_llama.generation import load_for_generation
    from tests.helpers.tiny import save_tiny_model

    model, tokenizer = load_for_generation(save_tiny_model(tmp_path / "model"), "cpu")
    text = "a </s> b <s> c"
    [letters] = expected_ids(tokenizer, [text])
    scores = {
        parse: score_documents(model, tokenizer, [Document(text, "x")], Windows(100, 100, parse)).sums[1, 0]
        for parse in (False, True)
    }
    assert scores[False] == len(letters)
    assert scores[True] == len(tokenizer.encode(text, add_special_tokens=False)) < scores[False]


ALLOWED = {
    "colossal_llama/tokenizer/plain_text.py": "the rule itself",
    "colossal_llama/generation/prompts.py": "renders a template; encodes its text where control tokens are asked for",
    "colossal_llama/data/own_template.py": "renders a template as text",
    "colossal_llama/data/exported_template.py": "compares a template's ids with those of the preparation",
}


def asks_a_tokenizer(call: ast.Call) -> bool:
    """Whether a call is one of transformers' ways to encode text: the tokenizer itself, or its chat template."""
    name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
    return name in ("tokenizer", "_tokenizer", "encode_plus", "batch_encode_plus", "apply_chat_template")


def test_no_other_module_asks_a_tokenizer_itself() -> None:
    found = set()
    for folder in ("colossal_llama", "scripts", "benchmarks"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            calls = [node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Call)]
            found |= {(str(file.relative_to(ROOT)), call.lineno) for call in calls if asks_a_tokenizer(call)}
    assert {place for place in found if place[0] not in ALLOWED} == set()
    assert {place[0] for place in found} <= set(ALLOWED)
