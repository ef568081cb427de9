"""Which checkpoints a folder holds, which of them go, and what killed saves have left."""

import json
import os
from pathlib import Path

import pytest

from colossal_llama.atomic import remove_directory
from colossal_llama.checkpoint.folders import (
    Retention,
    checkpoint_folders,
    discard_checkpoints,
    existing_checkpoints,
    remove_empty_folders,
    remove_leftovers,
)

STEPS_PER_EPOCH = 10


def make(save_dir: Path, *global_steps: int) -> list[Path]:
    folders = []
    for number in global_steps:
        epoch, step = divmod(number, STEPS_PER_EPOCH)
        folder = save_dir / f"epoch-{epoch}_step-{step}"
        (folder / "modeling").mkdir(parents=True)
        (folder / "running_states.json").write_text(json.dumps({"global_step": number}), encoding="utf-8")
        folders.append(folder)
    return folders


def steps(folders: list[Path]) -> list[int]:
    return [
        json.loads((folder / "running_states.json").read_text(encoding="utf-8"))["global_step"] for folder in folders
    ]


def test_checkpoints_are_ordered_by_progress_not_by_name(tmp_path: Path) -> None:
    make(tmp_path, 9, 2, 25, 10, 105)
    (tmp_path / "modeling").mkdir()
    (tmp_path / "epoch-0_step-7").mkdir()
    (tmp_path / ".epoch-0_step-8.tmp").mkdir()
    (tmp_path / "epoch-1_step-1_copy").mkdir()
    (tmp_path / "epoch-1_step-2").write_text("a file")
    assert steps(existing_checkpoints(tmp_path)) == [2, 9, 10, 25, 105]
    assert [folder.name for folder in checkpoint_folders(tmp_path)][1] == "epoch-0_step-7"
    assert checkpoint_folders(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("retention", "gone"),
    [
        (Retention(), []),
        (Retention(keep_last=1), [2, 4, 6, 8, 10, 12]),
        (Retention(keep_last=3), [2, 4, 6, 8]),
        (Retention(keep_last=99), []),
        (Retention(keep_last=2, keep_every=4), [2, 6, 10]),
        (Retention(keep_last=1, keep_every=7), [2, 4, 6, 8, 10, 12]),
    ],
)
def test_the_newest_and_the_milestones_stay(tmp_path: Path, retention: Retention, gone: list[int]) -> None:
    folders = make(tmp_path, 2, 4, 6, 8, 10, 12, 14)
    assert steps(retention.expendable(folders[-1])) == gone


def test_later_checkpoints_of_an_abandoned_course_stay_and_do_not_count(tmp_path: Path) -> None:
    folders = make(tmp_path, 2, 4, 6, 8)
    assert steps(Retention(keep_last=1).expendable(folders[1])) == [2]


def test_a_checkpoint_that_does_not_say_its_steps_stays(tmp_path: Path) -> None:
    folders = make(tmp_path, 2, 4, 6)
    (folders[0] / "running_states.json").write_text("damaged")
    assert Retention(keep_last=1).expendable(folders[2]) == [folders[1]]


def test_leftovers_go_and_a_folder_that_was_being_replaced_comes_back(tmp_path: Path) -> None:
    (kept,) = make(tmp_path, 4)
    make(tmp_path, 2)[0].rename(tmp_path / ".epoch-0_step-2.old-123")
    for name in (".epoch-0_step-6.tmp", ".modeling.tmp", ".epoch-0_step-4.old-9", ".other.tmp", ".epoch-0_step-8.part"):
        (tmp_path / name).mkdir()
    removed = {path.name for path in remove_leftovers(tmp_path)}
    assert removed == {".epoch-0_step-6.tmp", ".modeling.tmp", ".epoch-0_step-4.old-9"}
    assert steps(existing_checkpoints(tmp_path)) == [2, 4]
    assert kept.is_dir()
    assert {path.name for path in tmp_path.glob(".*")} == {".other.tmp", ".epoch-0_step-8.part"}
    assert remove_leftovers(tmp_path / "nowhere") == []


def test_deleting_leaves_nothing(tmp_path: Path) -> None:
    folders = make(tmp_path, 2, 4)
    remove_directory(folders[0])
    assert os.listdir(tmp_path) == [folders[1].name]
    discard_checkpoints(tmp_path)
    assert os.listdir(tmp_path) == []


def test_empty_folders_go_and_others_stay(tmp_path: Path) -> None:
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "file").touch()
    remove_empty_folders(tmp_path)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["d", "d/file"]
