#!/usr/bin/env bash
# A Slurm cluster of this machine alone, on loopback, from Debian's packages: apt-get install slurm-wlm munge
#   eval "$(tests/engines/slurm.sh start DIR)"   starts munged, slurmctld and slurmd with all their files in DIR
#   tests/engines/slurm.sh stop DIR              ends just these three
# No accounting, no cgroups, one node, one partition: enough for sbatch, srun, squeue and sinfo.
set -euo pipefail
action=${1:?start or stop} dir=${2:?a folder}
export PATH=$PATH:/usr/sbin:/sbin
for program in munged slurmctld slurmd sbatch; do
  command -v "$program" > /dev/null || { echo "$program is not installed: apt-get install slurm-wlm munge" >&2; exit 2; }
done

stop() {
  for name in slurmd slurmctld munged; do
    [ -s "$dir/$name.pid" ] && kill "$(cat "$dir/$name.pid")" 2> /dev/null || true
  done
}

start() {
  mkdir -p "$dir"/{state,spool}
  dir=$(cd "$dir" && pwd)
  chmod 0755 "$dir"
  local me cores megabytes port
  me=$(id -un) cores=$(nproc) megabytes=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
  port=$((20000 + RANDOM % 20000))
  head -c 1024 /dev/urandom > "$dir/munge.key" && chmod 0400 "$dir/munge.key"
  munged --force --key-file="$dir/munge.key" --socket="$dir/munge.sock" --pid-file="$dir/munged.pid" \
    --seed-file="$dir/munge.seed" --log-file="$dir/munged.log"
  cat > "$dir/slurm.conf" <<CONF
ClusterName=loopback
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=$me
SlurmdUser=$me
AuthType=auth/munge
AuthInfo=socket=$dir/munge.sock
CredType=cred/munge
SlurmctldPort=$port
SlurmdPort=$((port + 1))
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SchedulerParameters=batch_sched_delay=1,sched_interval=5
MpiDefault=none
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=$cores RealMemory=$megabytes State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
  export SLURM_CONF=$dir/slurm.conf
  slurmctld -i > "$dir/start.log" 2>&1
  slurmd >> "$dir/start.log" 2>&1
  for _ in $(seq 60); do
    if sinfo --noheader --format=%T 2> /dev/null | grep -q idle; then
      echo "export SLURM_CONF=$dir/slurm.conf"
      return
    fi
    sleep 0.5
  done
  echo "Slurm did not come up; see $dir/*.log" >&2
  stop
  exit 1
}

"$action"
