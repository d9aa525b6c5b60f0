"""Segment pictures: `python scripts/predict.py input=photos prompts='[polyp, liver]' checkpoint=runs/full_finetune`."""

from medsam3.prediction.command import main

if __name__ == "__main__":
    main()
