# Runs as process 1 of the new namespaces: builds the sandbox's mounts on $ROOT and becomes "$@" inside of them.
set -e
# SIOCSIFFLAGS with IFF_UP: not every machine has the `ip` program.
/usr/bin/python3 -c 'import fcntl, socket, struct; fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh14x", b"lo", 1))'
mount --make-rprivate /
mount --bind /dev "$ROOT/dev"
mount -o remount,bind,ro "$ROOT/dev"
mount --bind "$PRIVATE/tmp" "$ROOT/tmp"
mount --bind "$PRIVATE/shm" "$ROOT/dev/shm"
mount -t proc proc "$ROOT/proc"
mount --bind "$ROOT/proc/sys" "$ROOT/proc/sys"
mount -o remount,bind,ro "$ROOT/proc/sys"
mkdir -p "$ROOT/tmp/old"
cd "$ROOT"
pivot_root . tmp/old
umount -l /tmp/old
rmdir /tmp/old
cd /
exec setsid "$@"
