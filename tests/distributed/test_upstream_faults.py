"""Silent faults of Colossal-AI 0.5.0: what we ship is right, and taking the remedy out shows that it is needed.

Where a test takes a remedy out and finds nothing wrong any more, upstream has mended it: delete the remedy.
"""

import pytest
import torch

from colossal_llama.checkpoint.piece_files import PIECE_FILES, StoredPieces
from tests.distributed.cases import SHARD, SP
from tests.distributed.test_plugins import COMMON, flags, load_weights
from tests.helpers.launching import read_grad_norms, read_losses, run_training, train
from tests.helpers.reference import train_reference
from tests.helpers.tiny import save_rows, save_tiny_model

FP32 = ("--mixed_precision", "fp32")
BF16 = ("--mixed_precision", "bf16")
TP2 = ("--plugin", "3d", "--zero", "0", "--tp", "2", "--batch_size", "4")
PP2 = ("--plugin", "3d", "--zero", "0", "--pp", "2", "--batch_size", "4")


def share_of_signs(before, after, expected):
    """Share of the parameters that moved in the direction of the reference's first Adam step."""
    agree = total = 0
    for name, start in before.items():
        moved = expected[name] - start
        large = moved.abs() > 0.9 * moved.abs().max()
        agree += (torch.sign(after[name].float() - start)[large] == torch.sign(moved)[large]).sum().item()
        total += large.sum().item()
    return agree / total


def test_sequence_parallelism_is_causal_only_with_the_remedy(tmp_path, tiny_model, rows_1_step, reference_1_step):
    arguments = flags(tiny_model, rows_1_step, *FP32, *TP2, *SP, "split_gather")
    train(tmp_path, arguments, environment={"UNDO": "eager"})
    assert read_losses(tmp_path)[0] != pytest.approx(reference_1_step.losses[0], rel=1e-4)


def test_ring_gradients_are_right_only_with_the_remedy(tmp_path, tiny_model, rows_1_step, reference_1_step):
    arguments = flags(tiny_model, rows_1_step, *FP32, *TP2, *SP, "ring")
    before = load_weights(tiny_model)
    shares = {}
    for name, environment in (("with", {}), ("without", {"UNDO": "_fix_ring_gather"})):
        save_dir = train(tmp_path / name, arguments, environment=environment)
        shares[name] = share_of_signs(before, load_weights(save_dir / "modeling"), reference_1_step.weights)
    assert shares["with"] > 0.999
    assert shares["without"] < 0.95


def test_rope_frequencies_stay_fp32_only_with_the_remedy(tmp_path, tiny_model, rows_1_step):
    arguments = flags(tiny_model, rows_1_step, *BF16, "--plugin", "zero2", "--batch_size", "2")
    dump = {"DUMP_LOGITS": str(tmp_path / "logits.pt")}
    train(tmp_path / "with", arguments, environment=dump)
    outputs = ["--save_dir", str(tmp_path / "without"), "--tensorboard_dir", str(tmp_path / "logs")]
    outputs += ["--config_file", str(tmp_path / "config.json")]
    failed = run_training([*arguments, *outputs], environment=dump | {"UNDO": "rope"})
    assert failed.returncode != 0
    assert "RoPE frequencies are {torch.bfloat16}" in failed.stderr


def test_resume_is_exact_only_with_the_masters(tmp_path, tiny_model, rows_20_steps):
    arguments = flags(
        tiny_model, rows_20_steps, *BF16, "--plugin", "zero2", "--batch_size", "2", "--save_interval", "10"
    )
    save_dir = train(tmp_path / "whole", arguments)
    resume = ["--load_checkpoint", str(save_dir / "epoch-0_step-10")]
    train(tmp_path / "resumed", [*arguments, *resume], environment={"UNDO": "masters"})
    assert read_losses(tmp_path / "resumed") != read_losses(tmp_path / "whole")[10:]


@pytest.mark.parametrize("chunks", [{}, SHARD], ids=["whole", "sharded"])
def test_gemini_weighs_all_micro_batches_alike(chunks, tmp_path, tiny_model, rows_1_step, reference_1_step):
    arguments = flags(
        tiny_model, rows_1_step, *BF16, "--plugin", "gemini", "--batch_size", "1", "--accumulation_steps", "2"
    )
    train(tmp_path / "with", arguments, environment=chunks)
    assert read_losses(tmp_path / "with") == pytest.approx(reference_1_step.losses, abs=0.02)
    assert read_grad_norms(tmp_path / "with") == pytest.approx(reference_1_step.grad_norms, rel=0.03)
    if not chunks:
        train(tmp_path / "without", arguments, environment={"UNDO": "_fix_gemini_accumulation"})
        assert read_grad_norms(tmp_path / "without") != pytest.approx(reference_1_step.grad_norms, rel=0.2)


