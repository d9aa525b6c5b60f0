"""scripts/convert_checkpoint.py as a user runs it: there and back, what it refuses, and the memory it takes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import Sam3Config, Sam3Model, Sam3Processor

from medsam3.checkpoints.conversion import convert_transformers_to_meta
from medsam3.checkpoints.files import read_record
from medsam3.checkpoints.weights import load_detector
from medsam3.model.tiny import tiny_config
from tests.tiny_sam3 import (
    CONFIG_FILE,
    POINTS,
    detector,
    detector_part,
    equal,
    meta_state,
    sam31_state,
    save,
    video_config,
    video_meta_state,
    video_model,
)

SCRIPT = Path(__file__).parents[2] / "scripts/convert_checkpoint.py"
CONFIG = ["--config", str(CONFIG_FILE)]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("convert_checkpoint", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def convert(script, monkeypatch, capsys):
    """Runs the script in this process; returns exit status, stdout, and the lines on stderr."""

    def run(*arguments: object) -> tuple[int, str, list[str]]:
        monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *map(str, arguments)])
        status = 0
        try:
            script.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err.splitlines()

    return run


def test_metas_file_to_transformers_and_back(convert, tmp_path):
    source, folder, back = (
        save({"model": meta_state()}, tmp_path / "sam3.pt"),
        tmp_path / "folder",
        tmp_path / "back.pt",
    )
    status, out, _ = convert(source, folder, "--to", "transformers", *CONFIG)
    assert status == 0 and "430 of 430 tensors of Sam3Model" in out
    assert "no tokenizer and processor, as the model has 600 words" in out
    assert equal(Sam3Model.from_pretrained(folder).state_dict(), detector().state_dict())
    status, out, _ = convert(folder, back, "--to", "meta", "--template", source)
    assert status == 0 and "6 projections of point prompts from the template" in out
    written = torch.load(back, weights_only=True)
    assert equal(written, detector_part(meta_state()))
    assert next(iter(written)).startswith("detector.")  # the authors' scripts look at the first name


def test_without_template_the_report_says_what_metas_loaders_do(convert, tmp_path):
    detector().save_pretrained(tmp_path / "folder")
    status, out, _ = convert(tmp_path / "folder", tmp_path / "out.pt", "--to", "meta")
    assert status == 0 and "without the 6 projections of point prompts" in out
    assert "image model loads this" in out and "video model is strict and refuses" in out
    assert "rotary tables for 112 px: Meta's model must be built for that size" in out
    assert not any(POINTS in name for name in torch.load(tmp_path / "out.pt", weights_only=True))


def test_metas_own_layouts_become_the_one_that_metas_code_loads(convert, tmp_path):
    """A file without prefix would load into Meta's model without a word, and without a weight."""
    source = save({"model": detector_part(meta_state(), "module.")}, tmp_path / "checkpoint.pt")
    status, _, _ = convert(source, tmp_path / "out.pt", "--to", "meta", *CONFIG)
    assert status == 0 and equal(torch.load(tmp_path / "out.pt", weights_only=True), detector_part(meta_state()))


def test_a_video_model_there_and_back(convert, tmp_path):
    source = save(video_meta_state(), tmp_path / "sam3.pt")
    (tmp_path / "config.json").write_text(video_config().to_json_string())
    status, out, _ = convert(
        source, tmp_path / "video", "--to", "transformers", "--video", "--config", tmp_path / "config.json"
    )
    assert status == 0 and "tensors of Sam3VideoModel" in out
    assert convert(tmp_path / "video", tmp_path / "back.pt", "--to", "meta", "--video", "--template", source)[0] == 0
    assert equal(torch.load(tmp_path / "back.pt", weights_only=True), video_meta_state())


