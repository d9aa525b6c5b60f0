"""Files and folders without weights, damaged ones, ones that would run code; writing a file whole or not at all."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from medsam3.checkpoints.files import read_weights
from medsam3.checkpoints.weights import load_detector
from tests.tiny_sam3 import config, detector, equal, meta_state, save


class Intruder:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("form", ["in a state dict", "as a bare pickle", "in the old format", "as a whole model"])
def test_a_file_that_runs_code_is_refused_and_nothing_runs(form, tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "sam3.pt"
    if form == "as a bare pickle":
        path.write_bytes(pickle.dumps(Intruder(trace), protocol=2))
    elif form == "as a whole model":
        torch.save(torch.nn.Linear(2, 2), path)
    else:
        content = {"model": meta_state(), "hook": Intruder(trace)}
        torch.save(content, path, _use_new_zipfile_serialization=form == "in a state dict")
    culprit = "torch.nn.modules.linear.Linear" if form == "as a whole model" else "io.open"
    with pytest.raises(ValueError, match=rf"refused, .* would run code .*\(it asks for {culprit}\).*safetensors"):
        read_weights(path)
    assert not trace.exists()


def test_the_old_format_of_torch_loads(tmp_path):
    torch.save(meta_state(), tmp_path / "sam3.pt", _use_new_zipfile_serialization=False)
    assert equal(read_weights(tmp_path / "sam3.pt").tensors, meta_state())


def test_safetensors_in_metas_names_load_whatever_the_file_is_called(tmp_path):
    save_file({name: value for name, value in meta_state().items() if not value.is_complex()}, tmp_path / "sam3.pt")
    model, _ = load_detector(tmp_path / "sam3.pt", config=config())
    assert equal(model.state_dict(), detector().state_dict())


CONTENTS: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "truncated, or not a checkpoint (0 bytes"),
    "text": (b"hello, these are no weights at all", "truncated, or not a checkpoint"),
    "pickle of something else": (pickle.dumps([1, 2], protocol=2), "truncated, or not a checkpoint"),
    "web page": (b"\n<!DOCTYPE html><html></html>", "it is a web page"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "Git LFS pointer"),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_a_file_without_weights_is_named(kind, tmp_path):
    content, words = CONTENTS[kind]
    (tmp_path / "sam3.pt").write_bytes(content)
    refused(tmp_path / "sam3.pt", words)


def refused(path: Path, words: str) -> None:
    with pytest.raises(ValueError) as error:
        read_weights(path)
    assert str(path) in str(error.value) and words in str(error.value), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.999])
@pytest.mark.parametrize("form", ["torch", "safetensors"])
def test_a_truncated_file_is_named(form, keep, tmp_path):
    path = tmp_path / "weights"
    state = {name: value for name, value in meta_state().items() if not value.is_complex()}
    torch.save(state, path) if form == "torch" else save_file(state, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    refused(path, "truncated, or not a checkpoint")


def test_torch_files_without_a_state_dict_are_named(tmp_path):
    refused(save([1, 2], tmp_path / "list.pt"), "holds no tensors, at the top or under model, state_dict")
    refused(save({"optimizer": {}, "epoch": 3}, tmp_path / "a.pt"), "holds no tensors, at the top or under model")
    refused(save({"epoch": 3, "w": torch.zeros(1)}, tmp_path / "b.pt"), "tensors beside other things (epoch)")


def test_folders_without_one_checkpoint_are_named(tmp_path):
    refused(tmp_path / "none", "no such file or folder")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "no weights (it holds nothing)")
    config().save_pretrained(tmp_path / "folder")
    refused(tmp_path / "folder", "no weights (it holds config.json)")
    (tmp_path / "folder/model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    refused(tmp_path / "folder", "model-1.safetensors is missing")
    (tmp_path / "two").mkdir()
    for name in ("a.pt", "b.pt"):
        save(meta_state(), tmp_path / "two" / name)
    refused(tmp_path / "two", "2 files that could be meant, name one (it holds a.pt, b.pt)")


@pytest.mark.parametrize(
    ("content", "words"),
    [('{"model_type": "bert"}', "of a model of type 'bert', not of sam3 or sam3_video"), ("{", "not JSON")],
)
def test_a_folder_of_another_model_is_named(content, words, tmp_path):
    detector().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError) as error:
        load_detector(tmp_path)
    assert words in str(error.value)


def test_the_only_weights_of_a_folder_are_taken(tmp_path):
    save(meta_state(), tmp_path / "checkpoint_5.pt")
    stored = read_weights(tmp_path)
    assert equal(stored.tensors, meta_state()) and "the only weights in the folder" in stored.source
