#!/usr/bin/env bash
# A one-machine SLURM cluster to test against: scripts/local_slurm.sh start|stop|status DIR
#
# Runs munged, slurmctld and some slurmd on the loopback, without systemd and cgroups. Keys, state, logs and sockets
# are in DIR, which all users must be able to read (for munge), such as a folder in /tmp. After start,
# `. DIR/env.sh` lets SLURM's commands find the cluster. Partition `high` pre-empts `main` by requeueing, with 30 s of
# grace. A fake sacct answers the query of submitit. Packages for Debian:
#   apt-get install --no-install-recommends slurmctld slurmd slurm-client munge
#
# Variables for start: NODES=2, the number of slurmd; CPUS=2 and GPUS=0, which each node claims to have (GPUs are
# /dev/null).
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
action=${1:-}
if [ $# -ne 2 ]; then sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; fi
mkdir -p "$2"
dir=$(cd "$2" && pwd -P)
conf=$dir/slurm.conf
self=$(id -un)
host=$(hostname -s)

fail() {
    echo "local_slurm: $*" >&2
    exit 1
}

within() { # SECONDS COMMAND...: whether the command succeeds within that time
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.1
    done
}

# --- processes ---------------------------------------------------------------------------------------------------

pid_of() { # NAME: print its process id. Only the first line counts: slurmctld leaves old digits behind it
    head -n1 "$dir/run/$1.pid" 2>/dev/null
}

is_ours() { # PID: whether it is a daemon of this cluster. The number may belong to another process by now
    cat "/proc/$1/cmdline" "/proc/$1/environ" 2>/dev/null | tr '\0' '\n' | grep -qF -- "$dir/"
}

is_alive() { # NAME
    local pid
    pid=$(pid_of "$1") && [ -n "$pid" ] && is_ours "$pid"
}

stop_daemon() { # NAME
    local pid
    if is_alive "$1"; then
        pid=$(pid_of "$1")
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 100); do is_ours "$pid" || break; sleep 0.1; done
        if is_ours "$pid"; then kill -9 "$pid" || true; fi
    fi
    rm -f "$dir/run/$1.pid"
}

nodes() {
    sed -n 's/^NodeName=\(n[0-9]*\) .*/\1/p' "$conf" 2>/dev/null || true
}

is_up() { # whether slurmctld answers and every node is there
    [ -f "$conf" ] && is_alive slurmctld || return 1
    local up
    up=$(SLURM_CONF=$conf timeout 5 sinfo -h -N -p main -o '%N %t' | grep -cE '^n[0-9]+ (idle|mix|alloc|comp)$')
    [ "$up" -eq "$(nodes | wc -l)" ]
}

queue_is_empty() {
    [ -z "$(SLURM_CONF=$conf timeout 5 squeue -h)" ]
}

# --- files -------------------------------------------------------------------------------------------------------

free_ports() { # N
    python3 -c '
import socket, sys
sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for each in sockets: each.bind(("127.0.0.1", 0))
print(*[each.getsockname()[1] for each in sockets])' "$1"
}

write_conf() {
    local nodes=${NODES:-2} cpus=${CPUS:-2} gpus=${GPUS:-0} gres='' ports i
    read -ra ports <<<"$(free_ports $((nodes + 1)))"
    echo "CgroupPlugin=disabled" >"$dir/cgroup.conf"
    # cred_expire is also how long a requeued job waits before it may start again; the default is 120 s.
    cat >"$conf" <<CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=$self
SlurmdUser=$self
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$dir/munge/munge.sock,cred_expire=10
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,sched_min_interval=0,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
KillWait=5
MinJobAge=3600
InactiveLimit=0
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=60
MessageTimeout=20
CONF
    if [ "$gpus" -gt 0 ]; then
        gres=" Gres=gpu:$gpus"
        echo "GresTypes=gpu" >>"$conf"
        mkdir -p "$dir/dev"
        for i in $(seq 0 $((gpus - 1))); do ln -sf /dev/null "$dir/dev/gpu$i"; done
        printf 'AutoDetect=off\nName=gpu Flags=nvidia_gpu_env File=%s/dev/gpu[0-%d]\n' "$dir" $((gpus - 1)) >"$dir/gres.conf"
    fi
    for i in $(seq "$nodes"); do
        echo "NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[$i]} CPUs=$cpus RealMemory=4000$gres"
    done >>"$conf"
    cat >>"$conf" <<'CONF'
PartitionName=main Nodes=ALL Default=YES DefaultTime=60 MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=high Nodes=ALL Default=NO DefaultTime=60 MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
CONF
    printf 'export SLURM_CONF=%q PATH=%q:$PATH\n' "$conf" "$dir/bin" >"$dir/env.sh"
}

