#!/usr/bin/env bash
# From a clean clone to a model trained on real text, in 3D, on this machine's CPU:
#
#   install -> raw text -> curated corpus -> tokenizer -> binarized data -> the bar to clear -> pretraining on
#   8 processes (tensor 2 x pipeline 2 x data 2, ZeRO-3) -> a sample of text -> report.html
#
# Everything lands in runs/quickstart. Each step is left out where its result stands, so a second call starts at once
# and an interrupted one goes on; remove runs/quickstart to begin anew.
set -euo pipefail
cd "$(dirname "$0")/.."

run=runs/quickstart
config=examples/quickstart.yaml
python=.venv/bin/python
export OMP_NUM_THREADS=1 # eight processes share the cores
# On the CPU, also where GPUs are: eight processes need not be one for each.
export CUDA_VISIBLE_DEVICES="" HIP_VISIBLE_DEVICES=""

say() { printf '\n== %s\n' "$1"; }
setting() { $python -c "from megatron_lite.config import load_config; print(load_config('$config').$1)"; }

say "install into .venv"
bash tools/install.sh data

say "raw text: documentation by package, the standard library's code"
$python tools/fetch_corpus.py --output-dir $run/raw

say "curate: read, filter, deduplicate, split"
$python tools/curate_data.py examples/curation/quickstart.yaml

say "tokenizer: SentencePiece, learned from the training documents"
if [ ! -f $run/tokenizer.model ]; then
    $python tools/train_tokenizer.py --input $run/curation/corpus/train/*.jsonl.zst --sample-bytes 20000000 \
        --model-prefix $run/tokenizer --vocab-size "$(setting model.vocab_size)"
fi

say "binarize: documents to token ids in Megatron's .bin and .idx"
mkdir -p $run/data
for part in train valid; do
    if [ ! -f $run/data/${part}_text_document.idx ]; then
        $python tools/preprocess_data.py --input $run/curation/corpus/$part/*.jsonl.zst --output-prefix $run/data/$part \
            --tokenizer-model $run/tokenizer.model --workers 2 --append-eod
    fi
done

say "the bar: a unigram model's cross-entropy on the validation documents"
[ -f $run/unigram.json ] || $python tools/unigram_baseline.py $config --output $run/unigram.json

say "pretrain: tensor 2 x pipeline 2 x data 2, ZeRO-3"
checkpoint=$run/checkpoints/step_$(setting train.steps)
if [ ! -d "$checkpoint" ]; then
    .venv/bin/torchrun --standalone --nproc-per-node 8 -m megatron_lite.pretrain $config
fi

say "sample: text from the last checkpoint, on the layout that it was trained on"
if [ ! -f $run/sample.txt ]; then
    .venv/bin/torchrun --standalone --nproc-per-node 8 -m megatron_lite.generate "$checkpoint" \
        --prompt "The function returns" parallel.tensor=2 parallel.pipeline=2 >$run/sample.txt.partial
    mv $run/sample.txt.partial $run/sample.txt
fi
cat $run/sample.txt

say "reports, each with a link to the other"
$python tools/write_report.py $run
$python tools/curate_data.py examples/curation/quickstart.yaml >/dev/null # its tokens and the link are known now

$python - $run <<'END'
import json, sys
from pathlib import Path

run = Path(sys.argv[1])
valid = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["valid_loss"]
bar = json.loads((run / "unigram.json").read_text())
print(f"\nvalidation loss {valid:.3f}, unigram cross-entropy {bar['cross_entropy']:.3f} nats a token "
      f"over {bar['valid_tokens']:,} tokens of documents that training never saw: {bar['cross_entropy'] - valid:.2f} nats less")
END
