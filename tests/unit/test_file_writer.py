"""A checkpoint's files: written at once or from snapshots, and a failure waits until it can be told."""

import errno
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch

from colossal_llama.atomic import atomic_directory
from colossal_llama.checkpoint.file_writer import FileWriter, HostSnapshots, write_safetensors, write_torch
from colossal_llama.checkpoint.manifest import record_file


def save(writer: FileWriter, folder: Path, tensor: torch.Tensor) -> None:
    with writer.taking_over():
        torch.save({"state": [tensor, 5], "lr": 0.5}, str(folder / "states.bin"))
        safetensors.torch.save_file({"weight": tensor}, folder / "model.safetensors", metadata={"format": "pt"})


def load(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    states = torch.load(folder / "states.bin", weights_only=True)
    assert states["state"][1] == 5
    assert states["lr"] == 0.5
    return states["state"][0], safetensors.torch.load_file(folder / "model.safetensors")["weight"]


def test_files_are_written_at_once_without_snapshots(tmp_path: Path) -> None:
    writer = FileWriter(tmp_path)
    save(writer, tmp_path, torch.arange(6.0))
    for found in load(tmp_path):
        assert torch.equal(found, torch.arange(6.0))
    assert writer.finish() == {name: record_file(tmp_path / name) for name in ("states.bin", "model.safetensors")}


def test_snapshots_hold_what_was_when_they_were_taken(tmp_path: Path) -> None:
    snapshots = HostSnapshots()
    for number in range(3):
        tensor = torch.full((1000,), float(number))
        writer = FileWriter(tmp_path, snapshots)
        save(writer, tmp_path, tensor)
        tensor.fill_(-1)
        assert number or not list(tmp_path.iterdir())
        assert set(writer.finish()) == {"states.bin", "model.safetensors"}
        for found in load(tmp_path):
            assert torch.equal(found, torch.full((1000,), float(number)))


def test_the_memory_of_snapshots_is_used_again_and_fits_other_shapes(tmp_path: Path) -> None:
    snapshots = HostSnapshots()
    for tensor in (torch.ones(8), torch.zeros(8), torch.ones(3, 2, dtype=torch.bfloat16)):
        snapshots.start()
        kept = snapshots.copy({"a": (tensor, "text")})
        assert torch.equal(kept["a"][0], tensor)
        assert kept["a"][0].dtype == tensor.dtype
        assert kept["a"][1] == "text"
    snapshots.start()
    first = snapshots.copy(torch.ones(3, 2, dtype=torch.bfloat16))
    assert first.data_ptr() == kept["a"][0].data_ptr()


class Projector:
    """Holds a tensor where no container shows it, as the optimizer GaLore does."""

    def __init__(self) -> None:
        self.matrix = torch.ones(3)


def test_tensors_inside_of_other_objects_are_copied_too() -> None:
    projector = Projector()
    kept = HostSnapshots().copy({"projector": projector})
    projector.matrix.zero_()
    assert torch.equal(kept["projector"].matrix, torch.ones(3))


def test_a_view_is_stored_without_the_memory_around_it(tmp_path: Path) -> None:
    writer = FileWriter(tmp_path, HostSnapshots())
    with writer.taking_over():
        torch.save(torch.zeros(1_000_000)[:10], tmp_path / "view.bin")
    assert writer.finish()["view.bin"].size < 10_000


def test_what_is_saved_to_a_buffer_or_afterwards_is_left_alone(tmp_path: Path) -> None:
    with (tmp_path / "open").open("wb") as file, FileWriter(tmp_path, HostSnapshots()).taking_over():
        torch.save(torch.ones(2), file)
    assert torch.equal(torch.load(tmp_path / "open", weights_only=True), torch.ones(2))
    torch.save(torch.ones(2), tmp_path / "later")
    assert (tmp_path / "later").is_file()


def test_the_two_functions_are_given_back_after_an_error(tmp_path: Path) -> None:
    before = torch.save, safetensors.torch.save_file
    with pytest.raises(ZeroDivisionError), FileWriter(tmp_path).taking_over():
        raise ZeroDivisionError
    assert (torch.save, safetensors.torch.save_file) == before


@pytest.fixture
def short_files():
    """No file of this process may become longer than 100 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_cannot_be_written_is_an_error_of_the_operating_system(tmp_path: Path, short_files) -> None:
    big = torch.zeros(1_000_000)
    for name, write in (("big.bin", write_torch), ("big.safetensors", partial(write_safetensors, metadata=None))):
        with pytest.raises(OSError, match=name) as caught:
            write({"a": big}, tmp_path / name)
        assert caught.value.errno == errno.EFBIG


@pytest.mark.parametrize("snapshots", [None, HostSnapshots()], ids=["at once", "later"])
def test_a_failure_waits_and_nothing_is_written_after_it(tmp_path: Path, snapshots, short_files) -> None:
    writer = FileWriter(tmp_path, snapshots)
    with writer.taking_over():
        torch.save(torch.zeros(1_000_000), tmp_path / "big")
        torch.save(torch.ones(1), tmp_path / "after")
    if snapshots is None:
        with pytest.raises(OSError, match="big"):
            writer.check()
    with pytest.raises(OSError) as caught:
        writer.finish()
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(tmp_path / "big")
    assert not (tmp_path / "after").exists()


def test_torch_itself_does_not_end_in_an_error_of_the_operating_system_there(tmp_path: Path) -> None:
    """Why write_torch does not hand a path to torch.save."""
    body = (
        "import resource, torch\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))\n"
        "try:\n"
        "    torch.save(torch.zeros(1_000_000), 'big')\n"
        "except OSError:\n"
        "    print('an error of the operating system')"
    )
    done = subprocess.run([sys.executable, "-c", body], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stdout == ""


def test_published_weights_have_the_permissions_of_other_files(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "model") as scratch:
        (scratch / "config.json").write_text("{}")
        safetensors.torch.save_file({"weight": torch.zeros(2)}, scratch / "model.safetensors")
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "model").iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]
