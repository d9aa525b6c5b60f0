"""SAM3 checkpoints between Meta's file and a folder of transformers; every tensor is accounted for.

python scripts/convert_checkpoint.py sam3.pt sam3_folder --to transformers            detector: Sam3Model
python scripts/convert_checkpoint.py sam3.pt sam3_video --to transformers --video     detector and tracker
python scripts/convert_checkpoint.py runs/full_finetune tuned.pt --to meta            for Meta's image model
python scripts/convert_checkpoint.py runs/full_finetune tuned.pt --to meta --video --template sam3.pt
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from torch import Tensor
from transformers import CLIPTokenizer, Sam2VideoVideoProcessor, Sam3VideoConfig

from medsam3.checkpoints.conversion import detector_part, recognise
from medsam3.checkpoints.files import read_weights
from medsam3.checkpoints.model_config import read_config
from medsam3.checkpoints.weights import Checkpoint, open_checkpoint, replace_detector, write_meta, write_transformers
from medsam3.files import new_file, new_folder
from medsam3.model.load import image_processor, processor
from medsam3.model.tokenizer import clip_tokenizer


def main() -> None:
    """Convert; an error is one line on stderr and exit status 2, and leaves nothing behind."""
    arguments = parse_arguments()
    try:
        convert(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SRC", help="file or folder, in any layout of SAM3; or a run")
    parser.add_argument("destination", type=Path, metavar="DST", help="folder (transformers) or file (meta) to write")
    parser.add_argument("--to", required=True, choices=("transformers", "meta"), help="the layout to write")
    parser.add_argument("--video", action="store_true", help="with the tracker, from SRC or else from --template")
    parser.add_argument(
        "--template",
        type=Path,
        metavar="FILE",
        help="the original checkpoint, for what SRC lacks: the tracker, and Meta's projections of point prompts",
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="config.json of SRC, where it is not of released size"
    )
    return parser.parse_args()


def convert(arguments: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: a checkpoint that is not SAM3, not complete or not safe to read; a destination that exists.
        OSError: a file that cannot be read or written.
    """
    destination = arguments.destination
    if destination.exists():
        raise ValueError(f"{destination} exists already: remove it, or give another name")
    if arguments.template and arguments.to == "transformers" and not arguments.video:
        raise ValueError("--template serves --to meta and --video only: a detector in transformers lacks nothing")
    reopen = partial(open_source, arguments)
    if arguments.to == "meta":
        template = meta_template(arguments)
        with new_file(destination) as file:
            report = write_meta(reopen, template, file)
        print(f"{report}\nwritten to {destination}")
        return
    opened = reopen()
    with new_folder(destination) as folder:
        write_transformers(opened, folder)
        note = write_processor(opened, folder)
    print(f"{opened.report}\n{note}\nwritten to {destination}")


def open_source(arguments: argparse.Namespace) -> Checkpoint:
    """SRC, completed by the tracker of the template where --video asks for one that SRC has not."""
    config = read_config(arguments.config) if arguments.config else None
    detector = open_checkpoint(arguments.source, "detector", config)
    if not arguments.video:
        return detector
    if detector.layout.has_tracker or arguments.template is None:
        return open_checkpoint(arguments.source, "video", config)
    return replace_detector(open_checkpoint(arguments.template, "video", config), detector)


def meta_template(arguments: argparse.Namespace) -> Mapping[str, Tensor] | None:
    """The file in Meta's names, SRC or the template, that has what transformers lacks."""
    for path in (arguments.template, arguments.source):
        if path is not None:
            tensors = read_weights(path).tensors
            layout = recognise(tensors)
            if layout is not None and layout.family == "Meta":
                return tensors
    return None


def write_processor(opened: Checkpoint, folder: Path) -> str:
    """Tokenizer and image (and video) processor beside the model; says what it did."""
    config = opened.config
    size = config.image_size
    words = detector_part(config).text_config.vocab_size
    tokenizer: CLIPTokenizer = clip_tokenizer()
    if words != len(tokenizer):
        return f"no tokenizer and processor, as the model has {words} words and CLIP's vocabulary {len(tokenizer)}"
    if isinstance(config, Sam3VideoConfig):
        from transformers import Sam3VideoProcessor  # brings the video model with it, so only here

        frames = Sam2VideoVideoProcessor(
            size={"height": size, "width": size}, image_mean=[0.5] * 3, image_std=[0.5] * 3
        )
        Sam3VideoProcessor(image_processor(size), frames, tokenizer).save_pretrained(folder)
    else:
        processor(tokenizer, size).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return "with CLIP's tokenizer and the processor"


if __name__ == "__main__":
    main()
