"""The page of a training run: one HTML file from the run's folder alone, which asks nothing of the network."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from medsam3.checks import differing_keys
from medsam3.files import write_text
from medsam3.reports import charts, curves
from medsam3.reports.panels import GROUPS, TABLED, Panel
from medsam3.reports.pictures import overlay_panels
from medsam3.reports.run_files import RunFiles, caption, cases, read_run

MAX_CASES, MAX_MOMENTS, PANEL_PX = 24, 12, 200
NOT_SETTINGS = (
    "split_files",
    "dataset_files",
    "word_files",
    "processes",
    "name",
    "output_dir",
    "output_root",
    "data.root",
)


def write_run_report(folder: Path, defaults: Mapping[str, Any]) -> Path:
    """Write report.html into a run's folder.

    Args:
        defaults: the configuration that the run's own is compared with.

    Raises:
        ValueError: see `read_run`.
    """
    path = folder / "report.html"
    write_text(path, run_report(read_run(folder), defaults))
    return path


def run_report(run: RunFiles, defaults: Mapping[str, Any]) -> str:
    """The page."""
    body = [_top(run), _panels(run, "Validation"), _by_data_set(run), _fixed_cases(run)]
    body += [_panels(run, group) for group in GROUPS if group != "Validation"]
    body += [_history(run), _facts(run, defaults)]
    style = re.search(r"<style>.*?</style>", _file("report_template.html"), re.DOTALL)
    assert style is not None
    fill = {"STYLE": style.group(), "BODY": "\n".join(body), "TITLE": escape(f"Training of {_name(run)}")}
    return re.sub("<!--(STYLE|BODY|TITLE)-->", lambda mark: fill[mark.group(1)], _file("run_template.html"))


def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _name(run: RunFiles) -> str:
    return str(run.config.get("name", run.folder.name))


def _top(run: RunFiles) -> str:
    step, total = run.lines[-1]["step"], _began(run).get("total_steps")
    numbers = [(f"{step:,}", f"steps{f' of {total:,}' if total else ''}")]
    if dice := run.curve("validation/dice", "epoch"):
        best = max(dice, key=lambda point: point[1])
        numbers += [(f"{dice[-1][1]:.3f}", f"validation Dice, epoch {dice[-1][0]:g}")]
        numbers += [(f"{best[1]:.3f}", f"the best, epoch {best[0]:g}")]
    if again := run.curve("check/best_dice", "step"):
        numbers.append((f"{again[-1][1]:.3f}", "the same, read back from best/"))
    if speed := run.curve("speed/images_per_s", "step"):
        numbers.append((f"{speed[-1][1]:.3g}", "images/s, last line"))
    skipped = sum("skipped" in line for line in run.lines)
    numbers += [(str(skipped), "steps left out")] if skipped else []
    cells = "".join(f"<div><b>{escape(number)}</b>{escape(words)}</div>" for number, words in numbers)
    notes = [] if run.torn is False else ["The last line of metrics.jsonl is not whole and is left out."]
    if (mfu := str(_began(run).get("mfu", ""))).startswith("no MFU"):
        notes.append(f"{mfu[0].upper()}{mfu[1:]}.")
    values = [(name, value) for line in run.lines for name, value in line.items() if isinstance(value, float)]
    broken = {name for name, value in values if not math.isfinite(value)}
    if broken:
        notes.append(f"Values that are not finite are left out of the charts: {', '.join(sorted(broken))}.")
    return (
        f'<h1>Training of {escape(_name(run))}</h1><p>{escape(_state(run))}</p><div class="numbers">{cells}</div>'
        + "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    )


def _began(run: RunFiles) -> dict[str, Any]:
    """The last start."""
    return next((event for event in reversed(run.events) if event.get("event") in ("started", "resumed")), {})


def _state(run: RunFiles) -> str:
    if not run.events:
        return "Whether it is finished is not recorded."
    last = run.events[-1]
    early = last["step"] < _began(run).get("total_steps", 0)  # nothing else ends a run before its last step
    words = {
        "ended": "Finished early, by trainer.patience" if early else "Finished",
        "stopped": "Stopped; the same command goes on",
        "failed": "Ended by an error",
    }
    return (
        f"{words.get(last['event'], 'In progress, or killed')} ({last['event']} {last['time']}, step {last['step']:,})."
    )


def _panels(run: RunFiles, group: str) -> str:
    names = run.names()
    figures = [_figure(run, panel, names) for panel in GROUPS[group]]
    shown = "".join(figures)
    return f'<h2>{group}</h2><div class="charts">{shown}</div>' if shown else ""


def _figure(run: RunFiles, panel: Panel, names: list[str]) -> str:
    lines = {line: run.curve(name, panel.over) for name, line in panel.lines(names).items()}
    marks = [event["step"] for event in run.events if event.get("event") == "resumed"] if panel.over == "step" else []
    svg = curves.chart(lines, panel.log, panel.over, marks)
    if not svg:
        return ""
    unit = f", {panel.unit}" if panel.unit.lower() not in panel.title.lower() else ""
    return f"<figure><h3>{escape(panel.title + unit)}</h3>{svg}<figcaption>{escape(panel.words)}</figcaption></figure>"


def _by_data_set(run: RunFiles) -> str:
    """Dice of each data set by each mask rule: last, best, and a small line from 0 to 1."""
    found = [(match, name) for name in run.names() if (match := TABLED.fullmatch(name)) and match.group(4) == "dice"]
    rows = []
    for match, name in sorted(found, key=lambda pair: (pair[0].group(3), pair[0].group(2), pair[0].group(1))):
        kind, rule, dataset, _ = match.groups()
        if points := run.curve(name, "epoch"):
            best = max(points, key=lambda point: point[1])
            rule += " (averaged weights)" * kind.endswith("average")
            cells = [f'<td class="word">{escape(cell)}</td>' for cell in (dataset, rule)]
            told = (f"{points[-1][1]:.3f}", f"{best[1]:.3f} in epoch {best[0]:g}", curves.spark(points))
            cells += [f"<td>{cell}</td>" for cell in told]
            rows.append(f"<tr>{''.join(cells)}</tr>")
    if not rows:
        return ""
    head = '<th class="word">data set</th><th class="word">mask rule</th><th>last</th><th>best</th><th>0 to 1</th>'
    return (
        "<h2>Dice by data set and mask rule</h2>"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _fixed_cases(run: RunFiles) -> str:
    """Image, truth and what was predicted after each validation; a slider goes through the epochs of all."""
    found = cases(run)
    if not found:
        return ""
    kept, done = _spread(list(found), MAX_CASES), run.validated()
    moments = _spread(sorted({step for case in kept for step in found[case]}), MAX_MOMENTS)
    blocks = []
    for case in kept:
        shown = [(step, panels) for step in moments if (panels := _pictures(found[case].get(step)))]
        if not shown:
            continue
        image, truth, _, _ = shown[-1][1]
        answers = {moments.index(step): [answer, said] for step, (_, _, answer, said) in shown}
        data = json.dumps(answers).replace("<", "\\u003c").replace("&", "\\u0026")
        last = shown[-1][1]
        pictures = "".join(
            f'<div><img alt="{word}" src="{source}">{word}</div>'
            for word, source in (("image", image), ("truth", truth))
        )
        blocks.append(
            f'<div class="case"><h3>{escape(case).replace("_", "_<wbr>")}</h3><div class="panels">{pictures}'
            f'<div><img class="answer" alt="prediction" src="{last[2]}">prediction</div></div>'
            f'<p class="note said">{escape(last[3])}</p><script type="application/json">{data}</script></div>'
        )
    words = "Always the same images of each data set, spread evenly over its validation part (evaluation.overlays)."
    if len(found) > len(kept):
        words += f" {len(kept)} of {len(found)} cases."
    labels = json.dumps([f"epoch {done[step]:.3g}, step {step:,}" for step in moments])
    last_moment = len(moments) - 1
    return (
        f"<h2>Fixed cases</h2><p>{words}</p><p><label>"
        f'<input id="moment" type="range" min="0" max="{last_moment}" value="{last_moment}"> '
        f'<output id="when"></output></label></p><noscript><p class="warn">The slider needs JavaScript; the last '
        f'epoch is shown.</p></noscript><div class="cases">{"".join(blocks)}</div>'
        f'<script type="application/json" id="moments">{labels}</script>'
    )


def _spread(items: list[Any], count: int) -> list[Any]:
    """At most `count`, evenly, the first and the last among them."""
    if len(items) <= count:
        return items
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def _pictures(path: Path | None) -> tuple[str, str, str, str] | None:
    """Image, truth, prediction and caption of a picture; None if there is none."""
    panels = overlay_panels(path) if path else None
    if path is None or panels is None:
        return None
    image, truth, answer = map(_data_uri, panels)
    return image, truth, answer, caption(path)


def _data_uri(panel: Image.Image) -> str:
    panel.thumbnail((PANEL_PX, PANEL_PX))
    buffer = BytesIO()
    panel.save(buffer, "WEBP", quality=70)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _history(run: RunFiles) -> str:
    """Starts, stops and steps that were left out."""
    rows, running = [], False
    for event in run.events:
        if event["event"] in ("started", "resumed") and running:
            rows.append(["–", "killed, or ended without a word", "", ""])
        running = event["event"] in ("started", "resumed")
        facts = ", ".join(f"{key} {value}" for key, value in event.items() if key not in ("time", "event", "step"))
        rows.append([event["time"], event["event"], f"{event['step']:,}", facts])
    skipped = [
        [f"{line['step']:,}", "; ".join(line.get("reasons", [])), ", ".join(line["skipped"])]
        for line in run.lines
        if "skipped" in line
    ]
    parts = ["<h2>Starts, stops, steps left out</h2>"]
    if rows:
        parts.append(charts.table(["time (UTC)", "event", "step", "facts"], rows, words=4))
    parts.append(
        charts.table(["step", "why it was left out", "samples"], skipped, words=3)
        if skipped
        else "<p>No step was left out: every loss and gradient was finite.</p>"
    )
    return "".join(parts)


def _facts(run: RunFiles, defaults: Mapping[str, Any]) -> str:
    settings = {key: value for key, value in run.config.items() if key not in NOT_SETTINGS}
    plain = {key: value for key, value in defaults.items() if key in settings}
    rows = [
        [key, *value.split(" -> ", 1)]
        for key, _, value in (line.partition(": ") for line in differing_keys(plain, settings))
        if not key.startswith(NOT_SETTINGS)
    ]
    versions = run.environment.get("versions", {})
    facts = [["code", str(run.environment.get("code", "not recorded"))]]
    facts += [["python", str(run.environment.get("python", "not recorded"))]]
    facts += [[name, str(version or "absent")] for name, version in versions.items()]
    splits, files = (run.config.get(key) or {} for key in ("split_files", "dataset_files"))
    sets = [[name, str(splits[name]), str(files.get(name, "–"))] for name in splits]
    sets += [[name, "", str(code)] for name, code in (run.config.get("word_files") or {}).items()]
    return (
        "<h2>Facts</h2><h3>Settings that differ from configs/train.yaml</h3>"
        + charts.table(["key", "train.yaml", "this run"], rows, words=3)
        + "<h3>Data sets, with the hashes of their files</h3>"
        + charts.table(["data set or file of words", "split file", "file"], sets, words=3)
        + "<h3>Versions</h3>"
        + charts.table(["what", "version"], facts, words=2)
    )
