#!/bin/sh
# Prepares the cgroup that containers live in, with the limits of the exercise: 10 processes and
# 50 MB for all of them together, and no swap. go_container.py makes each container a cgroup of
# its own in it, run-…, and locks that directory for as long as the container lives.
#
# The kernel has two versions of cgroups, and many machines mix them: v1 has a tree of directories
# for each controller, v2 one for all. cgroups(7) explains whatever is written here.

set -eu
export LC_ALL=C  # a-z means a to z, and errors read the same everywhere
umask 022        # who may write where is for `hand_over` to say, not for the caller's umask

usage='usage: sudo ./cgroup.sh [--name demo] [--pids 10] [--memory 50M] [--cpus N] [--delete]'
name=demo pids=10 memory=50M cpus=none action=prepare

fail() {  # one line, whatever was typed
    printf 'cgroup.sh: %s\n' "$(printf '%s' "$1" | tr '[:cntrl:]' '?')" >&2
    exit 1
}

# ── What was typed: all of it is checked before anything is made ─────────────────────────────

while [ $# -gt 0 ]; do
    option=${1%%=*} value=${1#*=}
    case $1 in
        --help | -h) echo "$usage"; exit ;;
        --delete) action=delete; shift; continue ;;
        --name | --pids | --memory | --cpus)
            [ $# -gt 1 ] || fail "$1 needs a value; $usage"
            value=$2
            shift ;;
    esac
    case $option in
        --name) name=$value ;;
        --pids) pids=$value ;;
        --memory) memory=$value ;;
        --cpus) cpus=$value ;;
        *) fail "unknown option $1; $usage" ;;
    esac
    shift
done

case $name in
    '' | . | .. | -* | *[!A-Za-z0-9_.-]*)
        fail "--name $name: one name of letters, digits, hyphens, underscores and dots" ;;
esac

case $pids in
    '' | 0* | *[!0-9]* | ????????*) fail "--pids $pids: a number of processes such as 10" ;;
esac
[ "$pids" -le 4194304 ] || fail "--pids $pids: the kernel knows no more than 4194304"

number=${memory%[bBkKmMgG]}
case $number in
    '' | 0* | *[!0-9]* | ?????????????*) bytes=0 ;;
    *)
        case $memory in
            *[kK]) bytes=$((number << 10)) ;;
            *[mM]) bytes=$((number << 20)) ;;
            *[gG]) bytes=$((${#number} < 10 ? number << 30 : 0)) ;;
            *) bytes=$number ;;
        esac ;;
esac
[ "$bytes" -ge 1048576 ] || fail "--memory $memory: a size such as 50M, 1g or 52428800; at least 1M"

quota=  # microseconds of processor time in every 100 ms
if [ "$cpus" != none ]; then
    fraction=
    case $cpus in *.*) fraction=${cpus#*.} ;; esac
    case ${cpus%%.*}$fraction in
        *[!0-9]* | ?????????????*) quota=0 ;;
        *) quota=${cpus%%.*}$(printf '%.5s' "${fraction}00000") ;;
    esac
    quota=${quota#"${quota%%[!0]*}"}  # zeros in front would make it octal
    [ "${quota:-0}" -ge 1000 ] || fail "--cpus $cpus: a number of processors such as 2 or 0.5"
fi

[ "$(id -u)" = 0 ] || fail 'only root can prepare a cgroup: sudo ./cgroup.sh'

# ── Where, and how to write there ────────────────────────────────────────────────────────────

# locate CONTROLLER: sets version, top and dir. A line of mountinfo reads like one of these:
#     35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
#     31 23 0:28 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate
locate() {
    while read -r _ _ _ _ top options; do
        case $options, in
            *" - cgroup "*",$1,"*) version=1 ;;
            *" - cgroup2 "*) version=2 ;;
            *) continue ;;
        esac
        [ -e "$top/cgroup.procs" ] || continue  # another mount hides it
        if [ "$version" = 2 ]; then
            case " $(cat "$top/cgroup.controllers") " in *" $1 "*) ;; *) continue ;; esac
        fi
        dir=$top/$name
        return
    done </proc/self/mountinfo
    fail "no cgroup hierarchy has the $1 controller: see /proc/cgroups and /proc/self/mountinfo \
(some boards want cgroup_enable=memory on the kernel's command line)"
}

write() {  # write VALUE FILE [HINT]: by tee, since a shell's own echo does not say why it failed
    reason=$(echo "$1" | tee "$2" 2>&1 >/dev/null) ||
        fail "cannot write $1 to $2: ${reason##*: }${3-}"
}

limit() {  # limit FILE VALUE
    write "$2" "$dir/$1"
    limits="$limits $dir/$1"
}

