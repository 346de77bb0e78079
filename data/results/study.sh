#!/usr/bin/env bash
# The study behind appendix A1, sweep by sweep; run from the repository's root, in its environment. Finished runs are
# not run again, so it can be stopped and started. About five hours on two cores.
#   bash data/results/study.sh tuning main composed rate single_task ablations summary   # phantom
#   NIH_ROOT=PATH bash data/results/study.sh nih localization                            # a sample of NIH ChestX-ray14
# and behind appendix A2, about nine hours on two cores; DEVICE=cuda JOBS=4 trains on a GPU, four networks at a time:
#   bash data/results/study.sh candidates controlled rule_tuning judge_{4000,1000,16000,noise,rate}
#   NIH_ROOT=PATH bash data/results/study.sh judge_nih
# There are more parts, for which the budget had no room: more, architectures, parameters.
# The study of PROTOCOL.md, about 16 hours on two idle cores; `plan` prints what is left to run and its hours:
#   bash data/results/study.sh plan study_tune study_main study_regimes study_curves; NOMINEE=METHOD bash data/results/study.sh study_rule
# The study of PROTOCOL_REAL.md: features of a frozen encoder, and all that is trained on them, METHODS="equal deepchest" alone in
# 35 minutes; the encoder fine-tuned and the published recipe step by step, about ten hours of one thread; levers, on the features
# in an hour and on the phantom in two hours:
#   NIH_ROOT=PATH bash data/results/study.sh real_features real_main real_blind real_finetune real_ladder
#   bash data/results/study.sh levers_embeddings levers_phantom
# The study of PROTOCOL_SHARING.md, three hours of one thread, six on a slow one:
#   bash data/results/study.sh sharing_sizes sharing_transfer
set -euo pipefail
out=${OUT:-data/results}
sweep() { python -m deepchest_utils sweep --device "${DEVICE:-cpu}" --jobs "${JOBS:-2}" "$@"; }
at_rate_of() { # METHOD ARGUMENT...: a sweep at the learning rate that was chosen for METHOD
  local lr
  lr=$(python -c 'import sys; from deepchest_utils.sweep import best_lr; print(best_lr(sys.argv[1])[sys.argv[2]])' \
    "$out/phantom_tuning.csv" "$1")
  sweep "${large[@]}" --lr "$lr" --out "$out/phantom.csv" --baseline equal deepchest "${@:2}"
}
replicates() { # STAGE: one thread a process, so that a cell has the same row wherever it runs
  OMP_NUM_THREADS=1 python -c 'from deepchest_utils.studies.replication import main; main()' "$1" --out "$out" \
    --jobs "${JOBS:-2}" ${NOMINEE:+--methods "$NOMINEE"} "${@:2}"
}
levers() { # STAGE
  OMP_NUM_THREADS=1 python -c 'from deepchest_utils.studies.levers import main; main()' "$1" --out "$out" \
    --features "${FEATURES:-data/processed/real}" --jobs "${JOBS:-2}" "${@:2}"
}
sharing() { # STAGE
  OMP_NUM_THREADS=1 python -c 'from deepchest_utils.studies.sharing import main; main()' "$1" --out "$out" --jobs "${JOBS:-2}" "${@:2}"
}
real() { # STAGE; glibc keeps freed memory: to have it back took 10 to 14% of a step of Lite0 (1.95 s, and 1.74 s with these)
  MALLOC_MMAP_THRESHOLD_=10000000000 MALLOC_TRIM_THRESHOLD_=100000000000 OMP_NUM_THREADS=1 python -c 'from deepchest_utils.studies.real import main; main()' "$1" --out "$out" \
    --features "${FEATURES:-data/processed/real}" --jobs "${JOBS:-2}" ${NIH_ROOT:+--root "$NIH_ROOT"} \
    ${METHODS:+--methods $METHODS} "${@:2}"
}
features() { printf '%s(level="features")\n' "$@"; }

