"""Test atomic writes of files and folders, and hashes of files and folders of frames."""

import hashlib
import os

import pytest

from modeling_pig.files import hash_file, replace_file, replace_folder, resolve_replaceable, restore_folder, write_text


def test_replace_file_writes_the_target_of_a_link(tmp_path):
    (tmp_path / "target").write_text("previous")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with replace_file(tmp_path / "link") as partial:
        partial.write_text("new")
        assert (tmp_path / "target").read_text() == "previous"
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["link", "target"]


@pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt()], ids=["error", "interrupted"])
def test_failed_writes_keep_the_previous_content(tmp_path, error):
    write_text(tmp_path / "file", "previous")
    with replace_folder(tmp_path / "folder") as partial:
        (partial / "file").write_text("previous")
    for replace in (replace_file, replace_folder):
        path = tmp_path / replace.__name__.removeprefix("replace_")
        with pytest.raises(type(error)), replace(path):
            raise error
    assert (tmp_path / "file").read_text() == (tmp_path / "folder/file").read_text() == "previous"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_replace_folder_leaves_only_the_new_files(tmp_path):
    for name in ("previous", "new"):
        with replace_folder(tmp_path / "parent/folder") as partial:
            (partial / name).touch()
    assert os.listdir(tmp_path / "parent") == ["folder"]
    assert os.listdir(tmp_path / "parent/folder") == ["new"]


def test_restore_folder_undoes_an_interrupted_replacement(tmp_path):
    (tmp_path / ".folder.old").mkdir()
    restore_folder(tmp_path / "folder")
    restore_folder(tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"]


def test_only_regular_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", os.devnull):
        with pytest.raises(OSError, match="is not a regular file"), replace_file(path):
            pass
    assert (tmp_path / "pipe").is_fifo()
    assert resolve_replaceable(tmp_path / "new") == (tmp_path / "new").resolve()


def test_hash_of_a_folder_is_the_hash_of_its_listing(tmp_path):
    for name in ("000010.jpg", "000002.jpg", "notes.txt"):
        (tmp_path / name).write_text(name)
    names = ["000002.jpg", "000010.jpg"]
    listing = "".join(f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n" for name in names)
    assert hash_file(tmp_path) == hashlib.sha256(listing.encode()).hexdigest()
    assert hash_file(tmp_path / "notes.txt") == hashlib.sha256(b"notes.txt").hexdigest()
