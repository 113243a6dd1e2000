#!/bin/bash
# boot.sh IMAGEDIR PAYLOADDIR SECONDS: runs PAYLOADDIR/run.sh as root in a virtual machine; exits with its status, or 125.
set -euo pipefail
image=$1 payload=$2 seconds=$3
stage=$(mktemp -d); trap 'rm -rf "$stage"' EXIT
mkdir "$stage/s"; cp -a "$payload" "$stage/s/payload"
{ cat "$image/base.cpio"; (cd "$stage/s"; find payload | cpio -o -H newc -R 0:0 --quiet); } > "$stage/initrd"
set +e
timeout "$seconds" qemu-system-x86_64 -nodefaults -no-user-config -machine pc -accel tcg,thread=multi,tb-size=512 -cpu max \
  -m 2048 -smp 2 -display none -no-reboot -serial stdio -device isa-debug-exit,iobase=0x501,iosize=1 \
  -drive file="$image/root.sqsh",if=virtio,format=raw,readonly=on -kernel "$image/vmlinux" -initrd "$stage/initrd" \
  -append 'console=ttyS0 panic=-1 quiet mitigations=off random.trust_cpu=1 tsc=reliable nokaslr' </dev/null
status=$?
if [ $((status & 1)) = 1 ] && [ $status -ge 33 ] && [ $status -le 127 ]; then exit $(((status - 33) / 2)); fi
echo "the virtual machine did not come to an end (status $status)" >&2
exit 125
