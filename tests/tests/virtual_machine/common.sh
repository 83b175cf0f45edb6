#!/bin/busybox sh
# What every script in the machine begins with. It is the first process there.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root
mount -t proc proc /proc
# The kernel's messages would come in the middle of ours; dmesg has them.
dmesg -n 1
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
chmod 1777 /tmp
ip link set lo up
printf 'root:x:0:0::/root:/bin/sh\nbob:x:1000:1000::/home/bob:/bin/sh\n' > /etc/passwd
printf 'root:x:0:\nbob:x:1000:\n' > /etc/group
export BUILDKIT_HOST=unix:///tmp/kiln.sock

# ok NAME COMMAND...: what the command printed is shown if it fails.
ok() {
    name=$1
    shift
    if "$@" > /tmp/said 2>&1; then
        echo "ok $name"
    else
        echo "not ok $name"
        cat /tmp/said /tmp/log
        dmesg | tail -n 5
    fi
}

finish() {
    stop
    poweroff -f
}

# start FLAGS...: a daemon, until it answers or has ended.
start() {
    stop
    kiln daemon --root /data --addr $BUILDKIT_HOST "$@" > /tmp/log 2>&1 &
    daemon=$!
    until kiln debug workers > /dev/null 2>&1; do
        kill -0 $daemon 2> /dev/null || return 1
        usleep 20000
    done
}

stop() {
    [ -z "$daemon" ] && return
    kill $daemon
    wait $daemon
    daemon=
    rm -f /tmp/kiln.sock
}

# build OPTIONS...: of the lines on standard input, after a base with busybox. Prints what the build prints.
build() {
    mkdir -p /tmp/context
    {
        printf 'FROM scratch\nCOPY --from=tools busybox /bin/busybox\nSHELL ["/bin/busybox", "sh", "-c"]\n'
        echo 'RUN /bin/busybox --install -s /bin'
        cat
    } > /tmp/context/Dockerfile
    kiln build --progress plain --build-context tools=/tools "$@" /tmp/context
}

mkdir -p /tools
cp /bin/busybox /tools

# said TEXT COMMAND...: the command prints it, whether it succeeds or not.
said() {
    text=$1
    shift
    "$@" > /tmp/output 2>&1
    cat /tmp/output
    grep -q -e "$text" /tmp/output
}

# With what a step sees of its own limits: memory, processor weight, quota and set.
limited() {
    build --opt memory=67108864 --opt cpushares=512 --opt cpuquota=50000 --opt cpuperiod=100000 --opt cpusetcpus=0 \
        --opt cgroup-parent=ci --no-cache
}

# Nobody but root may make cgroups.
no_others() {
    ! find /sys/fs/cgroup -type d -perm -2 | grep .
}

# A step that takes more memory than it may have.
exhausted() {
    said 'cannot allocate memory' build --opt memory=33554432 --no-cache << 'END'
RUN tail /dev/zero
END
}
