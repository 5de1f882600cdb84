# Runs a program inside a node (see init.sh), in the node's cgroup, until the process that called nsenter ends.
set -eu
for procs in /sys/fs/cgroup/*/runtime/cgroup.procs /sys/fs/cgroup/runtime/cgroup.procs; do
    if [ -e "$procs" ]; then
        echo 0 > "$procs"
    fi
done
exec setpriv --pdeathsig KILL -- "$@"
