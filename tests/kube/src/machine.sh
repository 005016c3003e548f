# Makes a node of Kubernetes out of a node of the bed: a mount and a cgroup namespace in which kubelet and containerd
# find the folders that they expect, each of them the node's own. Holds them until it is killed.
# Arguments: the node's cgroup, its folder, the bed's folder.
set -e
cgroup=$1 dir=$2 bed=$3

if [ "$4" != inside ]; then
    mkdir -p "$cgroup"
    echo $$ >"$cgroup/cgroup.procs"
    exec unshare --mount --cgroup --propagation private /bin/sh "$0" "$@" inside
fi

# Groups with controllers may not hold processes: the node's own go into a leaf.
mkdir -p "$cgroup/init"
echo $$ >"$cgroup/init/cgroup.procs"

# Mounts of other beds came along. Holding them would keep their namespaces and programs alive. They may go meanwhile.
for mount in $(cut -d ' ' -f 2 /proc/self/mounts); do
    case $mount in
        "$bed"/*) ;;
        /run/netns/* | /run/culvert-bed/*) umount --lazy "$mount" 2>/dev/null || : ;;
    esac
done

mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf

# kubelet sets these for the whole machine unless they are as it wants them. They shall seem so.
sysctls=$dir/sysctls
mkdir -p "$sysctls"
while read -r name value; do
    echo "$value" >"$sysctls/${name##*/}"
    mount --bind "$sysctls/${name##*/}" "/proc/sys/$name"
done <<SYSCTLS
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
SYSCTLS

for top in etc opt; do
    mkdir -p "$dir/$top.upper" "$dir/$top.work"
    mount -t overlay overlay -o "lowerdir=/$top,upperdir=$dir/$top.upper,workdir=$dir/$top.work" "/$top"
done
mkdir -p "$dir/var/lib" "$dir/var/log" "$dir/var/tmp"
ln -sfn /run "$dir/var/run"
mount --bind "$dir/var" /var

# The bed's folder lies in /run, which is to be the node's own otherwise.
mkdir -p "$dir/run/${bed#/run/}" "$dir/run/lock"
mount --bind "$bed" "$dir/run/${bed#/run/}"
mount --rbind "$dir/run" /run
mount --make-rshared /

echo made
exec sleep infinity