def test_a_tuned_detector_with_the_original_tracker_for_metas_strict_video_model(convert, tmp_path):
    video_model().save_pretrained(tmp_path / "video")
    source = save(video_meta_state(), tmp_path / "sam3.pt")
    tuned, _ = load_detector(tmp_path / "video")
    with torch.no_grad():
        tuned.text_projection.bias += 1
        tuned.vision_encoder.backbone.layer_norm.bias += 1
    tuned.save_pretrained(tmp_path / "tuned")
    config = tmp_path / "video/config.json"
    status, out, _ = convert(
        tmp_path / "tuned", tmp_path / "out.pt", "--to", "meta", "--video", "--template", source, "--config", config
    )
    assert status == 0 and "WARNING: the vision backbone of the detector differs from the video model's in 1 of" in out
    wanted = video_meta_state() | convert_transformers_to_meta(tuned.state_dict(), config=video_config())
    assert equal(torch.load(tmp_path / "out.pt", weights_only=True), wanted)


def test_the_detector_of_sam_31_goes_into_the_video_model_of_sam_30(convert, tmp_path):
    (tmp_path / "config.json").write_text(video_config().to_json_string())
    source = save(sam31_state(video_meta_state()), tmp_path / "sam3.1_multiplex.pt")
    template = save(video_meta_state(), tmp_path / "sam3.pt")
    options = ["--video", "--template", template, "--config", tmp_path / "config.json"]
    status, out, _ = convert(source, tmp_path / "out.pt", "--to", "meta", *options)
    assert status == 0 and "detector and tracker of SAM 3.1" in out
    written, wanted = torch.load(tmp_path / "out.pt", weights_only=True), video_meta_state()
    assert written.keys() == wanted.keys()
    changed = {name for name in wanted if not torch.equal(written[name], wanted[name])}
    assert changed and all(".vision_backbone.convs.3." in name for name in changed)  # read by nobody


def test_tokenizer_and_processor_come_with_a_model_of_clips_vocabulary(convert, tmp_path):
    model = Sam3Model(tiny_config(56))
    path = save(convert_transformers_to_meta(model.state_dict(), config=model.config), tmp_path / "tiny.pt")
    (tmp_path / "config.json").write_text(model.config.to_json_string())
    status, _, _ = convert(path, tmp_path / "out", "--to", "transformers", "--config", tmp_path / "config.json")
    processor = Sam3Processor.from_pretrained(tmp_path / "out", local_files_only=True)
    assert status == 0 and processor.target_size == 56
    assert processor(text="polyp", return_tensors="pt").input_ids.shape == (1, 32)


def test_the_record_of_training_and_the_image_size_travel_with_the_weights(convert, tmp_path):
    """From a run to Meta's file, with the same tensors as without, from there to a folder and to a lone file."""
    detector().save_pretrained(tmp_path / "run/best")
    assert convert(tmp_path / "run", tmp_path / "bare.pt", "--to", "meta")[0] == 0
    record = json.dumps({"image_size": 112, "images": {"drive": ["0123"]}})
    (tmp_path / "run/best/training.json").write_text(record)
    assert convert(tmp_path / "run", tmp_path / "tuned.pt", "--to", "meta")[0] == 0
    for mapped in (False, True):
        tensors = torch.load(tmp_path / "tuned.pt", weights_only=True, mmap=mapped)
        assert equal(tensors, torch.load(tmp_path / "bare.pt", weights_only=True))
    assert read_record(tmp_path / "tuned.pt") == record and read_record(tmp_path / "bare.pt") is None

    larger = Sam3Config(**json.loads(CONFIG_FILE.read_text()))
    larger.image_size = 168
    (tmp_path / "config.json").write_text(larger.to_json_string())
    options = ["--to", "transformers", "--config", tmp_path / "config.json"]
    assert convert(tmp_path / "tuned.pt", tmp_path / "folder", *options)[0] == 0
    assert read_record(tmp_path / "folder") == record and load_detector(tmp_path / "folder")[0].config.image_size == 112
    (tmp_path / "folder/model.safetensors").rename(tmp_path / "alone.safetensors")
    assert read_record(tmp_path / "alone.safetensors") == record


