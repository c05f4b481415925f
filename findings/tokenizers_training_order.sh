#!/usr/bin/env bash
# Packages: tokenizers==0.23.3; seen with Python 3.11 on a CPU.
# One would guess: training on the same text with the same settings gives the same vocabulary in
#   each process, at least on one thread
# What happens: WordPieceTrainer gives the same tokens other ids in each process, and BpeTrainer
#   with limit_alphabet keeps other characters (those of equal frequency), on one thread too.
#   WordLevelTrainer and plain BpeTrainer give the same ids each time; there is no seed to set
# Why it matters: a script that trains its tokenizer anew and then loads the model that it had
#   before maps ids to other tokens: the sizes fit, so that nothing fails and the output is
#   noise
# Exits with 0 while this is so, with 1 once the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check tokenizers==0.23.3
cat > "$work/finding.py" <<'PY'
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

text = ["abcdefgh hgfedcba ijkl lkji", "mnop ponm abcd dcba", "the cat sat on the mat", "xx yy zz aa bb"]
shared = {"special_tokens": ["?"], "vocab_size": 60}
for name, model, trainer in (
    ("wordlevel", models.WordLevel(unk_token="?"), trainers.WordLevelTrainer(**shared)),
    ("bpe", models.BPE(unk_token="?"), trainers.BpeTrainer(show_progress=False, **shared)),
    ("bpe_limited", models.BPE(unk_token="?"), trainers.BpeTrainer(show_progress=False, limit_alphabet=8, **shared)),
    ("wordpiece", models.WordPiece(unk_token="?"), trainers.WordPieceTrainer(show_progress=False, **shared)),
):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(text, trainer)
    vocabulary = tokenizer.get_vocab()
    by_id = sorted(vocabulary, key=vocabulary.get)
    print(name, *(sorted(by_id) if name == "bpe_limited" else by_id))
PY
cd "$work"
export JAX_PLATFORMS=cpu
export RAYON_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
for process in $(seq 12); do "$work/venv/bin/python" finding.py; done > all
for name in wordlevel bpe bpe_limited wordpiece; do
    different=$(grep "^$name " all | sort -u | wc -l)
    echo "$name: 12 processes, $different different vocabularies"
    case $name in
        wordlevel | bpe) test "$different" = 1 ;;
        *) test "$different" -gt 1 ;;
    esac
done
