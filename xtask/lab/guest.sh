# Runs in the lab's machine: two network namespaces as two hosts, each with RDMA in software on its end of a wire.
set -e
modprobe -a rdma_rxe veth ib_uverbs rdma_ucm sch_netem sch_prio cls_u32 tun
# CRIU looks whether there are terminals.
mkdir -p /dev/pts; mount -t devpts devpts /dev/pts; [ -e /dev/ptmx ] || ln -s pts/ptmx /dev/ptmx
for host in A B; do ip netns add $host; ip -n $host link set lo up; done
# Room for a page in one packet.
ip link add v0 netns A mtu 4200 type veth peer name v1 netns B mtu 4200
ip -n A addr add 10.0.0.1/24 dev v0; ip -n A link set v0 up
ip -n B addr add 10.0.0.2/24 dev v1; ip -n B link set v1 up
ip netns exec A rdma link add rxeA type rxe netdev v0
ip netns exec B rdma link add rxeB type rxe netdev v1
# The first connection would wait for seconds for an address of the other host.
ip netns exec B busybox ping -c1 -W5 10.0.0.1 | tail -1
for tests in lab_verbs lab_pages; do
  ip netns exec A ./$tests holder 10.0.0.1 &
  ip netns exec B ./$tests reader 10.0.0.1
  # The last test kills it.
  wait || true
done
# No watch: each time it is attached to the timers' tracepoint or taken off it the kernel changes its own code, and an emulated processor may meet the
# breakpoint that stands there meanwhile when it is none any more ("Oops: int3"). Without types of the kernel agents do without it.
mount --bind /dev/null /sys/kernel/btf/vmlinux
# Not by `ip netns exec`, which would hide the control groups.
mkdir /tmp/cluster; cp function.py /tmp/cluster
MEDES_BIN_DIR=$PWD nsenter --net=/run/netns/A ./lab_cluster run /tmp/cluster
# Only what goes by RDMA (UDP port 4791) becomes slow, when the reader says so: see `slow` in its tests.
tc -n B qdisc add dev v1 root handle 1: prio bands 4 priomap 1 2 2 2 1 2 0 0 1 1 1 1 1 1 1 1
tc -n B filter add dev v1 parent 1: protocol ip prio 1 u32 match ip protocol 17 0xff match ip dport 4791 0xffff flowid 1:4
ip netns exec A ./lab_pages holder 10.0.0.1 & holder=$!
ip netns exec B ./lab_pages reader 10.0.0.1 --slow v1
kill $holder
wait || true
tc -n B qdisc del dev v1 root
tc -n A qdisc add dev v0 root netem loss 2% delay 1ms
tc -n B qdisc add dev v1 root netem loss 2% delay 1ms
for tests in lab_verbs lab_pages; do
  ip netns exec A ./$tests holder 10.0.0.1 & holder=$!
  ip netns exec B ./$tests reader 10.0.0.1 --lossy
  kill $holder
  wait || true
done
