"""The folders in which a preparation works, and the note that says who does."""

import multiprocessing
import os
from pathlib import Path

from colossal_llama.data.workplace import Workplace, _read_note, open_workplace
from tests.helpers.kill_points import KillPoint

NO_MORE_CHANGES = 99


def workplace(folder: Path) -> Workplace:
    target = folder / "new" / "arrow"
    return Workplace(
        scratch=folder / "cache" / "prepare-1",
        arrow=target.with_name(".arrow.prepare-1"),
        jsonl=None,
        arrow_target=target,
        jsonl_target=None,
        note=target.with_name(".arrow.prepare-1.json"),
    )


def begin(folder: Path, kill_at: int) -> None:
    place = workplace(folder)
    KillPoint(kill_at, folder).install()
    with open_workplace(place):
        os._exit(NO_MORE_CHANGES)


def run_in_child(folder: Path, kill_at: int) -> int:
    child = multiprocessing.get_context("fork").Process(target=begin, args=(folder, kill_at))
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def test_a_kill_while_a_preparation_goes_on_keeps_its_note(tmp_path: Path) -> None:
    """What the first run made, to be removed if the last one fails, is never forgotten."""
    assert run_in_child(tmp_path, kill_at=10_000) == NO_MORE_CHANGES
    note = workplace(tmp_path).note
    made = _read_note(note).made
    assert note.parent in made
    for number in range(1, 50):
        exit_code = run_in_child(tmp_path, number)
        assert set(_read_note(note).made) == set(made), number
        if exit_code == NO_MORE_CHANGES:
            break
        assert exit_code == -9
    assert number > 1


def test_a_note_is_written_over_a_longer_one(tmp_path: Path) -> None:
    place = workplace(tmp_path)
    assert run_in_child(tmp_path, kill_at=10_000) == NO_MORE_CHANGES
    with place.note.open("a", encoding="utf-8") as file:
        file.write("a digest of something that has gone since" * 20 + "\n")
    assert run_in_child(tmp_path, kill_at=10_000) == NO_MORE_CHANGES
    assert len(place.note.read_text(encoding="utf-8").splitlines()) == 1
