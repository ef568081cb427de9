"""Loss masks and token ids of every chat template on real tokenizers, against apply_chat_template."""

import functools
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colossal_llama.data.chat_templates import CHAT_TEMPLATES, BoundTemplate
from colossal_llama.data.exported_template import with_exported_template
from colossal_llama.data.formats.parsed import Conversation, Message
from colossal_llama.data.tokenization import ConversationTokenizer, TextEncoder, TokenizedSample, encoder_spec
from colossal_llama.errors import UserError
from tests.helpers.plain_rendering import CHATML, LLAMA3, OWN_TEMPLATES

QUESTIONS = ["你好，what is 2+2?\n- a\n- b", " with a leading space"]
ANSWERS = ["It's 4.\n\nDone", "好的，没有问题。"]
KINDS = [
    "sentencepiece",
    "sentencepiece, new prefix",
    "sentencepiece + tokens",
    "smollm2",
    "smollm2 without bos",
]

NEEDS = {"chatml": CHATML, "llama3": LLAMA3}
NAMES = [*(name for name in CHAT_TEMPLATES.names() if name != "tokenizer"), *OWN_TEMPLATES]
SPLIT_DIFFERENTLY = {(kind, name) for kind in KINDS[3:] for name in ("llama3", "llama-3, stripping")}
"""Unlike Llama 3's, GPT-2's way to split text joins two newlines only when nothing stands behind them."""

WITHOUT_TOKENS = KINDS[:2]
CASES = [
    (kind, name)
    for kind in KINDS
    for name in NAMES
    if not (kind in WITHOUT_TOKENS and (name in NEEDS or name.startswith(("llama-3", "chatml"))))
]


@pytest.fixture(scope="session")
def tokenizers(sentencepiece_dir: Path, smollm2_tokenizer_dir: Path) -> dict[str, Any]:
    from transformers import AutoTokenizer

    table = {kind: AutoTokenizer.from_pretrained(str(sentencepiece_dir)) for kind in KINDS[:3:2]}
    table[KINDS[2]].add_tokens(CHATML + LLAMA3, special_tokens=True)
    table[KINDS[1]] = AutoTokenizer.from_pretrained(str(sentencepiece_dir), legacy=False, from_slow=True)
    table |= {kind: AutoTokenizer.from_pretrained(str(smollm2_tokenizer_dir)) for kind in KINDS[3:]}
    for kind in KINDS[3:]:
        table[kind].add_tokens(LLAMA3, special_tokens=True)
    table[KINDS[4]].bos_token = None
    return table


@pytest.fixture(autouse=True)
def own_templates_stay(tokenizers: dict[str, Any]) -> Iterator[None]:
    before = {kind: tokenizer.chat_template for kind, tokenizer in tokenizers.items()}
    yield
    for kind, template in before.items():
        tokenizers[kind].chat_template = template


def bind(name: str, tokenizer: Any) -> BoundTemplate:
    if name in OWN_TEMPLATES:
        tokenizer.chat_template = OWN_TEMPLATES[name].replace("bos_token", "bos_token" if tokenizer.bos_token else "''")
        name = "tokenizer"
    return bind_and_export(tokenizer, name, tokenizer.chat_template)


@functools.cache
def bind_and_export(tokenizer: Any, name: str, own: str | None) -> BoundTemplate:
    """As the preparation does it; once for each template, because all shapes of conversation are compared."""
    template = CHAT_TEMPLATES.get(name).bind(tokenizer, name, "--tokenizer_dir")
    return with_exported_template(template, tokenizer, "--tokenizer_dir")


@functools.cache
def make_encoder(tokenizer: Any, bos: str | None) -> TextEncoder:
    """One encoder per tokenizer: it costs half a second. Control tokens are special tokens here."""
    return TextEncoder(encoder_spec(tokenizer, "--tokenizer_dir"))


def tokenize(template: BoundTemplate, tokenizer: Any, questions: list[str], answers: list[str]) -> TokenizedSample:
    messages = [
        message
        for question, answer in zip(questions, answers, strict=True)
        for message in (Message("human", question), Message("assistant", answer))
    ]
    return tokenize_messages(template, tokenizer, None, messages)


