"""How much of a score is the box? The paper's diagnostic study: the same model asked by text, by the true boxes, by
noisy ones, and by text and box (paper, sections 1 and 5: vanilla SAM3 lives on boxes taken from the truth).

A box tells where the target is, how large, and that it is there at all; at the bedside nobody has it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from medsam3 import distributed
from medsam3.checks import check
from medsam3.config import EvaluateConfig
from medsam3.evaluation.measurement import evaluate
from medsam3.files import write_text
from medsam3.messages import markdown_table
from medsam3.metrics.masks import METRICS
from medsam3.reports.comparison_tables import comparison_json, comparison_markdown
from medsam3.results.comparison import Contestant, Duel, Settings, compare
from medsam3.results.folder import read_results

PROMPTS = ("text", "box", "noisy_box", "text_box")
SETTINGS = Settings(
    metrics=("dice",), rule=None, absent=False, allow=("prompt", "box_noise"), level=0.95, draws=10_000, seed=0
)


def diagnose(config: EvaluateConfig) -> list[Duel]:
    """Evaluate with each of PROMPTS into <output_dir>/<prompt>; write diagnosis.md and diagnosis.json.

    Returns:
        box, noisy box and text + box, each against text.

    Raises:
        ValueError: as `evaluate`; evaluation.ask=all, as what is not there has no box.
    """
    runs = [
        dataclasses.replace(config, prompt=prompt, output_dir=f"{config.output_dir}/{prompt}") for prompt in PROMPTS
    ]
    for run in runs:  # all of them before the first hour
        check(run)
    for run in runs:
        evaluate(run)
    contestants = [Contestant(run.prompt, [read_results(run.output_dir)]) for run in runs]
    duels, spreads, notes = compare(contestants, SETTINGS)
    if distributed.is_main():
        folder = Path(config.output_dir)
        text = diagnosis_table(duels) + "\n" + comparison_markdown(contestants, duels, spreads, notes, SETTINGS)
        write_text(folder / "diagnosis.md", text)
        write_text(folder / "diagnosis.json", comparison_json(contestants, duels, spreads, notes, SETTINGS))
        print(f"\n{text}\ndiagnosis.md and diagnosis.json lie in {folder}")
    return duels


def diagnosis_table(duels: list[Duel]) -> str:
    """Markdown, a table per mask rule: Dice by each way of asking, and what the box adds to the text."""
    parts = []
    for rule in dict.fromkeys(duel.rule for duel in duels):
        lines = []
        for dataset in dict.fromkeys(duel.dataset for duel in duels):
            means = {duel.name: duel.means for duel in duels if (duel.dataset, duel.rule) == (dataset, rule)}
            text = next(iter(means.values()))[0]
            dice = {prompt: 100 * (text if prompt == "text" else means[prompt][1]) for prompt in PROMPTS}
            shown = [f"{dice[prompt]:.1f}" for prompt in PROMPTS]
            lines.append([dataset, *shown, f"{dice['box'] - dice['text']:+.1f}"])
        head = ["Dataset", "text", "box", "noisy box", "text + box", "box - text"]
        parts.append(f"# {METRICS['dice'].heading} by prompt, mask rule {rule}\n\n{markdown_table(head, lines)}")
    return "\n".join(parts)
