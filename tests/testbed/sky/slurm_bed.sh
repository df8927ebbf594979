#!/bin/bash
# A Slurm cluster of two nodes, a login node and a SkyPilot API server, alone in namespaces of their own:
#
#     unshare --mount --pid --uts --fork --kill-child --mount-proc bash slurm_bed.sh FOLDER SKY_PYTHON PORTS...
#
# It says "ready", runs until its standard input closes, and then everything in it is killed by the kernel with its
# first process: nothing can be left behind. Its root's home is FOLDER/home (a passwd file of its own, seen only here),
# so SkyPilot's ~/.sky, ~/.ssh and ~/.bashrc are not the machine's. PORTS: slurmctld, two slurmd, sshd, API server.
# Needs root and Debian's slurm-wlm, munge, openssh-server, rsync, socat, netcat-openbsd.
set -eu
D=$1 python=$2 ctld=$3 slurmd1=$4 slurmd2=$5 sshd=$6 api=$7
here=$(cd -- "$(dirname -- "$0")" && pwd)
home=$D/home

mkdir -p "$D"/{tmp,run,log,state,spool/n1,spool/n2,dev,munge,bin} "$home"/{.ssh,.slurm,.sky} /run/sshd
chmod 700 "$D/munge" "$home/.ssh"
hostname skybed
sed "s#^\(root:.*:\)/root:#\1$home:#" /etc/passwd >"$D/passwd"
printf '127.0.0.1 localhost skybed n1 n2\n' >"$D/hosts"
mount --bind "$D/passwd" /etc/passwd
mount --bind "$D/hosts" /etc/hosts

# What the nodes would fetch from the network is there already: `curl` gives an installer of a `uv` that knows that.
cat >"$D/bin/curl" <<E
#!/bin/sh
echo 'mkdir -p "\$UV_INSTALL_DIR" && install -m 755 $D/bin/uv "\$UV_INSTALL_DIR/uv"'
E
cat >"$D/bin/uv" <<E
#!/bin/sh
case "\$*" in
*--system-site-packages*) exit 1 ;;
venv*) for last; do case \$last in *skypilot-runtime*) folder=\$last ;; esac; done
       [ -e "\$folder" ] || ln -s "$(dirname "$(dirname "$python")")" "\$folder" ;;
"pip list"*) echo "skypilot 0.14" ;;
esac
E
chmod 755 "$D"/bin/*

cat >"$D/slurm.conf" <<E
ClusterName=skybed
SlurmctldHost=skybed(127.0.0.1)
SlurmctldPort=$ctld
AuthType=auth/munge
AuthInfo=socket=$D/run/munge.sock,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool/%n
SlurmctldPidFile=$D/run/slurmctld.pid
SlurmdPidFile=$D/run/slurmd.%n.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
KillWait=2
SlurmctldTimeout=10
SlurmdTimeout=20
NodeName=n1 NodeHostname=skybed NodeAddr=127.0.0.1 Port=$slurmd1 CPUs=8 Boards=1 SocketsPerBoard=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=8000
NodeName=n2 NodeHostname=skybed NodeAddr=127.0.0.1 Port=$slurmd2 CPUs=8 Boards=1 SocketsPerBoard=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=8000
PartitionName=main Nodes=ALL Default=YES MaxTime=1:00:00 State=UP
E
printf 'CgroupAutomount=no\nCgroupPlugin=cgroup/v1\n' >"$D/cgroup.conf"

ssh-keygen -q -t ed25519 -N '' -f "$D/hostkey"
ssh-keygen -q -t ed25519 -N '' -f "$home/.ssh/login"
cp "$home/.ssh/login.pub" "$home/.ssh/authorized_keys"
cat >"$D/sshd_config" <<E
Port $sshd
ListenAddress 127.0.0.1
HostKey $D/hostkey
PidFile $D/run/sshd.pid
UsePAM no
PasswordAuthentication no
PermitRootLogin yes
StrictModes no
AuthorizedKeysFile .ssh/authorized_keys
MaxStartups 100
MaxSessions 100
SetEnv SLURM_CONF=$D/slurm.conf TMPDIR=$D/tmp PATH=$D/bin:/usr/sbin:/usr/bin:/sbin:/bin
Subsystem sftp internal-sftp
E
cat >"$home/.slurm/config" <<E
Host bed
    HostName 127.0.0.1
    Port $sshd
    User root
    IdentityFile $home/.ssh/login
    IdentitiesOnly yes
E

# The daemons get none of the caller's environment: a node has its own.
clean() { env -i TMPDIR="$D/tmp" PATH="$D/bin:/usr/sbin:/usr/bin:/sbin:/bin" HOME="$home" USER=root LANG=C.UTF-8 SLURM_CONF="$D/slurm.conf" "$@"; }
dd if=/dev/urandom of="$D/munge/key" bs=1 count=1024 status=none
chmod 400 "$D/munge/key"
clean munged -S "$D/run/munge.sock" --key-file="$D/munge/key" --pid-file="$D/run/munged.pid" \
    --log-file="$D/munge/log" --seed-file="$D/munge/seed" --force 2>>"$D/log/munged.err"
clean slurmctld -f "$D/slurm.conf"
for node in n1 n2; do clean slurmd -f "$D/slurm.conf" -N $node; done
clean /usr/sbin/sshd -f "$D/sshd_config" -E "$D/log/sshd.log"

echo "export PATH=$D/bin:\$PATH" >"$home/.profile" # login shells set it anew
export HOME=$home TMPDIR=$D/tmp SKYPILOT_DISABLE_USAGE_COLLECTION=1 SKYPILOT_API_SERVER_LOCAL_PORT=$api
"$python" "$here/catalogs.py" "$home"
cat >"$home/.sky/config.yaml" <<E
allowed_clouds: [slurm]
E
"$(dirname "$python")/sky" api start >"$D/log/api.log" 2>&1 </dev/null
for _ in $(seq 1200); do
    [ "$(SLURM_CONF=$D/slurm.conf timeout 3 sinfo -h -o '%T %D' 2>/dev/null)" = "idle 2" ] && echo ready && break
    sleep 0.1
done
cat >/dev/null # until whoever started this is gone