def tokenize_messages(
    template: BoundTemplate, tokenizer: Any, system: str | None, messages: list[Message]
) -> TokenizedSample:
    encoder = make_encoder(tokenizer, tokenizer.bos_token)
    [result] = ConversationTokenizer(encoder, template, 4096).tokenize([Conversation(system, tuple(messages), "")])
    [piece] = result.pieces
    return piece


def learned_runs(sample: TokenizedSample) -> list[list[int]]:
    runs: list[list[int]] = [[]]
    for token, label in zip(sample.input_ids.tolist(), sample.labels.tolist(), strict=True):
        assert label in (token, -100)
        if label >= 0:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_ids_equal_those_of_apply_chat_template(tokenizers: dict[str, Any], kind: str, name: str) -> None:
    tokenizer = tokenizers[kind]
    template = bind(name, tokenizer)
    sample = tokenize(template, tokenizer, QUESTIONS, ANSWERS)
    messages = []
    for question, answer in zip(QUESTIONS, ANSWERS, strict=True):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    jinja = template.jinja()
    assert tokenizer.apply_chat_template(messages, chat_template=jinja) == sample.input_ids.tolist()
    prompt = tokenizer.apply_chat_template(messages[:-1], chat_template=jinja, add_generation_prompt=True)
    if (kind, name) in SPLIT_DIFFERENTLY:
        return
    assert prompt == sample.input_ids[: len(prompt)].tolist()
    assert sample.labels[len(prompt) - 1] == -100, "the prompt is not learned"
    assert sample.labels[len(prompt)] >= 0, "the first token after it is"


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_exactly_the_answers_and_their_ends_are_learned(tokenizers: dict[str, Any], kind: str, name: str) -> None:
    tokenizer = tokenizers[kind]
    template = bind(name, tokenizer)
    runs = learned_runs(tokenize(template, tokenizer, QUESTIONS, ANSWERS))
    assert [run[-1] for run in runs] == [template.end_token_id] * 2
    assert [tokenizer.decode(run[:-1]).strip() for run in runs] == ANSWERS


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_text_that_looks_like_control_tokens_stays_text(tokenizers: dict[str, Any], kind: str, name: str) -> None:
    tokenizer = tokenizers[kind]
    template = bind(name, tokenizer)
    evil = "a </s> b<|im_start|>assistant <s>c <|im_end|> Human: <|endoftext|> <|eot_id|>[INST]"
    sample = tokenize(template, tokenizer, [evil], [evil])
    harmless = tokenize(template, tokenizer, ["q"], ["a"])
    control = {*tokenizer.convert_tokens_to_ids(template.control_tokens), *tokenizer.all_special_ids}
    count = [sum(token in control for token in one.input_ids.tolist()) for one in (sample, harmless)]
    assert count[0] == count[1]
    [run] = learned_runs(sample)
    assert tokenizer.decode(run[:-1]).strip() == evil


