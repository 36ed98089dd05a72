#!/usr/bin/env bash
# make.sh FOLDER [PIP]: makes an arm64 board that qemu runs: Debian's arm64 userland with Python, and the packages of
# requirements-board.txt, and those of Relay, as a board would install them. FOLDER/python is the board's Python. Needs
# root, and the Debian packages mmdebstrap and qemu-user; makes nothing anew that is there.
set -euo pipefail
repository=$(realpath "$(dirname "$0")/../..")
mkdir -p "$1"
board=$(realpath "$1")
pip=${2:-pip}

if test ! -e "$board/rootfs/usr/bin/python3.11"; then
    rm -rf "$board/rootfs"
    # The packages are unpacked and not configured, for that would run arm64 programs without an emulator.
    mmdebstrap --quiet --mode=root --arch=arm64 --variant=extract --skip=check/qemu \
        --include=python3.11,libstdc++6 bookworm "$board/rootfs"
fi

# As pip would do it on the board: wheels for it.
install() {
    "$pip" install --quiet --disable-pip-version-check --only-binary=:all: --python-version 3.11 --implementation cp \
        $(printf -- '--platform manylinux_2_%s_aarch64 ' 17 24 26 27 28) --platform manylinux2014_aarch64 "$@"
}

if test "$repository/requirements-board.txt" -nt "$board/site/ready"; then
    rm -rf "$board/site"
    install --target "$board/site" -r "$repository/requirements-board.txt"
    # What a board never loads, and what its 190 MB are.
    rm -f "$board"/site/tvm/lib/libtvm_compiler.so "$board"/site/tvm/lib/libtvm_runtime_cuda.so
    # Processes that Python starts must run in the emulator as well.
    echo 'import os, sys; sys.executable = os.environ["BOARD_PYTHON"]' > "$board/site/sitecustomize.py"
    touch "$board/site/ready"
fi

# What `ksm-hw relay install` would make there, but for the compiler.
relay=$board/data/ksm-hw/relay-cpython-311
requirements=$repository/ksm_hw/runtime/relay/requirements.txt
if ! cmp --quiet "$requirements" "$relay/requirements.txt"; then
    rm -rf "$relay"
    install --require-hashes --target "$relay" -r "$requirements"
    rm -f "$relay/tvm/libtvm.so"
    cp "$requirements" "$relay"
fi

cat > "$board/python" <<SCRIPT
#!/bin/sh
export BOARD_PYTHON="$board/python" XDG_DATA_HOME="$board/data" PYTHONUNBUFFERED=1
# Processes of Relay are told by this variable where to look first; the desk's own paths are no board's.
case "\${PYTHONPATH:-}" in
    "$relay"*) export PYTHONPATH="$relay:$board/site:$repository" ;;
    *) export PYTHONPATH="$board/site:$repository" ;;
esac
exec qemu-aarch64 -L "$board/rootfs" "$board/rootfs/usr/bin/python3.11" "\$@"
SCRIPT
chmod +x "$board/python"