write_sacct() { # a script that answers `sacct -o JobID,State,NodeList --parsable2 -j A -j B` from slurmctld's data
    mkdir -p "$dir/bin"
    cat >"$dir/bin/sacct" <<'PYTHON'
#!/usr/bin/env python3
import re
import subprocess
import sys

words = sys.argv[1:]
asked = [word for flag, value in zip(words, words[1:]) if flag in ("-j", "--jobs") for word in value.split(",")]
print("JobID|State|NodeList")
for job in dict.fromkeys(re.split("[_.]", word)[0] for word in asked):
    shown = subprocess.run(["scontrol", "-o", "show", "job", job], capture_output=True, text=True).stdout
    for line in shown.splitlines():
        facts = dict(re.findall(r"(\w+)=(\S*)", line))
        task = facts.get("ArrayTaskId")
        if task and not task.isdigit():  # the tasks of an array that wait
            task = f"[{task}]"
        name = f"{facts['ArrayJobId']}_{task}" if task else facts["JobId"]
        node = facts.get("NodeList", "")
        print(f"{name}|{facts['JobState']}|{'None assigned' if node in ('', '(null)') else node}")
PYTHON
    chmod 755 "$dir/bin/sacct"
}

# --- actions -----------------------------------------------------------------------------------------------------

start() {
    local node
    if is_up; then status; return; fi
    for node in munged slurmctld slurmd; do
        command -v "$node" >/dev/null || fail "no $node (Debian: apt-get install slurmctld slurmd slurm-client munge)"
    done
    stop_all # whatever a crash has left behind
    rm -rf "${dir:?}/state" "$dir/spool" "$dir/bin" "$dir/gres.conf" # a new cluster counts its jobs from 1
    mkdir -p "$dir"/{run,log,state,spool,munge}
    chmod 755 "$dir"
    chmod 700 "$dir/run"
    chmod 711 "$dir/munge"
    write_conf
    write_sacct
    export SLURM_CONF=$conf

    rm -f "$dir"/munge/munge.sock*
    (umask 077 && head -c 1024 /dev/urandom >"$dir/munge/munge.key")
    (umask 022 && munged --key-file="$dir/munge/munge.key" --socket="$dir/munge/munge.sock" \
        --pid-file="$dir/run/munged.pid" --log-file="$dir/log/munged.log" --seed-file="$dir/munge/munge.seed") ||
        fail "munged does not start, see $dir/log/munged.log"
    within 5 munge -S "$dir/munge/munge.sock" -n || fail "munged does not answer"
    slurmctld -c -f "$conf" || fail "slurmctld does not start, see $dir/log/slurmctld.log"
    for node in $(nodes); do
        mkdir -p "$dir/spool/$node"
        slurmd -c -N "$node" -f "$conf" || fail "slurmd $node does not start, see $dir/log/$node.log"
    done
    within 60 is_up || fail "the nodes are not up, see $dir/log"
    status
}

stop_all() {
    local node
    if is_alive slurmctld && SLURM_CONF=$conf timeout 3 scontrol ping >/dev/null 2>&1; then # leave no jobs behind
        SLURM_CONF=$conf timeout 5 scancel -u "$self" || true
        within 15 queue_is_empty || true
    fi
    for node in $(nodes); do stop_daemon "$node"; done
    stop_daemon slurmctld
    stop_daemon munged
}

status() {
    local name code=0
    for name in munged slurmctld $(nodes); do
        if is_alive "$name"; then echo "$name up, process $(pid_of "$name")"; else echo "$name down"; code=3; fi
    done
    if is_up; then echo "use it by: . $dir/env.sh"; else code=3; fi
    return "$code"
}

case $action in
    start | stop) # one at a time; -o: the daemons do not inherit the lock
        if [ -z "${LOCAL_SLURM_LOCKED:-}" ]; then LOCAL_SLURM_LOCKED=1 exec flock -o "$dir/.lock" bash "$0" "$@"; fi
        unset LOCAL_SLURM_LOCKED
        if [ "$action" = start ]; then start; else stop_all; fi
        ;;
    status) status ;;
    *) fail "unknown action $action: start, stop or status" ;;
esac
