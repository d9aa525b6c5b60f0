"""Where things stand on the page, and what each of them sets off."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterator
from html import escape
from types import SimpleNamespace
from typing import Any
from weakref import WeakValueDictionary

from medsam3.demo import drawing
from medsam3.demo.examples import PROMPTS, example
from medsam3.demo.study import ENDINGS, FLOOR, Study
from medsam3.demo.visits import Visits
from medsam3.prediction.segmentation import FAILURES
from medsam3.scans.scan import Scan

STYLE = """
.picture {margin: 0} .picture img {width: 100%; max-height: 75vh; object-fit: contain; image-rendering: pixelated}
.scores {overflow-x: auto} .scores td, .scores th {padding: 2px 10px 2px 0; text-align: left; white-space: nowrap}
.scores td:nth-child(2) {white-space: normal; overflow-wrap: anywhere; min-width: 8em}
.swatch {display: inline-block; width: 1em; height: 1em; border-radius: 3px} .messages {padding-left: 1.2em}
"""
MODES = {"each slice alone": "detector", "followed from slice to slice": "tracker"}
TEXT = (
    "## Words in, masks out\nModel: {model}. Files of up to {megabytes:g} MB, deleted when the tab is closed or after "
    "{minutes:g} minutes. A score is no probability of disease. Not a medical device."
)


def lay_out(gradio: Any, visits: Visits) -> Any:
    """The page as Gradio's Blocks."""
    config = visits.config
    seconds = int(config.keep_minutes * 60)
    with gradio.Blocks(title="medsam3", analytics_enabled=False, delete_cache=(60, seconds)) as blocks:
        study = gradio.State(None, time_to_live=seconds, delete_callback=_close)
        gradio.Markdown(TEXT.format(model=visits.about, megabytes=config.upload_mb, minutes=config.keep_minutes))
        parts = _parts(gradio, config.prediction.union_threshold, config.volume.mode if visits.volumes else None)
        events = _Events(gradio, visits)
        _connect(study, parts, events)
        blocks.unload(events.of_session(events.leave))
    return blocks


def _parts(gradio: Any, threshold: float, mode: str | None) -> SimpleNamespace:
    """What can be seen, by name: on the left what the visitor gives, on the right what comes of it.

    Args:
        mode: of volumes, chosen at first; None: there is no tracker, and so no choice.
    """
    parts = SimpleNamespace()
    with gradio.Row():
        with gradio.Column(scale=1, min_width=300):
            parts.files = gradio.File(
                label="Picture, volume, or DICOM files",
                file_count="multiple",
                file_types=list(ENDINGS),
                height=150,
                elem_id="upload",
            )
            with gradio.Row():
                parts.slice_example = gradio.Button("Example: MR slice", size="sm", min_width=100)
                parts.volume_example = gradio.Button("Example: MR volume", size="sm", min_width=100)
            parts.series = gradio.Dropdown([], label="DICOM series", visible=False, elem_id="series")
            parts.words = gradio.Textbox(label="Prompts, with commas between them", lines=2, elem_id="prompts")
            parts.mode = gradio.Radio(
                list(MODES), value=next((words for words, own in MODES.items() if own == mode), None),
                label="Volumes", visible=mode is not None, elem_id="mode",
            )  # fmt: skip
            with gradio.Row():
                parts.segment = gradio.Button("Segment", variant="primary", min_width=100)
                parts.stop = gradio.Button("Stop", min_width=60, scale=0)
            parts.status = gradio.HTML(elem_id="status")
            parts.threshold = gradio.Slider(FLOOR, 1, threshold, step=0.01, label="Threshold of the score")
            parts.opacity = gradio.Slider(0, 1, 0.45, step=0.05, label="Opacity")
            parts.make = gradio.Button("Make files of the masks")
            parts.masks = gradio.File(label="Masks at this threshold", visible=False, elem_id="masks")
        with gradio.Column(scale=2, min_width=300):
            parts.picture = gradio.HTML(elem_id="picture")
            parts.place = gradio.Slider(1, 2, 1, step=1, label="Slice", visible=False, elem_id="slice")
            parts.table = gradio.HTML(elem_id="scores")
    return parts


