# Process 1 of a node, in its own process, mount, network, UTS and IPC namespaces. When it ends, the kernel kills all
# processes of the node, and its mounts, interfaces and packet rules are gone.
set -eu
folder=$1
cgroup=$2
# Before /proc is replaced: the id of this process as the machine counts.
read -r id _ < /proc/self/stat
mount -t proc proc /proc
# Sockets and state of an installed containerd stay out of reach, and ours have short paths.
mount -t tmpfs tmpfs /run
for part in lib log; do
    mkdir -p "$folder/var-$part"
    mount --bind "$folder/var-$part" "/var/$part"
done
# The node's cgroup becomes the root of each hierarchy, so that whatever is made in it is removed with it. The mounts of
# the machine are replaced, not covered: containerd takes the first one that it finds.
mkdir /run/cgroup
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount --bind "/sys/fs/cgroup/$cgroup" /run/cgroup
else
    mount -t tmpfs tmpfs /run/cgroup
    for hierarchy in /sys/fs/cgroup/*; do
        name=${hierarchy##*/}
        if [ -L "$hierarchy" ]; then
            cp --no-dereference "$hierarchy" /run/cgroup/
        elif [ -d "$hierarchy/$cgroup" ]; then
            mkdir "/run/cgroup/$name"
            mount --bind "$hierarchy/$cgroup" "/run/cgroup/$name"
        fi
    done
fi
umount --recursive /sys/fs/cgroup
mount --move /run/cgroup /sys/fs/cgroup
# The kubelet sets these for the whole machine. It finds its values here, and leaves those of the machine.
for value in vm/overcommit_memory=1 kernel/panic=10 kernel/panic_on_oops=1; do
    parameter=${value%=*}
    file="$folder/$(basename "$parameter")"
    echo "${value#*=}" > "$file"
    mount --bind "$file" "/proc/sys/$parameter"
done
ip link set lo up
# Of this network namespace only.
echo 1 > /proc/sys/net/ipv4/ip_forward
echo "$id" > "$folder/init.new"
mv "$folder/init.new" "$folder/init"
# As process 1 it reaps the processes whose parents have ended: the shell does so while it waits for `sleep`.
while :; do sleep 1; done
