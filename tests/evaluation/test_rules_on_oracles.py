"""What a perfect model scores by each rule: all of it by union and semantic, by top1 the ceiling that the table prints.

And an evaluation that is killed goes on where it stopped.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medsam3.config import DataConfig, EvaluationConfig, ForeignConfig, PredictionConfig
from medsam3.data.corpus import Corpus, open_corpus
from medsam3.evaluation.answers import ModelAnswers
from medsam3.evaluation.evaluator import TruthImages, asked_images, run_evaluation
from medsam3.layouts.instances import Instances
from medsam3.model.detector import BranchOutput, DetectorOutput, TextFeatures
from medsam3.prediction.image import ImagePredictor
from medsam3.preparation.prepare import prepare
from medsam3.results.findings import Journal
from tests.conftest import data_config, prepare_config, save_picture
from tests.prediction.test_tiles import CONFIG as TILES
from tests.prediction.test_tiles import Oracle as TileOracle
from tests.prediction.test_tiles import numbers_of, painted

PREDICTIONS = 300
CONFIG = PredictionConfig(
    rules=["top1", "union", "semantic"],
    score_threshold=0.0,
    union_threshold=0.5,
    presence_threshold=0.5,
    resolve_overlaps=True,
    queries_per_pass=2,
    tile=None,
    tile_overlap=0,
)
ALL = EvaluationConfig(
    metrics=["dice", "iou"], instances=False, instance_score=0.05,
    concepts="ours", ask="all", foreign=ForeignConfig(hard=0, easy=0, seed=0), synonyms=False,
    images=None, overlays=0, save_masks=False, workers=0,
)  # fmt: skip


class OracleDetector(nn.Module):
    """Finds every true instance of a concept as a mask of its own, the surer the larger; the rest gets a low score."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.words: list[str] = []
        self.truths: dict[str, Instances] = {}

    def tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        self.words += [text for text in texts if text not in self.words]
        ids = torch.tensor([[self.words.index(text)] for text in texts])
        return ids, torch.ones_like(ids)

    def encode_images(self, pixels: Tensor) -> Tensor:
        return pixels

    def encode_texts(self, ids: Tensor, mask: Tensor) -> TextFeatures:
        return TextFeatures(ids[:, :, None], mask.bool())

    def detect(self, features: Tensor, image_index: Tensor, texts: TextFeatures) -> DetectorOutput:
        found = [self.truths[self.words[number]] for number in texts.tokens[:, 0, 0].tolist()]
        size = found[0].size
        logits = torch.full((1, len(found), PREDICTIONS), -9.0)
        pixels = torch.full((len(found), PREDICTIONS, *size), -1.0)
        for q, instances in enumerate(found):
            masks = torch.from_numpy(instances.stack())
            logits[0, q, : len(masks)] = 1 + torch.from_numpy(instances.areas_px / instances.areas_px.max(initial=1))
            pixels[q, : len(masks)][masks] = 1.0
        presence = torch.tensor([[40.0 if len(instances) else -9.0 for instances in found]])
        embeddings = torch.eye(PREDICTIONS).expand(len(found), -1, -1)
        branch = BranchOutput(logits, torch.zeros(*logits.shape, 4), embeddings, pixels)
        return DetectorOutput(branch, presence, pixels.amax(dim=1))


class Oracle(ImagePredictor):
    """Tells its detector what is in the image."""

    def __init__(self, corpus: Corpus, name: str) -> None:
        detector = OracleDetector()
        super().__init__(detector, detector.tokens, 14, CONFIG, bf16=False)  # type: ignore[arg-type]
        reader = corpus.readers[name]
        self.known = {reader.image(item).tobytes(): reader.masks(item) for item in reader.items()}

    def predict(self, image, *args, **options):
        self.detector.truths = self.known[image.tobytes()]
        return super().predict(image, *args, **options)


def scores_of(corpus: Corpus, name: str, part: str = "all"):
    return run_evaluation(
        ModelAnswers(Oracle(corpus, name), corpus), corpus, asked_images(corpus, {name: part}, ALL), ALL
    )


@pytest.fixture
def corpus(tmp_path, make_spec) -> Corpus:
    """Three images: three cells of 16, 4 and 4 px and one nerve; one cell; none of both."""
    cells = np.zeros((20, 30), np.uint8)
    cells[2:6, 2:6] = 1
    cells[10:12, 2:4] = cells[10:12, 8:10] = 1
    nerve = cells.copy()
    nerve[15:18, 15:25] = 2
    single = np.zeros_like(cells)
    single[5:9, 5:9] = 1
    for n, mask in enumerate((nerve, single, np.zeros_like(cells))):
        save_picture(tmp_path / f"data/small/images/{n}.png", np.full((20, 30, 3), n, np.uint8))
        save_picture(tmp_path / f"data/small/masks/{n}.png", mask)
    make_spec(concepts={1: "cell", 2: "nerve"}, instances="components")
    return opened(data_config(tmp_path), make_spec.folder)


def opened(data: DataConfig, folder) -> Corpus:
    prepare(prepare_config(data), [folder])
    return open_corpus(data, "small", [folder])


def test_a_perfect_instance_model_scores_100_by_union_and_semantic_and_the_ceiling_by_top1(corpus):
    evaluation = scores_of(corpus, "small")
    ceiling = (2 * 16 / (16 + 24) + 1 + 1) / 3  # cells, nerve, single cell
    for rule, expected in (("top1", ceiling), ("union", 1.0), ("semantic", 1.0)):
        score = evaluation.scores[rule]["small"]
        assert score.values["dice"] == pytest.approx(expected) and score.ceiling == pytest.approx(ceiling)
        assert (score.queries, score.absent, score.images) == (3, 3, 3)
    assert evaluation.rule == "top1" and evaluation.main_scores is evaluation.scores["top1"]


