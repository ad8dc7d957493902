#!/bin/sh
# Prepares the cgroup that containers live in, with the limits of the exercise: 10 processes and
# 50 MB for all of them together, and no swap. go_container.py makes each container a cgroup of
# its own in it, run-…, and locks that directory for as long as the container lives.
#
# The kernel has two versions of cgroups, and many machines mix them: v1 has a tree of directories
# for each controller, v2 one for all. cgroups(7) explains whatever is written here.
#
# Root prepares it at the top of the tree. On v2 somebody else can do so below the cgroup that he
# is in, if it was delegated to him: systemd-run --user --scope -p Delegate=yes sh
#
# A cgroup that somebody else made keeps the limits that it has. Ours are known by a sticky bit,
# the t in drwxr-xr-t, which their directories have from the moment when mkdir makes them.

set -eu
export LC_ALL=C  # a-z means a to z, and errors read the same everywhere

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
        fail "--name $name: not one name of letters, digits, hyphens, underscores and dots" ;;
esac

case $pids in
    '' | 0* | *[!0-9]* | ????????*) fail "--pids $pids: not a number of processes such as 10" ;;
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
[ "$bytes" -ge 1048576 ] || fail "--memory $memory: not a size such as 50M, 1g or 52428800; at least 1M"

quota=  # microseconds of processor time in every 100 ms
if [ "$cpus" != none ]; then
    fraction=
    case $cpus in *.*) fraction=${cpus#*.} ;; esac
    case ${cpus%%.*}$fraction in
        *[!0-9]* | ?????????????*) quota=0 ;;
        *) quota=${cpus%%.*}$(printf '%.5s' "${fraction}00000") ;;
    esac
    quota=${quota#"${quota%%[!0]*}"}  # zeros in front would make it octal
    processors=$(getconf _NPROCESSORS_ONLN)
    if [ "${quota:-0}" -lt 1000 ] || [ "$quota" -gt $((processors * 100000)) ]; then
        fail "--cpus $cpus: not a number of processors such as 0.5, from 0.01 to $processors"
    fi
fi

# ── Where, and how to write there ────────────────────────────────────────────────────────────

uid=$(id -u) own=''
if [ "$uid" != 0 ]; then  # below which cgroup of v2 we are allowed to work, if at all
    own=$(sed -n 's/^0:://p' /proc/self/cgroup)
    own=${own%/launcher}  # see make_room
    own=${own%/}
fi

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
            top=$top$own
        fi
        dir=$top/$name
        return
    done </proc/self/mountinfo
    fail "no cgroup hierarchy has the $1 controller: see /proc/cgroups and /proc/self/mountinfo \
(some boards want cgroup_enable=memory on the kernel's command line)"
}

check() {  # check CONTROLLER: whether all of it can be done, before any of it is
    locate "$1"
    case " $options," in
        *' ro,'* | *' ro '*)
            fail "$top is mounted read-only, as in a container or in a unit with \
ProtectControlGroups=yes: Read-only file system" ;;
    esac
    if [ "$uid" != 0 ]; then
        [ "$version" = 2 ] || fail 'only root can prepare a cgroup: sudo ./cgroup.sh'
        for file in '' /cgroup.procs /cgroup.subtree_control; do
            [ -w "$top$file" ] || fail "$top is not delegated to you: you can prepare a cgroup in \
the shell of systemd-run --user --scope -p Delegate=yes sh, and root anywhere: sudo ./cgroup.sh"
        done
    fi
    if [ -e "$dir" ] && [ ! -k "$dir" ] && [ $action = prepare ]; then
        fail "$dir is not ours: take another --name, or --delete it if nobody uses it"
    fi
}

write() {  # write VALUE FILE [HINT]: by tee, since a shell's own echo does not say why it failed
    reason=$(echo "$1" | tee "$2" 2>&1 >/dev/null) ||
        fail "cannot write $1 to $2: ${reason##*: }${3-}"
}

