# Removes all that a bed made, once the bed's owner has closed the pipe on stdin: by intent, by a panic or by dying.
# Arguments: the bed's id, its cgroup, its work dir, its owner's pid, a folder that is to receive a copy of its logs.
id=$1 cgroup=$2 dir=$3 owner=$4 keep=$5

trap '' HUP INT TERM PIPE
read -r _ || :

kill_cgroup() {
    tries=0
    while [ -d "$cgroup" ] && [ $tries -lt 600 ]; do
        echo 1 >"$cgroup/cgroup.kill"
        grep -q '^populated 0' "$cgroup/cgroup.events" && return
        tries=$((tries + 1))
        sleep 0.05
    done
}

# Finds what entered a namespace of the bed from outside its cgroup (`ip netns exec`), by device and inode.
# The owner may have gone in itself; it is not ours to kill.
strays() {
    ours=" $(stat -Lc %d:%i "/run/netns/$id"-* | tr '\n' ' ') "
    stat -Lc '%d:%i %n' /proc/[0-9]*/ns/net | while read -r ns path; do
        case $ours in *" $ns "*) ;; *) continue ;; esac
        pid=${path#/proc/}
        pid=${pid%%/*}
        [ "$pid" = "$owner" ] || echo "$pid"
    done
}

kill_strays() {
    tries=0
    while [ $tries -lt 100 ]; do
        found=$(strays)
        [ -z "$found" ] && return
        kill -9 $found
        tries=$((tries + 1))
        sleep 0.05
    done
}

unmount() {
    mounts=
    while read -r _ mount _; do
        case $mount in "$dir"/* | "/run/netns/$id"-*) mounts="$mount $mounts" ;; esac
    done </proc/self/mounts
    for mount in $mounts; do
        umount "$mount" || umount -l "$mount"
    done
}

remove_cgroups() {
    tries=0
    while [ -d "$cgroup" ] && [ $tries -lt 100 ]; do
        find "$cgroup" -depth -type d -exec rmdir {} \;
        [ -d "$cgroup" ] || return
        kill_cgroup
        tries=$((tries + 1))
        sleep 0.05
    done
}

kill_cgroup
kill_strays
kill_cgroup
unmount
rm -f "/run/netns/$id"-*
remove_cgroups
[ -n "$keep" ] && mkdir -p "$keep" && cp -r "$dir" "$keep/"
rm -rf --one-file-system "$dir"
