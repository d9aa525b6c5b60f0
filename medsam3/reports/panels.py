"""The panels of a training run: which values are shown together, and in what way. docs/dashboards.md explains each.

A new value of the log gets its line here; a test finds names that no panel shows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Panel:
    title: str
    names: str  # pattern of whole names; its groups, joined, are what a line is called
    unit: str
    words: str  # what it tells and what is good
    log: bool = False  # scale of the values
    over: str = "step"
    rest: str = ""  # what the line is called whose groups are empty

    def lines(self, names: list[str]) -> dict[str, str]:
        """Name of a value -> name of its line, of those that are shown here."""
        found = ((name, re.fullmatch(self.names, name)) for name in names)
        words = {name: " ".join(filter(None, match.groups())).strip("_") for name, match in found if match}
        return {name: (line or self.rest).replace("_", " ") for name, line in words.items()}


AT_END = r"validation(?:_(average))?"
GROUPS: dict[str, tuple[Panel, ...]] = {
    "Validation": (
        Panel(
            "Dice",
            AT_END + "/(dice)",
            "Dice",
            "Mean over data sets by the rule that chooses: higher is better.",
            over="epoch",
        ),
        Panel(
            "Dice by mask rule", AT_END + "/(top1|union|semantic)/dice", "Dice", "Means over data sets.", over="epoch"
        ),
        Panel("Other measures", AT_END + "/(?!dice$)([a-z0-9_]+)", "", "By the rule that chooses.", over="epoch"),
        Panel(
            "Other measures by mask rule",
            AT_END + "/(top1|union|semantic)/(?!dice$)([a-z0-9_]+)",
            "",
            "Means over data sets.",
            over="epoch",
        ),
        Panel(
            "Single instances",
            AT_END + "/instances/([a-z0-9_]+)",
            "",
            "AP, F1, PQ, cgF1: higher is better.",
            over="epoch",
        ),
        Panel(
            "Fires on absent words",
            AT_END + r"/absent/(\w+)/(fired|answered)",
            "share",
            "Of words for what is not there: 0 at best.",
            over="epoch",
        ),
        Panel(
            "Tells present from absent",
            AT_END + r"/absent/(\w+)/auroc",
            "AUROC",
            "1 at best; 0.5: it cannot tell.",
            over="epoch",
        ),
    ),
    "Loss": (
        Panel("Total", "loss/(total)", "", "Weighted sum of all layers and both branches; falls.", log=True),
        Panel("Final layer, one-to-one", "loss/(?!total|mask|semantic)(.*)", "", "Unweighted terms.", log=True),
        Panel(
            "Masks",
            "loss(_o2m)?/((?:mask|semantic).*)",
            "",
            "Of the instance masks and the semantic head.",
            log=True,
        ),
        Panel(
            "Final layer, one-to-many",
            "loss_o2m/(?!mask)(.*)",
            "",
            "The branch that exists in training only.",
            log=True,
        ),
        *(
            Panel(
                f"{term} by layer, {branch}",
                rf"loss(?:_layers)?{half}/{key}(?:_(\d+))?",
                "",
                words,
                log=True,
                rest="final layer",
            )
            for half, branch, words in (
                ("", "one-to-one", "Unweighted; later layers should be lower."),
                ("_o2m", "one-to-many", "Unweighted; the final layer has more matches, so it lies higher."),
            )
            for term, key in (("Class", "class"), ("Box", "box"), ("GIoU", "giou"), ("Presence", "presence"))
            if (half, key) != ("_o2m", "presence")
        ),
    ),
    "Matching and presence": (
        Panel(
            "Targets per query",
            "matched/(targets)_per_query",
            "targets",
            "What the data hold; near 0: hardly anything is asked that is there.",
        ),
        Panel(
            "Matches per target",
            "matched/(one_to_(?:one|many))",
            "matches",
            "One-to-one is 1; one-to-many rises towards its top k.",
        ),
        Panel(
            "Presence told right",
            "presence/accuracy_(.*)",
            "share",
            "In training, of queries whose concept is there or is not: both rise to 1.",
        ),
        Panel("Words asked", "asked/(.*)", "in an epoch", "Of each kind, all processes together.", over="epoch"),
    ),
    "Optimizer": (
        Panel("Learning rates by part", "lr/(.*)", "rate", "As scheduled.", log=True),
        Panel("Learning rates by ViT block", "lr_vision/(.*)", "rate", "Lower blocks learn more slowly.", log=True),
        Panel("Gradient norm", "gradient/(norm)", "norm", "Before clipping, of the last step.", log=True),
        Panel(
            "Gradient norm by part",
            "gradient_norm/(.*)",
            "norm",
            "Before clipping; a part at 0 learns nothing.",
            log=True,
        ),
        Panel("Share of clipped steps", "gradient/(clipped)_share", "share", "Always 1 is usual with clip_norm 0.1."),
        Panel("Skipped steps", "gradient/(skipped)_steps", "steps", "Between two lines; 0."),
    ),
    "Speed and memory": (
        Panel("Images per second", "speed/(images)_per_s", "per second", "All processes together."),
        Panel("Queries per second", "speed/(queries)_per_s", "per second", "All processes together."),
        Panel("MFU", "speed/(mfu)", "share", "Model FLOP/s by the plan over the card's peak."),
        Panel(
            "Waiting for data", "speed/(data_wait)_share", "share of time", "Below 0.05; else the loader is the limit."
        ),
        Panel("Memory", "memory/(gib)", "GiB", "Highest so far, of this process."),
    ),
}
TABLED = re.compile(r"(validation(?:_average)?)/(top1|union|semantic)/([^/]+)/(\w+)")  # of each data set
ELSEWHERE = re.compile(r"check/best_dice|validation(?:_average)?/instances/[^/]+/\w+")  # at the top; in the log alone
