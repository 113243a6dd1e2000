#!/bin/bash
# image.sh OUTDIR SUITE: makes OUTDIR/{vmlinux,base.cpio,root.sqsh} from Debian packages, by name.
# No loop device, no mount of ours, nothing of the system is changed.
set -euo pipefail
out=$1 suite=$2
packages=linux-image-amd64,kmod,iproute2,procps,busybox-static,libibverbs1,ibverbs-providers,librdmacm1,ibverbs-utils,rdmacm-utils,criu,python3
rm -rf "$out"; mkdir -p "$out"
without='--dpkgopt=path-exclude='
modules=/usr/lib/modules/*/kernel
# The archive's index may be older than it likes to be where packages come from a copy of it.
INITRD=No mmdebstrap --quiet --variant=minbase --include=$packages \
  --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Apt::Install-Recommends "false"' \
  ${without}'/usr/share/doc/*' ${without}'/usr/share/man/*' ${without}'/usr/share/locale/*' ${without}'/usr/share/info/*' \
  "${without}$modules/drivers/gpu/*" "${without}$modules/drivers/media/*" "${without}$modules/sound/*" \
  "${without}$modules/drivers/net/ethernet/*" "${without}$modules/drivers/net/wireless/*" \
  "${without}$modules/drivers/infiniband/hw/*" "${without}$modules/drivers/scsi/*" "${without}$modules/drivers/usb/*" \
  --customize-hook='mkdir -p "$1/lab"; rm -f "$1"/initrd.img*' \
  --customize-hook="copy-out /boot $out" "$suite" "$out/root.tar"
# The kernel inside the compressed image boots by itself, and spares the emulator the decompression.
kernel=$(echo "$out"/boot/vmlinuz-*)
LC_ALL=C grep -aobP '\x28\xb5\x2f\xfd' "$kernel" | cut -d: -f1 | while read -r at; do
  tail -c +$((at + 1)) "$kernel" | zstd -dc > "$out/vmlinux" 2>/dev/null || true
  [ "$(head -c 4 "$out/vmlinux" | tail -c 3)" = ELF ] && break
done
[ "$(head -c 4 "$out/vmlinux" | tail -c 3)" = ELF ]
tar2sqfs -q -f -c lz4 "$out/root.sqsh" < "$out/root.tar"
# A first root that knows how to mount the real one, and no more.
first=$(mktemp -d); trap 'rm -rf "$first"' EXIT
mkdir -p "$first"/{bin,m,proc,sys,dev,n,payload}
tar -xOf "$out/root.tar" ./usr/bin/busybox > "$first/bin/busybox"; chmod 755 "$first/bin/busybox"
for module in drivers/block/virtio_blk fs/squashfs/squashfs fs/overlayfs/overlay; do
  tar -xOf "$out/root.tar" --wildcards "./usr/lib/modules/*/kernel/$module.ko.xz" | xz -dc > "$first/m/$(basename $module).ko"
done
cat > "$first/init" <<'I'
#!/bin/busybox sh
b=/bin/busybox; for m in virtio_blk squashfs overlay; do $b insmod /m/$m.ko; done
$b mount -t devtmpfs dev /dev; $b mkdir -p /ro /rw
$b mount -t squashfs -o ro /dev/vda /ro; $b mount -t tmpfs -o size=70% t /rw; $b mkdir /rw/u /rw/w
$b mount -t overlay -o lowerdir=/ro,upperdir=/rw/u,workdir=/rw/w o /n
$b cp -a /payload/. /n/lab/; $b cp /second-init /n/second-init; $b mount --move /dev /n/dev
exec $b switch_root /n /second-init
I
cat > "$first/second-init" <<'I'
#!/bin/sh
export PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc; mount -t sysfs sys /sys
for d in /run /tmp /dev/shm; do mkdir -p $d; mount -t tmpfs tmpfs $d; done
mount -t cgroup2 cg /sys/fs/cgroup
ip link set lo up; ulimit -l unlimited; cd /lab
sh ./run.sh; rc=$?
[ $rc -gt 47 ] && rc=47
# isa-debug-exit at 0x501: the emulator exits with 2 * (rc + 16) + 1, which no trouble of its own looks like.
printf "\\$(printf %03o $((rc + 16)))" | dd of=/dev/port bs=1 seek=1281 2>/dev/null
poweroff -f
I
chmod +x "$first/init" "$first/second-init"
(cd "$first"; find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet --reproducible) > "$out/base.cpio"
rm -rf "$out/root.tar" "$out/boot"
