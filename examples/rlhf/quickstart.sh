#!/usr/bin/env bash
# The chain after pretraining, on this machine's CPU, with the quickstart's model:
#
#   pretrained model -> dialogues and pairs with a made preference -> fine-tuning (SFT) -> a reward model -> DPO
#   -> answers of both policies, judged by the preference's own rule -> three reports
#
# The preference is made (tools/make_preferences.py), so that its rule can judge. Everything lands in runs/rlhf; what
# stands is used again.
set -euo pipefail
cd "$(dirname "$0")/../.."

run=runs/rlhf
python=.venv/bin/python
export OMP_NUM_THREADS=1 # eight ranks share the machine
export CUDA_VISIBLE_DEVICES="" HIP_VISIBLE_DEVICES="" # on the CPU, also where GPUs are

say() { printf '\n== %s\n' "$1"; }
setting() { $python -c "import yaml; print(yaml.safe_load(open('$1'))['train']['$2'])"; }

train() { # ALGORITHM CONFIG
    if [ ! -d "$(setting "$2" run_dir)/checkpoints/step_$(setting "$2" steps)" ]; then
        .venv/bin/torchrun --standalone --nproc-per-node 8 -m "megatron_lite.$1" "$2"
    fi
}

answers() { # RUN OUTPUT
    [ -f "$2" ] || .venv/bin/torchrun --standalone --nproc-per-node 8 -m megatron_lite.generate "$1" \
        --prompts $run/rows/prompts.jsonl --output "$2" -n 4 --temperature 1 --max-new-tokens 80 --seed 1 \
        parallel.tensor=2 parallel.pipeline=2
}

if [ ! -d runs/quickstart/checkpoints ]; then
    say "the model to begin with: examples/quickstart.sh"
    bash examples/quickstart.sh
fi

say "rows: dialogues, pairs of answers, questions that are kept from training"
[ -f $run/rows/prompts.jsonl ] || $python tools/make_preferences.py --output-dir $run/rows

say "SFT: tensor 2 x pipeline 2 x data 2, ZeRO-3, packed rows"
train sft examples/sft/nano.yaml

say "what is trained of a dialogue"
$python tools/show_mask.py $run/rows/dialogues_valid.jsonl --tokenizer $run/sft --rows 1

say "reward model: from the fine-tuned weights, a score at the last token"
train reward examples/rlhf/reward_nano.yaml
$python -m megatron_lite.reward examples/rlhf/reward_nano.yaml --score $run/rows/pairs_valid.jsonl \
    --output $run/scores.jsonl --dtype float32

say "DPO: the fine-tuned weights against themselves"
train dpo examples/rlhf/dpo_nano.yaml

say "answers of both to the questions that were kept, judged by the rule"
answers $run/sft $run/answers_sft.jsonl
answers $run/dpo $run/answers_dpo.jsonl
head -n 1 $run/answers_sft.jsonl
head -n 1 $run/answers_dpo.jsonl

$python - $run <<'END'
import json, subprocess, sys
from pathlib import Path

run = Path(sys.argv[1])
last = {name: json.loads((run / name / "metrics.jsonl").read_text().splitlines()[-1]) for name in ("sft", "reward", "dpo")}
judge = [sys.executable, "tools/make_preferences.py", "--judge", run / "answers_dpo.jsonl", run / "answers_sft.jsonl"]
wins = subprocess.run(judge, check=True, capture_output=True, text=True).stdout.strip()
print(f"\nheld out: SFT loss {last['sft']['valid_loss']:.3f}; reward model's accuracy {last['reward']['valid_accuracy']:.1%}; "
      f"DPO's accuracy {last['dpo']['valid_accuracy']:.1%}, margin {last['dpo']['valid_margin']:.2f}, log-probability of chosen "
      f"answers {last['dpo']['valid_chosen_logprob']:.1f}")
print(f"DPO's answers win over SFT's by the rule in {wins} of games, a draw being half a win")
for name in last:
    print(f"{run / name / 'report.html'}")
END