def test_gemini_clips_on_the_host(tmp_path, tiny_model, rows_1_step):
    """Adam's second moment shows the gradient's scale: clipping by 100 makes it 10,000 times smaller."""
    moments = {}
    for limit in ("0", "0.01"):
        folder = tmp_path / f"limit-{limit}"
        arguments = flags(
            tiny_model, rows_1_step, *BF16, "--plugin", "gemini", "--batch_size", "2",
            "--gradient_clipping", limit, "--save_interval", "1",
        )  # fmt: skip
        save_dir = train(folder, arguments, environment=SHARD)
        stored = StoredPieces(list((save_dir / "epoch-0_step-1" / "optimizer").glob(PIECE_FILES)))
        squares = [stored.whole(key).sum() for key in stored.keys if key.startswith("exp_avg_sq/")]
        moments[limit] = sum(squares).item()
    norm = read_grad_norms(tmp_path / "limit-0.01")[0]
    assert moments["0.01"] == pytest.approx(moments["0"] * (0.01 / norm) ** 2, rel=0.1)


@pytest.mark.parametrize(
    "layout",
    [TP2, PP2, ("--plugin", "zero2", "--batch_size", "2"), ("--plugin", "gemini", "--batch_size", "2")],
    ids=["tp2", "pp2", "zero2", "gemini"],
)
def test_vocabulary_that_is_no_multiple_of_64(layout, tmp_path):
    model = save_tiny_model(tmp_path / "model", vocab_size=500)
    rows = save_rows(tmp_path / "rows", 12, vocab_size=500)
    arguments = flags(model, rows, *BF16, *layout, "--save_interval", "1")
    save_dir = train(tmp_path / "whole", arguments, environment=SHARD)
    for folder in (save_dir / "modeling", save_dir / "epoch-0_step-1" / "modeling"):
        assert load_weights(folder)["lm_head.weight"].shape == (500, 64)
    resume = ["--load_checkpoint", str(save_dir / "epoch-0_step-1")]
    train(tmp_path / "resumed", [*arguments, *resume], environment=SHARD)
    assert read_losses(tmp_path / "resumed") == read_losses(tmp_path / "whole")[1:]


def test_vocabulary_that_tp_does_not_divide_is_refused(tmp_path):
    model = save_tiny_model(tmp_path / "model", vocab_size=501)
    rows = save_rows(tmp_path / "rows", 4, vocab_size=501)
    failed = run_training(flags(model, rows, *BF16, *TP2, "--config_file", str(tmp_path / "config.json")))
    assert failed.returncode != 0
    assert "--tp 2 does not divide the vocabulary of 501" in failed.stderr
    assert "--pad_to_multiple_of" in failed.stderr


def test_pipeline_stage_without_anything_to_train_does_not_hang(tmp_path):
    """Of three stages, the middle one holds only frozen layers."""
    model = save_tiny_model(tmp_path / "model", layers=3)
    rows = save_rows(tmp_path / "rows", 8)
    arguments = ["--plugin", "3d", "--zero", "0", "--pp", "3", "--batch_size", "4", "--freeze_non_embeds_params"]
    save_dir = train(tmp_path, flags(model, rows, *FP32, *arguments), processes=3)
    expected = train_reference(model, rows, 4, 1e-3, trainable=("embed_tokens", "lm_head"))
    assert read_losses(tmp_path) == pytest.approx(expected.losses, rel=1e-5)
    assert read_grad_norms(tmp_path) == pytest.approx(expected.grad_norms, rel=1e-4)
    before, after = load_weights(model), load_weights(save_dir / "modeling")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"model.embed_tokens.weight", "lm_head.weight"}


@pytest.mark.parametrize(
    "layout",
    [
        (*FP32, "--plugin", "ddp", "--batch_size", "2"),
        (*FP32, "--plugin", "zero2", "--batch_size", "2"),
        (*FP32, *TP2),
        (*FP32, *PP2),
        (*FP32, "--plugin", "3d", "--zero", "0", "--pp", "2", "--batch_size", "2", "--accumulation_steps", "2"),
        (*BF16, "--plugin", "gemini", "--batch_size", "2"),
    ],
    ids=["ddp", "zero2", "tp2", "pp2", "pp2-accumulate", "gemini"],
)
def test_tied_embeddings_train_and_save(layout, tmp_path, tiny_tied_model, rows_1_step):
    save_dir = train(tmp_path, ["--pretrained", str(tiny_tied_model), "--dataset", str(rows_1_step), *COMMON, *layout],
                     environment=SHARD)  # fmt: skip
    expected = train_reference(tiny_tied_model, rows_1_step, 4, 1e-3)
    tolerance = 1e-4 if layout[1] == "fp32" else 0.03
    assert read_losses(tmp_path) == pytest.approx(expected.losses, rel=tolerance)
    assert read_grad_norms(tmp_path) == pytest.approx(expected.grad_norms, rel=tolerance)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(save_dir / "modeling"), torch_dtype="auto")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    share = share_of_signs(load_weights(tiny_tied_model), model.state_dict(), expected.weights)
    assert share > 0.98