def test_a_perfect_model_leaves_what_is_not_there_alone(corpus):
    scores = scores_of(corpus, "small").scores
    assert [scores[rule]["small"].answered for rule in ("top1", "union", "semantic")] == [0.0, 0.0, 0.0]
    oracle_row = next(row for row in scores_of(corpus, "small").results if not row.present)
    assert oracle_row.values["dice"] == 1.0 and oracle_row.ceiling == 1.0 and oracle_row.presence < 0.01


def test_only_what_is_there_is_asked_where_the_paper_is_followed(corpus):
    present = dataclasses.replace(ALL, ask="present")
    evaluation = run_evaluation(
        ModelAnswers(Oracle(corpus, "small"), corpus), corpus, asked_images(corpus, {"small": "all"}, present), present
    )
    score = evaluation.scores["union"]["small"]
    assert (score.queries, score.absent, score.images, score.answered) == (3, 0, 2, None)


def test_some_of_many_images_are_spread_over_all(small_set, make_spec):
    config = dataclasses.replace(ALL, images=5)
    found = asked_images(opened(small_set[1], make_spec.folder), {"small": "all"}, config)["small"]
    assert [rows.item[-2:] for rows in found] == ["00", "02", "04", "07", "09"]  # of 00 to 11


def test_the_papers_task_may_unite_concepts(tmp_path, make_spec, corpus):
    make_spec(
        concepts={1: "cell", 2: "nerve"},
        instances="components",
        paper_concepts={"cell and nerve": ["cell", "nerve"]},
        partly_marked=["nerve"],
    )
    corpus = opened(data_config(tmp_path), make_spec.folder)
    paper = dataclasses.replace(ALL, concepts="paper")
    truths = TruthImages(corpus, corpus.images("small", "all"), paper)
    found = [{name: int(truth.mask.sum()) for name, truth in truths[i][2].items()} for i in range(3)]
    assert found == [{"cell and nerve": 54}, {"cell and nerve": 16}, {}]  # not absent where a part is marked in places
    ours = TruthImages(corpus, corpus.images("small", "all"), ALL)
    assert [set(ours[i][2]) for i in range(3)] == [{"cell", "nerve"}, {"cell"}, {"cell"}]


def test_taking_images_without_any_target_only_is_refused(corpus):
    rows = corpus.images("small", "all")
    empty_first = [row for row in rows if not row.present] + [row for row in rows if row.present]
    corpus.images = lambda name, part: empty_first  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"no image with a mask .* among the 1 that evaluation\.images takes"):
        asked_images(corpus, {"small": "all"}, dataclasses.replace(ALL, images=1))


def test_in_tiles_each_of_more_objects_than_one_pass_answers_counts_once(tmp_path, make_spec):
    places = [(y, x) for y in range(9, 290, 16) for x in range(9, 290, 16)]
    image = painted((300, 300), {2 * i + 1: (*place, 6, 6) for i, place in enumerate(places)})
    save_picture(tmp_path / "data/small/images/0.png", image)
    save_picture(tmp_path / "data/small/masks/0.png", numbers_of(image).astype(np.uint16))
    make_spec(concepts={"cell": "cell"}, instances="labels")
    corpus = opened(data_config(tmp_path), make_spec.folder)
    config = dataclasses.replace(ALL, instances=True)
    model = TileOracle(dataclasses.replace(TILES, tile=100))
    answers = ModelAnswers(model, corpus, detected_from=config.detected_from)
    evaluation = run_evaluation(answers, corpus, asked_images(corpus, {"small": "all"}, config), config)
    own = evaluation.instances["small"].own
    assert (own.truths, own.predictions, len(model.seen)) == (324, 324, 16)
    assert [own.values[name] for name in ("ap", "ap75", "f1", "pq")] == [1, 1, 1, 1]
    assert [found["small"].values["dice"] for found in evaluation.scores.values()] == [1, 1]


def interrupted(corpus: Corpus, folder, question: str, after: int) -> list[str]:
    """Evaluate with a journal until `after` images are done; returns the images that were looked at."""
    looked: list[str] = []

    class Watched(Oracle):
        def predict(self, image, *args, **options):
            if len(looked) == after:
                raise KeyboardInterrupt
            looked.append(str(image.flat[0]))  # the n-th image is n all over
            return super().predict(image, *args, **options)

    asked = asked_images(corpus, {"small": "all"}, ALL)
    journal = Journal(folder, question)
    try:
        evaluation = run_evaluation(ModelAnswers(Watched(corpus, "small"), corpus), corpus, asked, ALL, journal)
        assert list(evaluation.results) == list(scores_of(corpus, "small").results)
        journal.discard()
    except KeyboardInterrupt:
        pass
    return looked


def test_an_evaluation_that_was_killed_goes_on_with_the_images_that_are_left(corpus, tmp_path):
    folder = tmp_path / "unfinished"
    assert interrupted(corpus, folder, "question", after=1) == ["0"]
    assert interrupted(corpus, folder, "question", after=1) == ["1"]
    with min(folder.iterdir()).open("a") as file:
        file.write('{"dataset": "small", "it')  # killed while it wrote
    assert interrupted(corpus, folder, "question", after=9) == ["2"]
    assert not folder.exists()


def test_what_was_found_to_another_question_does_not_count(corpus, tmp_path):
    folder = tmp_path / "unfinished"
    interrupted(corpus, folder, "question", after=2)
    assert interrupted(corpus, folder, "another question", after=9) == ["0", "1", "2"]
