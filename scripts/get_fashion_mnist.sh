#!/usr/bin/env bash
# Gets Fashion-MNIST by whichever way works first: files already here, Debian's package, torchvision's download.
#
# Usage: get_fashion_mnist.sh ROOT
# ROOT is where the four IDX files go if they are not installed system-wide; PYTHON (default python3) needs torchvision
# for the last way only. Nothing is checked here beyond presence: the data module checks size, format and checksum.
set -euo pipefail

if [ $# -ne 1 ]; then
  echo "usage: $0 ROOT" >&2
  exit 2
fi
root=$1
python=${PYTHON:-python3}
package=dataset-fashion-mnist
system_dir=/usr/share/datasets/fashion-mnist
# One retry and short time limits: a machine without a network should fall through to the message quickly.
apt=(apt-get -q -o Acquire::Retries=1 -o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30)

# complete DIR: all four files are in DIR, each raw or gzipped.
complete() {
  local name
  for name in train-images-idx3-ubyte train-labels-idx1-ubyte t10k-images-idx3-ubyte t10k-labels-idx1-ubyte; do
    [ -s "$1/$name" ] || [ -s "$1/$name.gz" ] || return 1
  done
}

find_files() {
  local dir
  for dir in "$root" "$root/FashionMNIST/raw" "$system_dir"; do
    if complete "$dir"; then
      echo "Fashion-MNIST is in $dir."
      return 0
    fi
  done
  return 1
}

# Installs Debian's package; the list of packages is refreshed only when the first attempt fails.
apt_install() {
  export DEBIAN_FRONTEND=noninteractive
  "${apt[@]}" install -y --no-install-recommends "$package" ||
    { "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends "$package"; }
}

# Unpacks Debian's package into ROOT, without root. A machine that has never fetched the list of packages (a slim
# container) gets one in the temporary folder, since the system's own may only be refreshed by root.
apt_unpack() (
  tmp=$(mktemp -d)
  trap 'rm -rf "$tmp"' EXIT
  mkdir -p "$root" "$tmp/lists/partial" "$tmp/cache/archives/partial" "$tmp/out" || exit 1
  root=$(cd "$root" && pwd) || exit 1
  cd "$tmp" || exit 1
  private=(-o Dir::State::lists="$tmp/lists" -o Dir::Cache="$tmp/cache")
  "${apt[@]}" download "$package" ||
    { "${apt[@]}" "${private[@]}" update && "${apt[@]}" "${private[@]}" download "$package"; } || exit 1
  dpkg-deb -x "$package"_*.deb out || exit 1
  cp "out$system_dir"/*.gz "$root"/
)

torchvision_download() {
  "$python" -c 'import sys; from torchvision.datasets import FashionMNIST; FashionMNIST(sys.argv[1], download=True)' \
    "$root"
}

find_files && exit 0
if command -v apt-get >/dev/null; then
  echo "Fetching Debian's package $package." >&2
  if [ "$(id -u)" -eq 0 ]; then
    apt_install >&2 || true
  else
    apt_unpack >&2 || true
  fi
  find_files && exit 0
fi
echo "Fetching Fashion-MNIST with torchvision." >&2
torchvision_download >&2 || true
find_files && exit 0

cat >&2 <<MESSAGE
Fashion-MNIST could not be fetched. Any one of these three ways will do:
  put the four IDX files (train-images-idx3-ubyte.gz, ...) into $root,
  install Debian's package (apt-get install $package),
  or let torchvision download it on a machine with a network (make data).
MESSAGE
exit 1
