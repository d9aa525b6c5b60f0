"""Words that a picture cannot show, and synonyms: what is asked, where the answers go, and where they must not go."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from medsam3.config import EvaluationConfig, ForeignConfig
from medsam3.data.corpus import Corpus, open_corpus
from medsam3.data.manifest import ImageRows
from medsam3.evaluation.answers import ModelAnswers
from medsam3.evaluation.evaluator import asked_images, run_evaluation
from medsam3.layouts.instances import Mask
from medsam3.prediction.answer import Answer, Prediction
from medsam3.preparation.prepare import prepare
from medsam3.registry.scenes import AbsentPool, absent_pool, shipped_scenes
from medsam3.registry.spec import load_specs
from medsam3.results.asking import check_foreign, foreign_words, wordings
from medsam3.results.findings import Evaluation, Journal
from tests.conftest import prepare_config
from tests.evaluation.test_answers import BOXES, IMAGE, ROWS, Listener

BOTH = ForeignConfig(hard=2, easy=3, seed=0)
ALL = EvaluationConfig(
    metrics=["dice", "iou"], concepts="ours", ask="all", foreign=BOTH, synonyms=False, images=None, overlays=0,
    save_masks=False, workers=0,
)  # fmt: skip


def drawn(specs, rows: ImageRows, foreign: ForeignConfig = BOTH) -> dict[str, str]:
    table = shipped_scenes()
    corpus = SimpleNamespace(
        specs=specs,
        absent_pool=lambda rows: absent_pool(table, specs[rows.dataset], rows.item, rows.present, rows.absent),
    )
    return foreign_words(corpus, rows, dataclasses.replace(ALL, foreign=foreign))  # type: ignore[arg-type]


def test_no_word_is_asked_that_the_picture_could_show():
    specs, table, draw = load_specs(["train", "external"]), shipped_scenes(), random.Random(0)
    for name, spec in specs.items():
        if isinstance(spec.scene, dict):
            continue
        for number in range(20):
            present = tuple(draw.sample(spec.concept_names, draw.randint(1, min(3, len(spec.concept_names)))))
            absent = tuple(concept for concept in spec.concept_names if concept not in present)
            words = drawn(specs, ImageRows(name, f"i{number}", "g", "val", present, absent))
            assert Counter(words.values()) == {"hard": 2, "easy": 3}
            for word, kind in words.items():
                assert spec.scene not in table.seen_in[word] and word not in table.implied(present) | table.too_wide
                modalities = {table.scenes[scene].modality for scene in table.seen_in[word]}
                if kind == "easy":
                    assert spec.modality not in modalities and word not in spec.concept_names


def test_words_depend_on_the_image_and_the_seed_alone():
    specs = load_specs(["kvasir_seg", "drive"])
    images = [ImageRows("kvasir_seg", f"i{n}", "g", "val", ("polyp",), ()) for n in range(300)]
    words = [drawn(specs, rows) for rows in images]
    assert [drawn(specs, rows) for rows in reversed(images)] == words[::-1]
    other = [drawn(specs, rows, dataclasses.replace(BOTH, seed=1)) for rows in images]
    assert sum(one == two for one, two in zip(words, other, strict=True)) == 0
    hard = Counter(word for found in words for word, kind in found.items() if kind == "hard")
    pool, _ = shipped_scenes().unseen("colonoscopy", "endoscopy")
    assert len(pool) == 101 and len(hard) > 95 and max(hard.values()) < 20  # 600 draws, 6 each
    # pinned: neither another Python nor another machine may change what is asked
    letters = AbsentPool((), tuple("abcdefghij"), tuple("klmnopqrst"))
    fixed = SimpleNamespace(specs=specs, absent_pool=lambda rows: letters)
    asked = foreign_words(fixed, ImageRows("drive", "21", "21", "val", ("retinal blood vessel",), ()), ALL)  # type: ignore[arg-type]
    assert "".join(asked) == "iflmt"


def square(left: int, top: int, side: int) -> Mask:
    mask = np.zeros((40, 60), bool)
    mask[top : top + side, left : left + side] = True
    return mask


LEFT = square(5, 10, 10)
Replies = Callable[[str], tuple[float, Mask]]


class Replier:
    """Answers each phrase by a function, the same by two rules; keeps what it was asked."""

    def __init__(self, replies: Replies) -> None:
        self.replies = replies
        self.asked: list[tuple[list[str], list[str]]] = []

    def __call__(self, rows, image, boxes, words=()) -> list[Prediction]:
        self.asked.append((list(boxes), list(words)))
        found = []
        for phrase in (*boxes, *words):
            score, mask = self.replies(phrase)
            answer = Answer(score, mask)
            found.append(Prediction(phrase if phrase in boxes else "", score, {"union": answer, "top1": answer}))
        return found


@pytest.fixture
def corpus(small_set, make_spec) -> Corpus:
    """Twelve images: the left square, a disc, in all; a cup of 8 x 10 px in every second one."""
    make_spec(
        concepts={1: "optic disc", 2: "optic cup"}, modality="fundus", scene="disc_fundus", group=r"^(p\d+)_",
        exclusive=["optic disc", "optic cup"],
    )  # fmt: skip
    prepare(prepare_config(small_set[1]), [make_spec.folder])
    return open_corpus(small_set[1], "small", [make_spec.folder])


def evaluated(corpus: Corpus, replies: Replies, journal: Journal | None = None, **changes) -> Evaluation:
    config = dataclasses.replace(ALL, **changes)
    return run_evaluation(Replier(replies), corpus, asked_images(corpus, {"small": "all"}, config), config, journal)


def always_left(phrase: str) -> tuple[float, Mask]:
    return 0.9, LEFT


def test_foreign_words_have_rows_of_their_own_and_are_in_no_mean(corpus):
    found = evaluated(corpus, always_left)
    without = evaluated(corpus, always_left, foreign=ForeignConfig(hard=0, easy=0, seed=0))
    assert found.scores == without.scores and found.prompt_dice == without.prompt_dice
    kinds = Counter(row.kind for row in found.results if row.rule == "union")
    assert kinds == {"present": 18, "marked": 6, "hard": 24, "easy": 36}
    foreign = [row for row in found.results if row.foreign]
    assert all(row.values == {"dice": 0.0, "iou": 0.0} and row.prediction_px == 100 for row in foreign)
    assert {(row.truth_px, row.present) for row in foreign} == {(0, False)}
    strip = [dataclasses.replace(row, swapped_absent=None) for row in found.results if not row.foreign]
    assert strip == [dataclasses.replace(row, swapped_absent=None) for row in without.results]


def test_an_answer_is_held_against_the_truths_that_were_not_asked_for(corpus):
    masks = {"optic disc": LEFT, "optic cup": square(6, 10, 10)}

    def replies(phrase: str) -> tuple[float, Mask]:
        return 0.9, masks.get(phrase, square(10, 10, 10))

    rows = {(row.item[-2:], row.concept): row for row in evaluated(corpus, replies).results if row.rule == "union"}
    disc, cup, alone = rows["01", "optic disc"], rows["01", "optic cup"], rows["00", "optic disc"]
    assert (disc.values["dice"], disc.swapped, disc.swapped_truths) == (1.0, 0.9, 0.0)
    assert disc.swapped_absent == pytest.approx(2 * 50 / 200)  # of 5 foreign words
    assert cup.swapped == 0.0 and alone.swapped is None and alone.swapped_truths is None
    # beside 5 foreign words the cup, which the set marks as absent
    assert alone.swapped_absent == pytest.approx((5 * 0.5 + 0.9) / 6)
    assert all(row.swapped_absent is None for row in rows.values() if not row.present)


def test_other_words_for_what_is_there_are_asked_and_kept_apart(corpus):
    def replies(phrase: str) -> tuple[float, Mask]:
        return 0.9, square(10, 10, 10) if phrase == "optic papilla" else LEFT

    found = evaluated(corpus, replies, synonyms=True)
    without = evaluated(corpus, replies)
    assert list(found.results) == list(without.results) and found.scores == without.scores
    dice = {row.prompt: row.values["dice"] for row in found.reworded if row.concept == "optic disc"}
    assert dice == {"optic disc": 1.0, "optic disk": 1.0, "optic nerve head": 1.0, "optic papilla": 0.5}
    assert {row.kind for row in found.reworded} == {"present"} and len(list(found.reworded)) == 2 * 4 * (12 + 6)


def test_a_phrase_of_two_concepts_asks_for_the_one_whose_name_it_is_in_every_image(small_set, make_spec):
    make_spec(concepts={1: "optic disc", 2: "optic nerve head"}, modality="fundus", scene="disc_fundus")
    prepare(prepare_config(small_set[1]), [make_spec.folder])
    corpus = open_corpus(small_set[1], "small", [make_spec.folder])
    config = dataclasses.replace(ALL, synonyms=True)
    alone, both = (wordings(corpus, rows, config) for rows in corpus.images("small", "all")[:2])
    assert alone == dict.fromkeys(["optic disc", "optic disk", "optic papilla"], "optic disc")
    assert both == alone | {"optic nerve head": "optic nerve head"}


def test_further_words_take_no_pixel_and_are_asked_as_they_are():
    class Wide(Listener):
        def exclusive(self, dataset):
            return ("liver", "spleen")

        def predict(self, image, concepts, exclusive, prompts, boxes, detected_from):
            self.heard = concepts, prompts
            return []

    listener = Wide()
    ModelAnswers(listener, listener)(ROWS, IMAGE, BOXES, ["liver", "car"])  # type: ignore[arg-type]
    assert listener.heard == (["liver", "spleen", "", ""], ["the liver", "the spleen", "liver", "car"])


def test_a_killed_evaluation_keeps_foreign_and_reworded_rows(corpus, tmp_path):
    journal = Journal(tmp_path / "unfinished", "question")
    whole = evaluated(corpus, always_left, journal, synonyms=True)
    again = Journal(tmp_path / "unfinished", "question")
    assert len(again.finished) == 12

    def never(phrase: str) -> tuple[float, Mask]:
        raise AssertionError("asked again")

    found = evaluated(corpus, never, again, synonyms=True)
    assert list(found.results) == list(whole.results) and list(found.reworded) == list(whole.reworded)


def test_a_picture_of_which_nothing_is_known_is_refused_before_anything_is_asked(small_set, make_spec):
    make_spec(concepts={1: "optic disc", 2: "optic cup"}, modality="fundus", group=None)
    prepare(prepare_config(small_set[1]), [make_spec.folder])
    corpus = open_corpus(small_set[1], "small", [make_spec.folder])
    with pytest.raises(ValueError, match=r"foreign\.hard=2: only 0 words are hard.*small\.yaml \(scene: .*=0"):
        check_foreign(corpus, BOTH)
    check_foreign(corpus, ForeignConfig(hard=0, easy=2, seed=0))
    rows = corpus.images("small", "all")[0]
    assert set(wordings(corpus, rows, dataclasses.replace(ALL, synonyms=True)).values()) == set(rows.present)
