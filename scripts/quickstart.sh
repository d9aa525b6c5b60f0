#!/usr/bin/env bash
# The whole job on real MR slices, on a CPU: prepare, evaluate untrained, train on two processes, evaluate trained. And
# beside it a short training that is never asked for what is not there: it says yes to every word.
set -euo pipefail
cd "$(dirname "$0")/.."
out=runs/quickstart
export OMP_NUM_THREADS=1
train="torchrun --standalone --nproc_per_node=2 scripts/train.py experiment=quickstart"
evaluate="python scripts/evaluate.py split=[mni152] seed=0 prediction.rules=[top1,union,semantic]
  evaluation.foreign.hard=2 evaluation.foreign.easy=2"

echo "1/5  prepare: the MNI152 template that the nilearn wheel ships"
python scripts/prepare_data.py datasets=mni152

echo "2/5  evaluate the untrained model"
$evaluate name=quickstart/untrained checkpoint=tiny image_size=168

echo "3/5  train on positives only, for a few epochs (run again after an interruption: it resumes)"
$train name=quickstart/positives data.absent_concepts=0 data.hard_negatives=0 trainer.epochs=4 wandb.mode=off
$evaluate name=quickstart/positives/trained checkpoint=$out/positives

echo "4/5  train"
$train

echo "5/5  evaluate the trained model"
$evaluate name=quickstart/trained checkpoint=$out baseline=$out/untrained/results.json
python scripts/compare.py $out/untrained $out/positives/trained $out/trained --names untrained positives trained \
  --output $out/comparison > /dev/null

cat <<END

Validation slices of the MNI152 template, untrained (baseline) against trained (ours):
$(cat $out/trained/table.md)
Asked for what a slice of a brain cannot show ("hard": other MR pictures can): a model that was asked for such words in
training ("trained") and one that was not ("positives"); by top1, which keeps every mask, in $out/comparison/comparison.md:
$(sed -n '/^## Does it say no/,$p' $out/comparison/comparison.md | grep '^|' | grep -v '| top1 |')

Dice of each prompt (row) against each truth (column), trained:
$(cat $out/trained/prompts.md)
Report:    $out/trained/report.html
Pictures:  $out/trained/overlays/   Metrics: $out/metrics.jsonl   Model: $out/best/
One averaged brain, left-right symmetric: this shows that the machine works, not that it generalises.
END
