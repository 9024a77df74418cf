#!/usr/bin/env bash
# A real SLURM of one node on this machine, for developing and testing: loopback only, no cgroups, no systemd, no accounting.
#
#   scripts/slurm_dev.sh up             install what is missing (as root, with apt), start the three daemons, wait until the node is idle
#   eval "$(scripts/slurm_dev.sh env)"  let this shell talk to it
#   scripts/slurm_dev.sh down           stop the three daemons, by the process ids that they wrote down
#
# Everything lies in SLURM_DEV_DIR (by default under the temporary folder). SLURM_DEV_CPUS and SLURM_DEV_GPUS say what the node pretends to have: a
# GPU is an empty file, which is scheduled and counted, and used by nobody. Exit status 3: SLURM is not installed and this user cannot install it.
set -euo pipefail

folder=${SLURM_DEV_DIR:-${TMPDIR:-/tmp}/slurm-dev-$(id -un)}
cpus=${SLURM_DEV_CPUS:-2}
gpus=${SLURM_DEV_GPUS:-2}
port=${SLURM_DEV_PORT:-17817}  # and the next one
host=$(hostname -s)
export SLURM_CONF=$folder/slurm.conf

running() { local pid; pid=$(cat "$1" 2>/dev/null) && [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; }

install_packages() {
  if command -v slurmctld slurmd munged sbatch >/dev/null; then return; fi
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "slurm_dev: SLURM is not installed; as root with apt this script would install slurm-wlm and munge" >&2
    exit 3
  fi
  timeout 120 apt-get update -qq  # without a network it would try for long
  DEBIAN_FRONTEND=noninteractive timeout 300 apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
}

write_configuration() {
  mkdir -p "$folder"/munge "$folder"/spool "$folder"/state "$folder"/log
  chmod 755 "$folder" "$folder"/munge
  if [ ! -s "$folder/munge/key" ]; then (umask 077; head -c 128 /dev/urandom >"$folder/munge/key"); fi
  local gres="" memory i
  memory=$(($(awk '/MemTotal/ {print $2}' /proc/meminfo) / 2048))  # half of it, in MiB
  : >"$folder/gres.conf"
  if [ "$gpus" -gt 0 ]; then
    gres="Gres=gpu:$gpus"
    for ((i = 0; i < gpus; i++)); do : >"$folder/gpu$i"; done
    echo "NodeName=$host Name=gpu File=$folder/gpu[0-$((gpus - 1))]" >"$folder/gres.conf"
  fi
  cat >"$SLURM_CONF" <<CONF
ClusterName=dev
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
# loopback only
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
# no cgroups, no accounting
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
# quick answers
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=5
ReturnToService=2
JobRequeue=1
KillWait=10
MinJobAge=3600
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory $gres State=UNKNOWN
PartitionName=debug Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
}

up() {
  install_packages
  write_configuration
  if ! running "$folder/munge/pid"; then
    munged --force --socket="$folder/munge/socket" --key-file="$folder/munge/key" --pid-file="$folder/munge/pid" \
      --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" 2>>"$folder/log/munged.log"
  fi
  if ! running "$folder/slurmctld.pid"; then slurmctld -i 2>>"$folder/log/start.log"; fi
  if ! running "$folder/slurmd.pid"; then slurmd -N "$host" 2>>"$folder/log/start.log"; fi
  local state="" i
  for ((i = 0; i < 60; i++)); do
    state=$(sinfo -h -o %T 2>/dev/null || true)
    case $state in
      idle | mixed | allocated | completing) sinfo -N -o "%N %T %c CPUs %m MB %G"; return ;;
      down* | drain*) scontrol update nodename="$host" state=resume || true ;;
    esac
    sleep 0.5
  done
  echo "slurm_dev: the node did not come up (state '${state}'); the logs end with" >&2
  tail -n 5 "$folder"/log/* >&2
  exit 1
}

down() {
  local file i
  for file in slurmd.pid slurmctld.pid munge/pid; do
    if ! running "$folder/$file"; then continue; fi
    kill "$(cat "$folder/$file")"
    for ((i = 0; i < 40; i++)); do running "$folder/$file" || break; sleep 0.25; done
    if running "$folder/$file"; then echo "slurm_dev: the process of $folder/$file does not end" >&2; exit 1; fi
  done
}

case ${1:-} in
  up) up ;;
  env) echo "export SLURM_CONF=$SLURM_CONF" ;;
  down) down ;;
  *) echo "usage: $0 up|env|down" >&2; exit 2 ;;
esac