REFUSED = {  # arguments after SRC DST -> words of the message
    "truncated": (["--to", "transformers", *CONFIG], "truncated, or not a checkpoint"),
    "SAM 2": (["--to", "transformers"], "a SAM 2 checkpoint"),
    "tensor missing": (["--to", "meta", *CONFIG], "1 missing (detector.transformer.decoder.norm.weight)"),
    "NaN": (["--to", "transformers", *CONFIG], "1 of 430 tensors hold NaN or infinity"),
    "NaN to meta": (["--to", "meta", *CONFIG], "hold NaN or infinity (detector.transformer.decoder.norm.weight)"),
    "no tracker": (["--to", "transformers", "--video", *CONFIG], "the tracker is missing"),
    "SAM 3.1": (["--to", "transformers", "--video", *CONFIG], "holds the tracker of SAM 3.1 (multiplex)"),
    "nothing there": (["--to", "meta"], "no such file or folder"),
    "empty folder": (["--to", "meta"], "no weights"),
    "wrong config": (["--to", "meta", "--config", "nowhere.json"], "nowhere.json"),
    "useless template": (["--to", "transformers", "--template", "x.pt"], "--template serves"),
}


@pytest.mark.parametrize("to_existing", [False, True])
@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_is_one_line_and_leaves_nothing_behind(case, to_existing, convert, tmp_path):
    arguments, words = REFUSED[case]
    source, target = tmp_path / "source", tmp_path / "out/target"
    make_wrong(case, source)
    if to_existing:
        target.mkdir(parents=True)
        words = "exists already"
    status, out, err = convert(source, target, *arguments)
    assert status == 2 and out == "" and len(err) == 1
    assert err[0].startswith("error: ") and words in err[0]
    assert sorted(path.name for path in (tmp_path / "out").glob("*")) == (["target"] if to_existing else [])


def make_wrong(case: str, source: Path) -> None:
    if case == "empty folder":
        source.mkdir()
    elif case == "SAM 2":
        save({"model": {"image_encoder.trunk.pos_embed": torch.zeros(1)}}, source)
    elif case == "SAM 3.1":
        save(sam31_state(meta_state()), source)
    elif case == "tensor missing":
        save({n: v for n, v in meta_state().items() if n != "detector.transformer.decoder.norm.weight"}, source)
    elif case.startswith("NaN"):
        save(meta_state() | {"detector.transformer.decoder.norm.weight": torch.full((32,), torch.nan)}, source)
    elif case != "nothing there":
        save(detector_part(meta_state()), source)
        if case == "truncated":
            source.write_bytes(source.read_bytes()[:500_000])


@pytest.mark.slow
def test_the_script_ends_with_status_2_and_no_traceback(tmp_path):
    command = [sys.executable, str(SCRIPT), str(tmp_path / "none.pt"), str(tmp_path / "out"), "--to", "meta"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == f"error: {tmp_path}/none.pt: no such file or folder\n"


GROWTH = """
import json, re, runpy, sys
import medsam3.checkpoints.weights, medsam3.model.load
from medsam3.checkpoints.account import video_model_class
video_model_class(), medsam3.model.load.clip_tokenizer()
def peak_kb():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak_kb()
for sys.argv in json.loads(sys.argv[1]):
    runpy.run_path(sys.argv[0], run_name="__main__")
    print("growth", peak_kb() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux' /proc")
def test_converting_takes_less_than_1_point_3_times_the_file(tmp_path):
    """Resident memory beyond the imports, the mapped pages of the file included, for a file of 150 MB."""
    config = json.loads(CONFIG_FILE.read_text())
    wide = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    config["vision_config"]["backbone_config"] |= wide | {"num_hidden_layers": 5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = Sam3Model(Sam3Config(**config))
    source = save(convert_transformers_to_meta(model.state_dict(), config=model.config), tmp_path / "large.pt")
    size_kb = source.stat().st_size / 1024
    there = [SCRIPT, source, tmp_path / "folder", "--to", "transformers", "--config", tmp_path / "config.json"]
    back = [SCRIPT, tmp_path / "folder", tmp_path / "back.pt", "--to", "meta"]
    runs = json.dumps([[str(argument) for argument in run] for run in (there, back)])
    done = subprocess.run([sys.executable, "-c", GROWTH, runs], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    growths = [int(line.split()[1]) / size_kb for line in done.stdout.splitlines() if line.startswith("growth")]
    assert size_kb > 130e3 and len(growths) == 2
    assert all(0.5 < growth < 1.15 for growth in growths), growths  # the imports take the rest