# one element a line: macOS's bash 3.2 has no mapfile
set -f && IFS=$'\n'
methods=($(
  printf '%s\n' equal deepchest prevalence_oracle inverse_prevalence deepchest_relative_loss deepchest_loss_trend \
    deepchest_auroc uncertainty dwa rlw gls imtl_l stch famo dbmtl_l gradnorm
  features mgda pcgrad cagrad imtl_g
  echo 'nash_mtl(update_every=10, level="features")'
  features aligned_mtl fairgrad upgrad
))
more=($(
  echo deepchest_balanced_accuracy
  features graddrop gradvac config dualproj rgw
))
real=($(
  printf '%s\n' equal deepchest prevalence_oracle inverse_prevalence deepchest_relative_loss uncertainty dwa gradnorm
  features pcgrad upgrad
))
set +f && IFS=$' \t\n'
composed=(deepchest+{dwa,uncertainty,'pcgrad(level="features")'})
ablations=( # at DeepChest's learning rate; the signals at their own are in the main part
  equal deepchest 'deepchest(floor=0.25)' 'deepchest(normalize=True)' 'deepchest(initial="resnet")'
  'deepchest(step_up=1.3, step_down=1.15)' 'deepchest_relative_loss(floor=0.25)'
)
looked_at=(equal deepchest uncertainty 'pcgrad(level="features")')
phantom=(--epochs 12 --data-options num_train 4000)
large=("${phantom[@]}" --data-options num_test 25000)
tuned=(--lr-from "$out/phantom_tuning.csv" --out "$out/phantom.csv")
nih=(--dataset nih --data-root "${NIH_ROOT:-}" --split patient --epochs 15)
grid=(--lr 1e-3 2e-3 4e-3 --seed 100 101)
seeds=(--seed 0 1 2 3 4)
tuning=("${phantom[@]}" --data-options num_test 1000 --tune "${grid[@]}" --out "$out/phantom_tuning.csv")
# Notebook 07: 32 px, so that two cores can afford many seeds; no augmentation, with which a network learns more in the same
# time. Candidates are compared on a phantom of their own (data seed 7); the judgement has another that nothing was chosen on.
small=(--image-size 32 --augment false --batch-size 64)
candidates=(equal hedge val_discount val_discount+hedge anneal inverse_entropy inverse_sqrt_entropy
  'deepchest(floor=0.25, normalize=True)' 'deepchest_relative_loss(floor=0.25, normalize=True)'
  'hedge(floor=0.0)' 'hedge(eta=0.125)' 'hedge(eta=2.0)' 'anneal(power=0.5)' 'anneal(power=1.0)' 'anneal(relative=True)' 'anneal(window=1)')
judged=(equal deepchest prevalence_oracle inverse_entropy inverse_sqrt_entropy hedge uncertainty imtl_l 'pcgrad(level="features")')
read -ra many <<<"${SEEDS:-$(seq -s " " 0 19)}"  # SEEDS=0 does a part of them, to begin with
read -ra few <<<"${SEEDS:-0 1 2}"
judge() { # NAME ARGUMENT...: twenty seeds of each method
  sweep --method "${judged[@]}" --seed "${many[@]}" "${small[@]}" --no-history --lr-from "$out/rule_tuning.csv" \
    --out "$out/judge_$1.csv" --baseline equal deepchest hedge "${@:2}"
}
control() { # PREFIX RATE NAME ARGUMENT...: as in the judgement, at one learning rate
  sweep --seed "${many[@]}" "${small[@]}" --no-history --lr "$2" --out "$out/$1_$3.csv" "${@:4}"
}
# steps longer by a third, which is a bit more than IMTL-L's growing weights make of them
faster() { control rate 5.3e-3 "$@" --method equal; }
# on the machine of `faster`: Equal once more, and the oracle at the rate that the others have
common() { control common 4e-3 "$@" --method equal prevalence_oracle; }
on_phantom() { # judge, faster or common, NAME TRAINING_IMAGES EPOCHS ARGUMENT...
  "$1" "$2" --data-seed 1 --epochs "$4" --data-options num_train "$3" --data-options num_val 1000 "${@:5}"
}
half() { # FACTOR VALUE FIRST: a dictionary that gives every second finding that value
  python -c 'import sys; from deepchest_utils import FINDINGS; f, v, i = sys.argv[1:]; print({f: dict.fromkeys(FINDINGS[int(i) :: 2], float(v))})' "$@"
}
controlled() { # DICTIONARY
  sweep "${small[@]}" --method equal deepchest hedge imtl_l --seed "${few[@]}" --data-seed 7 --lr 4e-3 --epochs 10 --out "$out/controlled.csv" \
    --data-options num_train 3000 --data-options num_val 500 --data-options num_test 4000 --data-options controlled "$1"
}
# baselines of the summary; the composed methods are compared with the same ones alone
inner=(equal deepchest prevalence_oracle)
for method in "${composed[@]}"; do inner+=("${method#deepchest+}"); done