def _connect(study: Any, parts: SimpleNamespace, events: _Events) -> None:
    """What each part sets off. Only `segment` asks the model, for one visitor at a time."""
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    everything = [study, parts.files, parts.place, parts.picture, parts.table, parts.status, parts.masks]
    told = [*everything, parts.series]
    sliders = [parts.threshold, parts.opacity]
    view = [study, parts.place, *sliders]
    parts.files.upload(events.of_session(events.upload), [parts.files, *sliders], told, **quiet)
    parts.series.input(events.of_session(events.choose), [parts.series, study, *sliders], told, **quiet)
    for button, volume in ((parts.slice_example, False), (parts.volume_example, True)):
        show = functools.partial(events.example, volume)
        button.click(events.of_session(show), sliders, [*told, parts.words], **quiet)
    running = parts.segment.click(
        events.segment, [parts.words, parts.mode, *view], everything[2:], concurrency_limit=1, **quiet
    )
    parts.stop.click(None, cancels=[running], **quiet)
    for slider in (parts.place, *sliders):
        slider.change(events.redraw, view, [parts.picture, parts.table], trigger_mode="always_last", **quiet)
    parts.make.click(events.make, [study, parts.threshold], parts.masks, **quiet)


def _close(study: Study | None) -> None:
    if study is not None:
        study.close()


class _Events:
    """Handlers in Gradio's terms: values of components in, updates of components out; errors as messages.

    Gradio keeps a state for an hour after its tab was closed: so the studies are also known by session.
    """

    def __init__(self, gradio: Any, visits: Visits) -> None:
        self.gradio = gradio
        self.visits = visits
        self.studies: WeakValueDictionary[str, Study] = WeakValueDictionary()

    def of_session(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """The handler with the session as its last argument."""

        def called(request: Any, *values: Any) -> Any:
            return handler(*values, request.session_hash)

        called.__annotations__ = {"request": self.gradio.Request}  # by this Gradio knows what to hand over
        return called

    def leave(self, session: str) -> None:
        _close(self.studies.pop(session, None))

    def upload(self, files: list[str] | None, threshold: float, opacity: float, session: str) -> list[Any]:
        return self._shown(self._said(lambda: self.visits.opened(files)), threshold, opacity, session)

    def choose(self, key: str, study: Study | None, threshold: float, opacity: float, session: str) -> list[Any]:
        if study is None or study.closed:
            return [self.gradio.skip()] * 8
        self._said(lambda: study.choose(key, self.visits.config))
        return self._shown(study, threshold, opacity, session)

    def example(self, volume: bool, threshold: float, opacity: float, session: str) -> list[Any]:
        study = self._said(lambda: example(self.visits.config, volume))
        return [*self._shown(study, threshold, opacity, session), PROMPTS]

    def segment(
        self, words: str, mode: str | None, study: Study | None, place: int, threshold: float, opacity: float
    ) -> Iterator[tuple[Any, ...]]:
        asking = self.visits.asked(study, words, threshold, MODES.get(mode or "") == "tracker")
        keep = self.gradio.skip()
        while (line := self._said(lambda: next(asking, None))) is not None:
            yield keep, keep, keep, drawing.messages([line]), self.gradio.update(value=None, visible=False)
        assert study is not None
        place = study.best_picture() + 1
        told = drawing.messages(self.visits.notes(study))
        yield place, *self.redraw(study, place, threshold, opacity), told, keep

    def redraw(self, study: Study | None, place: int, threshold: float, opacity: float) -> tuple[str, str]:
        if study is None or study.closed:
            return "", ""
        index = min(max(int(place), 1), len(study)) - 1
        return self._said(
            lambda: (drawing.figure(study, index, threshold, opacity), drawing.table(study, index, threshold))
        )

    def make(self, study: Study | None, threshold: float) -> Any:
        path = self._said(lambda: self.visits.archive(study, threshold))
        return self.gradio.update(value=path, visible=True)

    def _shown(self, study: Study, threshold: float, opacity: float, session: str) -> list[Any]:
        """Updates for a new study: it takes the place of the session's study before."""
        if self.studies.get(session) is not study:
            self.leave(session)
        self.studies[session] = study
        place = len(study) // 2 + 1
        slider = self.gradio.update(maximum=max(len(study), 2), value=place, visible=len(study) > 1)
        told = drawing.messages(self.visits.notes(study))
        hidden = self.gradio.update(value=None, visible=False)
        key = (
            study.source.series.key if study.series and isinstance(study.source, Scan) and study.source.series else None
        )
        choices = [(words, own) for own, words in study.series.items()]
        series = self.gradio.update(choices=choices, value=key, visible=bool(choices))
        return [study, None, slider, *self.redraw(study, place, threshold, opacity), told, hidden, series]

    def _said(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except FAILURES as error:
            words = self.visits.words_of(error)
        except Exception as error:  # a fault of ours, or damage that leads a library anywhere
            traceback.print_exc()
            words = f"{type(error).__name__}: nobody thought of this; the terminal of the page has the details"
        raise self.gradio.Error(escape(words, quote=False), title="This did not work", print_exception=False)
