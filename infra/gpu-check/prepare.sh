#!/usr/bin/env bash
# From the checkout's root: packs the GPU check and the wheels that it needs into .gpu/ (18 MB), for
# a machine without a package registry that has Python 3.12, torch with CUDA, torchvision and the
# usual scientific packages.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
rm -rf .gpu && mkdir -p .gpu/wheels
platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
  platforms+=(--platform "${tag}_x86_64")
done
lock=infra/requirements.lock
for name in simplejpeg turbojpeg webdataset braceexpand google-crc32c boto3 botocore s3transfer jmespath; do
  version=$(grep -iE "^$name==" $lock | head -1 || true)
  python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp "${platforms[@]}" -d .gpu/wheels "${version:-$name}"
done
cp "$here"/*.py "$here"/run.sh .gpu/
du -sh .gpu
echo "copy .gpu to the other machine and run there: bash .gpu/run.sh"