for part in "$@"; do
  case $part in
    tuning) sweep "${tuning[@]}" --method "${methods[@]}" ;;
    main) sweep "${large[@]}" --method "${methods[@]}" "${seeds[@]}" "${tuned[@]}" --baseline equal deepchest ;;
    more) # the methods that are near twins of one of the others
      sweep "${tuning[@]}" --method "${more[@]}"
      sweep "${large[@]}" --method "${more[@]}" "${seeds[@]}" "${tuned[@]}" --baseline equal deepchest ;;
    composed) # each at the learning rate of the method that it is built on, which happens to be the same
      at_rate_of dwa --method "${composed[@]}" "${seeds[@]}" ;;
    rate) # what the learning rate alone does: Equal at the rate of most others
      sweep "${large[@]}" --method equal "${seeds[@]}" --lr 2e-3 --out "$out/phantom_rate.csv" ;;
    single_task) at_rate_of equal --method equal@single_task --seed 0 1 ;;
    architectures) at_rate_of equal --method equal@mtan deepchest@mtan equal@cross_stitch --seed 0 1 ;;
    parameters) # the learning rate is the one found at the features
      for method in pcgrad mgda upgrad; do
        at_rate_of "$method(level=\"features\")" --method "$method" --seed 0 1 2
      done ;;
    summary) # all baselines that notebook 04 asks for, from the runs that are there
      sweep "${large[@]}" --method "${methods[@]}" "${seeds[@]}" "${tuned[@]}" --baseline "${inner[@]}" equal@single_task ;;
    ablations) sweep "${large[@]}" --method "${ablations[@]}" --seed 0 1 2 --lr 4e-3 --out "$out/phantom_ablations.csv" \
      --baseline equal deepchest ;;
    nih)
      sweep "${nih[@]}" --method "${real[@]}" --tune --lr 1e-3 2e-3 4e-3 --seed 100 --out "$out/nih_sample_tuning.csv"
      sweep "${nih[@]}" --method "${real[@]}" "${seeds[@]}" --lr-from "$out/nih_sample_tuning.csv" \
        --out "$out/nih_sample.csv" --baseline equal deepchest ;;
    localization) # where networks look; notebook 05
      localize() { python -m deepchest_utils localize --device cpu --method "${looked_at[@]}" "${seeds[@]}" "$@"; }
      localize "${phantom[@]}" --lr-from "$out/phantom_tuning.csv" --out "$out/localization_phantom.csv"
      localize "${nih[@]}" --lr-from "$out/nih_sample_tuning.csv" --out "$out/localization_nih_sample.csv" ;;
    candidates)
      for size in 4000:10 1000:20; do
        sweep "${small[@]}" --method "${candidates[@]}" --seed "${few[@]}" --data-seed 7 --lr 4e-3 --epochs "${size#*:}" \
          --data-options num_train "${size%:*}" --data-options num_val 1000 --out "$out/candidates_${size%:*}.csv" --baseline equal
      done ;;
    controlled) # one factor at a time, on one half of the findings and then on the other
      controlled '{}'
      for factor in 'prevalence 0.02' 'visibility 0.4' 'label_noise 0.4' 'loading 0.8'; do
        for first in 0 1; do controlled "$(half $factor $first)"; done
      done ;;
    rule_tuning)
      sweep "${small[@]}" --method "${judged[@]}" --data-seed 1 --epochs 10 --tune --lr 2e-3 4e-3 --seed 100 101 \
        --data-options num_train 4000 --data-options num_val 1000 --data-options num_test 100 --out "$out/rule_tuning.csv" ;;
    judge_1000) on_phantom judge 1000 1000 20 ;;
    judge_4000) on_phantom judge 4000 4000 10 ;;
    judge_16000) on_phantom judge 16000 16000 3 ;;
    judge_noise) on_phantom judge noise 4000 10 --data-options label_noise 0.2 ;;
    judge_rate)
      for control in faster common; do
        on_phantom $control 1000 1000 20
        on_phantom $control 4000 4000 10
        on_phantom $control noise 4000 10 --data-options label_noise 0.2
      done ;;
    judge_nih)
      # in a shell of its own: the parts after it have all seeds
      (many=("${many[@]:0:10}") && judge nih --dataset nih --data-root "${NIH_ROOT:-}" --split patient --epochs 12) ;;
    study_*) replicates "${part#study_}" ;;
    real_*) real "${part#real_}" ;;
    levers_*) levers "${part#levers_}" ;;
    sharing_*) sharing "${part#sharing_}" ;;
    plan)
      for stage in tune main regimes curves rule; do replicates "$stage" --plan; done
      for stage in sizes transfer; do sharing "$stage" --plan; done ;;
    *) echo "no part $part: plan, study_*, real_*, levers_*, sharing_*, tuning, main, more, composed, rate, single_task, architectures, parameters, ablations, summary, nih, localization, candidates, controlled, rule_tuning or judge_*" >&2; exit 2 ;;
  esac
done