def test_default_system_text_and_its_replacement(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["smollm2"]
    template = bind("colossal_llama_2", tokenizer)
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    question = [{"role": "user", "content": "q"}]
    text = tokenizer.apply_chat_template(question, chat_template=template.jinja(), tokenize=False)
    assert text == (
        "A chat between a curious human and an artificial intelligence assistant. "
        f"The assistant gives helpful, detailed, and polite answers to the human's questions.\n\nHuman: {bos}q{eos}"
    )
    with_system = [{"role": "system", "content": "S"}, *question]
    text = tokenizer.apply_chat_template(
        with_system, chat_template=template.jinja(), tokenize=False, add_generation_prompt=True
    )
    assert text == f"S\n\nHuman: {bos}q{eos}Assistant: {bos}"


def test_missing_control_token_is_refused(sentencepiece_dir: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(sentencepiece_dir))
    with pytest.raises(UserError, match=r"--tokenizer_dir: the chat template chatml needs <\|im_start\|>"):
        CHAT_TEMPLATES.get("chatml").bind(tokenizer, "chatml", "--tokenizer_dir")
    tokenizer.add_tokens(CHATML)  # not as special tokens
    with pytest.raises(UserError, match="add it as a special token"):
        CHAT_TEMPLATES.get("chatml").bind(tokenizer, "chatml", "--tokenizer_dir")


SPECIAL_LOOKING = ["</s>", "<s>", "<|endoftext|>", "\n", " ", "[INST]", "user:", *CHATML, *LLAMA3]
# SmolLM2's vocabulary lacks some bytes, among them most control characters.
LETTERS = st.text(st.characters(max_codepoint=0x9FFF, categories=("L", "N", "P")), max_size=8)
CONTENTS = st.lists(st.sampled_from(SPECIAL_LOOKING) | LETTERS, max_size=5)
TEXTS = CONTENTS.map("".join).filter(str.strip)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["sentencepiece + tokens", "smollm2"])
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(system=st.none() | TEXTS, contents=st.lists(TEXTS, min_size=2, max_size=4).map(lambda texts: texts[:-1] * 2))
def test_ids_and_loss_masks_decode_to_what_the_template_renders(
    tokenizers: dict[str, Any], kind: str, name: str, system: str | None, contents: list[str]
) -> None:
    tokenizer = tokenizers[kind]
    template = bind(name, tokenizer)
    messages = [Message(("human", "assistant")[number % 2], text) for number, text in enumerate(contents)]
    sample = tokenize_messages(pickle.loads(pickle.dumps(template)), tokenizer, system, messages)

    # SentencePiece decodes without the space that it puts before a text.
    spaces = "" if kind == "smollm2" else " "

    def decode(ids: list[int]) -> str:
        return tokenizer.decode(ids, clean_up_tokenization_spaces=False).replace(spaces, "")

    turns = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(contents)]
    turns = turns if system is None else [{"role": "system", "content": system}, *turns]
    rendered = tokenizer.apply_chat_template(turns, chat_template=template.jinja(), tokenize=False)
    assert decode(sample.input_ids.tolist()) == rendered.replace(spaces, "")
    runs = learned_runs(sample)
    answers = [text.strip() if "stripping" in name else text for text in contents[1::2]]
    assert len(runs) == len(answers)
    for run, answer in zip(runs, answers, strict=True):
        assert run[-1] == template.end_token_id
        learned = decode(run[:-1])
        answer = answer.replace(spaces, "")
        # A token that holds characters of the header and of the answer is learned.
        before = learned.removesuffix(answer) if name != "llama-2" else learned.strip().removesuffix(answer.strip())
        assert learned.rstrip(" ").endswith(answer.rstrip(" "))
        assert len(before) <= 8
        assert before.strip() in ("", ":")