# What stays when a container is killed together with its launcher: leaves that nobody has locked.
sweep() {
    for leaf in "$dir"/run-*/; do
        if [ -d "$leaf" ]; then flock -n "$leaf" rmdir "$leaf" 2>/dev/null || :; fi
    done
}

in_use() {  # by cgroups in it, or by processes; sets user
    for user in "$dir"/*/; do
        if [ -d "$user" ]; then return; fi
    done
    read -r user <"$dir/cgroup.procs" && user="process $user"
}

# ── Preparing ────────────────────────────────────────────────────────────────────────────────

# system.slice is a cgroup, too: limits of ours would strangle whatever runs there.
refuse_strangers() {
    for below in "$dir"/*/; do
        case $below in
            "$dir/*/" | "$dir"/run-*) ;;
            *) fail "$dir is somebody else's: $below is in it" ;;
        esac
    done
    if [ "$version" = 2 ] && read -r pid <"$dir/cgroup.procs"; then
        fail "$dir has process $pid in it: v2 wants processes in cgroups without cgroups below"
    fi
}

limit_memory_v1() {
    memsw=$dir/memory.memsw.limit_in_bytes  # memory and swap together
    if [ "$(cat "$dir/memory.use_hierarchy" 2>/dev/null)" = 0 ]; then
        write 1 "$dir/memory.use_hierarchy"  # before Linux 5.11 a limit may not hold for cgroups below
    fi
    if [ ! -e "$memsw" ]; then
        limit memory.limit_in_bytes "$bytes"
        limit memory.swappiness 0  # the kernel does not count swap: then keep out of it
    elif [ "$bytes" -gt "$(cat "$memsw")" ]; then  # memory alone may at no time be the larger limit
        limit memory.memsw.limit_in_bytes "$bytes"
        limit memory.limit_in_bytes "$bytes"
    else
        limit memory.limit_in_bytes "$bytes"
        limit memory.memsw.limit_in_bytes "$bytes"
    fi
}

# Who called sudo may make cgroups in it and, on v1, join them. The limits stay root's.
hand_over() {
    for file in . cgroup.procs tasks cgroup.subtree_control; do
        if [ -n "${SUDO_UID-}" ] && [ -e "$dir/$file" ]; then
            reason=$(chown "$SUDO_UID${SUDO_GID:+:$SUDO_GID}" "$dir/$file" 2>&1) || fail "$reason"
        fi
    done
}

prepare() {  # prepare CONTROLLER
    locate "$1"
    if [ "$version" = 2 ]; then
        write "+$1" "$top/cgroup.subtree_control" ' (v2: not while it has processes itself)'
    fi
    if [ -d "$dir" ]; then
        refuse_strangers
        sweep
    else
        reason=$(mkdir "$dir" 2>&1) || [ -d "$dir" ] || fail "cannot make $dir: ${reason##*: }"
        made="$made $dir"
    fi
    case $1-v$version in
        memory-v1) limit_memory_v1 ;;
        memory-v2)
            limit memory.max "$bytes"
            if [ -e "$dir/memory.swap.max" ]; then limit memory.swap.max 0; fi ;;
        pids-*) limit pids.max "$pids" ;;
        cpu-v1)
            limit cpu.cfs_period_us 100000
            limit cpu.cfs_quota_us "${quota:--1}" ;;
        cpu-v2) limit cpu.max "${quota:-max} 100000" ;;
    esac
    # With its limit set, and not before, there may be containers in it. systemd cannot take the
    # controller away from the top while it is in use here.
    if [ "$version" = 2 ]; then write "+$1" "$dir/cgroup.subtree_control"; fi
    hand_over
}

undo() {  # a cgroup with half of its limits is worse than none
    if [ $? -ne 0 ]; then
        for dir in $made; do rmdir "$dir" 2>/dev/null || :; done
    fi
}

if [ $action = prepare ]; then
    made='' limits=''
    trap undo EXIT
    trap 'exit 1' HUP INT TERM
    # cpu without a limit, too, for --cpus of one container. It comes last: on v1, where it is
    # there, the others are ready.
    for controller in memory pids cpu; do prepare $controller; done
    for file in $limits; do echo "$file = $(cat "$file")"; done
    [ "$name" = demo ] && parent='' || parent="--cgroup-parent $name "
    echo "now: sudo python3 go_container.py run $parent/bin/sh"
    exit
fi

# ── Deleting: from all hierarchies, or from none ─────────────────────────────────────────────

for controller in memory pids cpu; do
    locate $controller
    sweep
    if [ -d "$dir" ] && in_use; then
        sleep 1  # what has just been killed may still be on its way out
        sweep
        ! in_use || fail "$name is in use: $user"
    fi
done
for controller in memory pids cpu; do
    locate $controller
    if [ -d "$dir" ]; then
        reason=$(rmdir "$dir" 2>&1) || fail "cannot remove $dir: ${reason##*: }"
    fi
done
