#!/bin/sh
# A throw-away copy of this machine: what is written there goes to memory, and all of it is gone when standard input
# ends. Usage: machine.sh DIRECTORY COMMAND.., in mount, network, UTS and IPC namespaces of its own. COMMAND is PID 1
# of the copy. Prints the pid of the process whose child that is.
#
# DIRECTORY/changes holds what was written, DIRECTORY/root is the root of the copy.
set -e
directory=$1
shift

mount -t tmpfs none "$directory"
cd "$directory"
mkdir changes work root control-groups
mount -t overlay -o lowerdir=/,upperdir=changes,workdir=work overlay root

# Nothing of this machine shall be started or changed, nor be taken for what the package has left.
rm -rf root/etc/osps root/etc/systemd/system/*.wants root/usr/lib/systemd/system/*.wants root/usr/sbin/policy-rc.d
for unit in systemd-journald.service systemd-journald.socket systemd-journald-dev-log.socket dbus.service dbus.socket; do
    ln -sf /dev/null root/etc/systemd/system/$unit
done
mount -t tmpfs -o mode=755 none root/run
mount -t tmpfs -o mode=1777 none root/tmp
mount -t sysfs -o ro sysfs root/sys
mount -t tmpfs -o mode=755 none root/dev
mkdir root/dev/pts root/dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts root/dev/pts
mount -t tmpfs -o mode=1777 none root/dev/shm
ln -s pts/ptmx root/dev/ptmx
ln -s /proc/self/fd root/dev/fd
for device in null zero full random urandom tty; do
    touch root/dev/$device
    mount --bind /dev/$device root/dev/$device
done

# A control group of its own, of which its root cannot get out.
mount -t cgroup2 none control-groups
group=control-groups/osps-package-$$
mkdir "$group"
sh -c 'echo $$ > "$1/cgroup.procs" && shift && exec "$@"' sh "$group" \
    unshare --cgroup --pid --fork --kill-child sh -c '
        mount -t cgroup2 none root/sys/fs/cgroup
        mount -t proc proc root/proc
        mount --bind root/proc/sys root/proc/sys
        mount -o remount,bind,ro root/proc/sys
        exec env -i container=copy PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin chroot root "$@"
    ' sh "$@" &
inner=$!
echo "$inner"
cat >/dev/null
kill -9 "$inner"
wait || true
# Those who die with their PID 1 may take a moment.
until find "$group" -depth -type d -exec rmdir {} + 2>/dev/null; do
    sleep 0.05
done