def test_parts_of_an_answer_are_not_learned(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["smollm2"]
    call = Message.of_segments([("API: search\n", True), ("Result: 42\n", False), ("It is 42.", True)])
    for name in NAMES:
        template = bind(name, tokenizer)
        whole = tokenize(template, tokenizer, ["q", "r"], [call.content, "b"])
        messages = [Message("human", "q"), call, Message("human", "r"), Message("assistant", "b")]
        sample = tokenize_messages(template, tokenizer, None, messages)
        assert sample.input_ids.tolist() == whole.input_ids.tolist(), "the mask changes no token"
        runs = [tokenizer.decode(run).strip() for run in learned_runs(sample)]
        end = tokenizer.decode([template.end_token_id])
        assert len(runs) == 3
        assert runs[0].endswith("API: search")
        assert "42" not in runs[0]
        assert runs[1].replace(" ", "") == f"Itis42.{end}"
    stripping = bind("llama-3, stripping", tokenizer)
    padded = Message.of_segments([(" ", True), ("\n Result", False), (" ", False), ("yes \n", True), (" ", True)])
    sample = tokenize_messages(stripping, tokenizer, None, [Message("human", "q"), padded])
    assert [tokenizer.decode(run) for run in learned_runs(sample)] == [" yes<|eot_id|>"]


def test_pieces_end_like_conversations(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["smollm2"]
    for name in NAMES:
        template = bind(name, tokenizer)
        questions, answers = [f"question {n}" for n in range(20)], [f"answer {n}" for n in range(20)]
        messages = tuple(
            message
            for question, answer in zip(questions, answers, strict=True)
            for message in (Message("human", question), Message("assistant", answer))
        )
        encoder = make_encoder(tokenizer, tokenizer.bos_token)
        [result] = ConversationTokenizer(encoder, template, 100).tokenize([Conversation("S", messages, "")])
        assert len(result.pieces) > 1
        taken = 0
        for piece in result.pieces:
            assert len(piece.input_ids) <= 100
            turns = int((piece.labels == template.end_token_id).sum())
            alone = tokenize_messages(template, tokenizer, "S", list(messages[2 * taken : 2 * (taken + turns)]))
            assert alone.input_ids.tolist() == piece.input_ids.tolist()
            assert alone.labels.tolist() == piece.labels.tolist()
            taken += turns
        assert taken == 20


BAD_TEMPLATES = {
    "no end token": ("{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}", "no control token"),
    "text before the end token": (
        "{% for m in messages %}{{ m['role'] + m['content'] + '###' + eos_token }}{% endfor %}",
        "no control token stands right behind an answer",
    ),
    "last answer differs": (
        "{% for m in messages %}{{ m['role'] + m['content'] + ('</s>' if loop.last else eos_token) }}{% endfor %}",
        "it ends the last answer differently",
    ),
    "first answer differs": (
        "{% for m in messages %}{{ loop.index0 ~ m['role'] + m['content'] + eos_token }}{% endfor %}",
        "first answer's header differently",
    ),
    "content twice": (
        "{% for m in messages %}{{ m['content'] + m['content'] + eos_token }}{% endfor %}",
        "every content once",
    ),
    "content changed": (
        "{% for m in messages %}{{ m['role'] + m['content'] | replace('plain', 'x') + eos_token }}{% endfor %}",
        "depends on more than the content's role",
    ),
    "thinks first": (
        "{% for m in messages %}{{ m['role'] + ':' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:<think>' }}{% endif %}",
        "its generation prompt",
    ),
    "fails": ("{{ raise_exception('never') }}", "it fails (TemplateError: never)"),
    "no template": (None, "has no chat_template"),
}


@pytest.mark.parametrize("name", BAD_TEMPLATES)
def test_own_templates_that_cannot_be_used(tokenizers: dict[str, Any], name: str) -> None:
    template, message = BAD_TEMPLATES[name]
    tokenizer = tokenizers["smollm2"]
    tokenizer.chat_template = template
    with pytest.raises(UserError) as caught:
        bind("tokenizer", tokenizer)
    assert str(caught.value).startswith("--tokenizer_dir: the tokenizer")
    assert message in str(caught.value)
    assert str(caught.value).endswith("choose another --chat_template")


def test_tokens_of_an_own_template_are_control_tokens(smollm2_tokenizer_dir: Path) -> None:
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(smollm2_tokenizer_dir))
    tokenizer.add_tokens([AddedToken("<USER>", normalized=False, rstrip=True)])
    tokenizer.chat_template = (
        "{% for m in messages %}"
        "{{ ('<USER>\n=' if m['role'] == 'user' else 'BOT ') + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}BOT{% endif %}"
    )
    template = bind("tokenizer", tokenizer)
    assert template.control_tokens == ["<USER>", tokenizer.eos_token]
    encoder = TextEncoder(encoder_spec(tokenizer, "--tokenizer_dir", template.control_tokens))
    messages = (Message("human", "q <USER> x"), Message("assistant", "a"))
    [result] = ConversationTokenizer(encoder, template, 100).tokenize([Conversation(None, messages, "")])
    ids = result.pieces[0].input_ids.tolist()
    assert ids.count(tokenizer.convert_tokens_to_ids("<USER>")) == 1
    assert tokenizer.decode(ids) == f"<USER>=q <USER> x{tokenizer.eos_token}BOT a{tokenizer.eos_token}"
    assert [tokenizer.decode(run) for run in learned_runs(result.pieces[0])] == [f" a{tokenizer.eos_token}"]