limit() {  # limit FILE VALUE
    write "$2" "$dir/$1"
    limits="$limits$dir/$1 = $(cat "$dir/$1")
"
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

# v2 hands controllers down only from a cgroup without processes. A delegated one has some, at least
# the caller's shell and this one: they move to a cgroup beside NAME, as podman has it, too.
make_room() {
    [ -d "$top/launcher" ] || mkdir "$top/launcher"
    tries=0
    while [ $((tries += 1)) -le 1000 ] && read -r pid <"$top/cgroup.procs"; do
        echo "$pid" 2>/dev/null >"$top/launcher/cgroup.procs" || :  # it may have ended
    done
}

limit_memory_v1() {
    memsw=$dir/memory.memsw.limit_in_bytes  # memory and swap together
    if [ "$(cat "$dir/memory.use_hierarchy" 2>/dev/null)" = 0 ]; then
        write 1 "$dir/memory.use_hierarchy"  # else, before Linux 5.11, cgroups below had no limit
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
    if [ -e "$dir/memory.kmem.tcp.limit_in_bytes" ]; then
        limit memory.kmem.tcp.limit_in_bytes "$bytes"  # what waits in sockets counts apart
    fi
}

# Who called sudo may make cgroups in it and, on v1, join them. The limits stay root's. Root's group
# may remove them: after `run` was killed, that is left to a process of root's that has no power
# over the host any more (its user namespace is the container's), so the plain bits must allow it.
hand_over() {
    for file in cgroup.procs tasks cgroup.subtree_control .; do
        if [ -e "$dir/$file" ]; then
            reason=$(chown "$SUDO_UID:0" "$dir/$file" 2>&1) || fail "$reason"
        fi
    done
    chmod 1775 "$dir"
}

prepare() {  # prepare CONTROLLER
    locate "$1"
    if [ "$version" = 2 ]; then
        if [ "$uid" != 0 ]; then make_room; fi
        write "+$1" "$top/cgroup.subtree_control" ' (it must have this, and no process)'
    fi
    if [ -k "$dir" ]; then
        sweep
    else
        made="$made$dir
"  # before it is: there may be a signal in between
        reason=$(mkdir -m 1755 "$dir" 2>&1) || fail "cannot make $dir: ${reason##*: }"
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
    if [ "$uid" = 0 ] && [ -n "${SUDO_UID-}" ]; then hand_over; fi
}

undo() {  # a cgroup with half of its limits is worse than none
    trap '' HUP INT TERM  # Ctrl-C would end the rmdir, too
    printf '%s' "$made" | while read -r cgroup; do
        if [ -k "$cgroup" ]; then rmdir "$cgroup" 2>/dev/null || :; fi
    done
}

controllers='memory pids cpu'
check memory
exec 9<"$top"  # one at a time: the lock on this directory goes when we end
flock -w 10 9 || fail "somebody else holds the lock on $top"
# systemd delegates cpu only to who asks for it.
if [ "$uid" != 0 ] && [ "$cpus" = none ] && ! grep -qw cpu "$top/cgroup.controllers"; then
    controllers='memory pids'
fi
for controller in $controllers; do check "$controller"; done

if [ $action = prepare ]; then
    made='' limits=''
    trap undo EXIT
    trap 'undo; exit 1' HUP INT TERM  # since a second one ends the trap of EXIT
    # cpu is prepared even without a limit, for --cpus of one container. It comes last: where it
    # exists on v1, the others are ready.
    for controller in $controllers; do prepare "$controller"; done
    printf '%s' "$limits"
    trap '' HUP INT TERM  # it is done
    made=''
    [ "$uid" = 0 ] && sudo='sudo ' || sudo=''
    [ "$name" = demo ] && parent='' || parent="--cgroup-parent $name "
    echo "now: ${sudo}python3 go_container.py run $parent/bin/sh"
    exit
fi

# ── Deleting: from all hierarchies, or from none ─────────────────────────────────────────────

for controller in $controllers; do
    locate "$controller"
    sweep
    if [ -d "$dir" ] && in_use; then
        sleep 1  # what has just been killed may still be on its way out
        sweep
        ! in_use || fail "$name is in use: $user"
    fi
done
trap '' HUP INT TERM
for controller in $controllers; do
    locate "$controller"
    if [ -d "$dir" ]; then
        reason=$(rmdir "$dir" 2>&1) || fail "cannot remove $dir: ${reason##*: }"
    fi
done
