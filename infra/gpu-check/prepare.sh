#!/usr/bin/env bash
# From the checkout's root: makes the ignored folder .gpu/ with all that the GPU check needs on a machine without a registry
# (Python 3.12, torch with CUDA, torchvision and the usual scientific packages are there): wheels, check.py, run.sh. 18 MB.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
rm -rf .gpu && mkdir -p .gpu/wheels
platforms=()
for p in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do platforms+=(--platform "${p}_x86_64"); done
lock=infra/requirements.lock
for name in simplejpeg turbojpeg webdataset braceexpand boto3 botocore s3transfer jmespath; do
  version=$(grep -iE "^$name==" $lock | head -1 || true)
  python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]}" -d .gpu/wheels "${version:-$name}"
done
cp "$here"/check.py "$here"/run.sh .gpu/
du -sh .gpu
echo "take .gpu along, and run there: bash .gpu/run.sh"