@pytest.mark.parametrize(
    "layout",
    [
        ("--plugin", "ddp", "--batch_size", "2"),
        ("--plugin", "zero2", "--batch_size", "2"),
        ("--plugin", "gemini", "--batch_size", "2"),
        TP2,
    ],
    ids=["ddp", "zero2", "gemini", "tp2"],
)
def test_fp16_trains_and_resumes_with_its_loss_scale(layout, tmp_path, tiny_model, rows_20_steps, reference_20_steps):
    arguments = flags(tiny_model, rows_20_steps, "--mixed_precision", "fp16", *layout, "--save_interval", "10")
    save_dir = train(tmp_path / "whole", arguments, environment=SHARD)
    losses = read_losses(tmp_path / "whole")
    assert losses == pytest.approx(reference_20_steps.losses, abs=0.05)
    resume = ["--load_checkpoint", str(save_dir / "epoch-0_step-10")]
    train(tmp_path / "resumed", [*arguments, *resume], environment=SHARD)
    assert read_losses(tmp_path / "resumed") == losses[10:]


def test_neftune_under_tensor_and_pipeline_parallelism(tmp_path, tiny_model, rows_1_step, reference_1_step):
    """Tensor-parallel ranks add the same noise; the pipeline's first stage adds it per micro-batch."""
    losses = {}
    for name, layout in (("tp2", TP2), ("pp2", PP2), ("one", ("--plugin", "ddp", "--batch_size", "4"))):
        train(
            tmp_path / name,
            flags(tiny_model, rows_1_step, *FP32, *layout, "--use_neft"),
            processes=1 if name == "one" else 2,
        )
        losses[name] = read_losses(tmp_path / name)[0]
    assert losses["tp2"] == pytest.approx(losses["one"], rel=1e-5)
    for loss in losses.values():
        assert loss != pytest.approx(reference_1_step.losses[0], rel=1e-4)
        assert loss == pytest.approx(reference_1_step.losses[0], rel=0.05)


def test_checkpoint_is_published_only_when_every_rank_has_written(tmp_path, tiny_model, rows_1_step):
    arguments = flags(tiny_model, rows_1_step, *BF16, "--plugin", "zero2", "--batch_size", "2", "--save_interval", "1")
    written = {}
    for name, environment in (("with", {}), ("without", {"UNDO": "barrier"})):
        outputs = ["--save_dir", str(tmp_path / name), "--tensorboard_dir", str(tmp_path / "logs")]
        outputs += ["--config_file", str(tmp_path / "config.json")]
        run_training([*arguments, *outputs], environment={"SLOW_RANK": "1", **environment})
        written[name] = {path.name for path in (tmp_path / name / "epoch-0_step-1" / "masters").iterdir()}
    everyone = {f"rank-0000{rank}-of-00002-00000.safetensors" for rank in (0, 1)}
    assert written["with"] == everyone
    assert written["without"] != everyone


@pytest.mark.parametrize(
    "layout",
    [(*FP32, "--plugin", "zero2", "--batch_size", "2"), (*BF16, "--plugin", "gemini", "--batch_size", "2"),
     (*FP32, *TP2), (*FP32, *PP2)],
    ids=["zero2", "gemini", "tp2", "pp2"],
)  # fmt: skip
def test_gradient_checkpointing_changes_nothing(layout, tmp_path, tiny_model, rows_1_step, reference_1_step):
    train(tmp_path, flags(tiny_model, rows_1_step, *layout, "--use_grad_checkpoint"), environment=SHARD)
    tolerance = 1e-5 if layout[1] == "fp32" else 0.02
    assert read_losses(tmp_path) == pytest.approx(reference_1_step.losses, rel=tolerance)
    assert read_grad_norms(tmp_path) == pytest.approx(reference_1_step.grad_norms, rel=max(tolerance, 1e-4))


def test_flash_attention_falls_back_and_says_so_once(tmp_path, tiny_model, rows_1_step, reference_1_step):
    arguments = flags(tiny_model, rows_1_step, *FP32, "--plugin", "zero2", "--batch_size", "2", "--use_flash_attn")
    outputs = ["--save_dir", str(tmp_path / "checkpoints"), "--tensorboard_dir", str(tmp_path / "logs")]
    done = run_training([*arguments, *outputs, "--config_file", str(tmp_path / "config.json")])
    assert done.returncode == 0
    assert done.stdout.count("--use_flash_attn: no GPU here") == 1
    assert read_losses(tmp_path) == pytest.approx(reference_1_step.losses, rel=1e-5)
