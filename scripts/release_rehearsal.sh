#!/usr/bin/env bash
# Rehearses a release: builds wheel and sdist, checks their metadata, and runs the wheel in a clean environment, in an
# empty folder outside the checkout. The environment is new, and has of what PYTHON has installed the wheel's own
# requirements alone, as its metadata names them.
set -euo pipefail
PYTHON=${PYTHON:-python3}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
say() { echo "release: $*"; }

cd "$root"
say "build"
"$PYTHON" -m build --outdir "$work/dist" . > "$work/build.log" 2>&1 || { cat "$work/build.log" >&2; exit 1; }
rm -rf locoprop_lightning.egg-info  # which setuptools leaves in the checkout
"$PYTHON" -m twine check --strict "$work"/dist/*

say "install the wheel in a clean environment"
"$PYTHON" -m venv "$work/env"
bin=$work/env/bin
"$bin/python" -m pip install --quiet --no-deps --no-index "$work"/dist/*.whl
site=$("$bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
say "$("$PYTHON" scripts/link_requirements.py 'locoprop-lightning[tune]' "$site")"
mkdir "$work/empty"
cd "$work/empty"
unset PYTHONPATH
export OMP_NUM_THREADS=1
imported=$("$bin/python" -c 'import locoprop_lightning; print(locoprop_lightning.__file__)')
say "runs $imported"
case $imported in "$work"/env/*) ;; *) say "that is not the wheel" >&2; exit 1 ;; esac

run() { say "$*"; "$bin/$@" > "$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }; }
quick=(--trainer.accelerator cpu --trainer.enable_progress_bar false)
run locoprop --version
run locoprop configs
run locoprop fit --config digits/locoprop_m_anderson --trainer.max_epochs 3 "${quick[@]}"
checkpoint=$(find runs/digits/locoprop_m_anderson/version_0/checkpoints -name '*.ckpt' | sort | tail -n 1)
run locoprop test --config digits/locoprop_m_anderson --ckpt_path "$checkpoint" "${quick[@]}"
run locoprop-tune --config digits/foof --space foof --samples 2 --name sweep --set trainer.max_epochs=1 --quiet
cat > study.yaml <<'STUDY'
workload: {trainer.max_epochs: 1}
budget: {trials: 1, seeds: 1, threads: 1}
methods: {adam: configs/digits/adam.yaml, foof: digits/foof}
STUDY
run locoprop-tune study digits --only adamw --plan
run locoprop-tune study study.yaml --quiet
run locoprop-compare runs/digits --out curves.svg --table table.md
for file in "${imported%/*}/py.typed" runs/tune/sweep/best.yaml results/study/report.md curves.svg table.md; do
  [ -e "$file" ] || { say "there is no $file" >&2; exit 1; }
done
for method in adam foof; do
  grep -q "^| $method | 1 |" results/study/report.md || { say "the study has no row of $method" >&2; exit 1; }
done
say "all of it works"
