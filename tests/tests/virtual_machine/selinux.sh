mount -t selinuxfs selinux /sys/fs/selinux
mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
for controller in cpu,cpuacct cpuset memory pids devices; do
    mkdir /sys/fs/cgroup/$controller
    mount -t cgroup -o $controller cgroup /sys/fs/cgroup/$controller
done

unavailable() {
    start --oci-worker-selinux && said 'selinux is not available' build << 'END'
RUN true
END
}
ok "without a policy it is not available" unavailable
stop
dd if=/policy of=/sys/fs/selinux/load bs=16M 2> /dev/null
echo 1 > /sys/fs/selinux/enforce

without_contexts() {
    ! start --oci-worker-selinux && grep -q 'package container-selinux' /tmp/log
}
ok "without contexts the package is named" without_contexts
mkdir -p /etc/selinux/mini/contexts
echo SELINUXTYPE=mini > /etc/selinux/config
cat > /etc/selinux/mini/contexts/lxc_contexts << 'END'
process = "system_u:system_r:container_t:s0"
file = "system_u:object_r:container_file_t:s0"
END

labelled() {
    build --no-cache << 'END'
RUN cat /proc/self/attr/current | tr '\0' '\n' > /one; grep -E '^system_u:system_r:container_t:s0:c[0-9]+,c[0-9]+$' /one
RUN cat /proc/self/attr/current | tr '\0' '\n' > /two; ! cmp /one /two && grep container_t /two
RUN for place in /dev /dev/pts /dev/shm /etc/hosts /etc/resolv.conf; do \
    grep -e " $place .*context=.*container_file_t:$(cut -d : -f 4- /proc/self/attr/current | tr -d '\0')" /proc/self/mountinfo || exit 1; done; \
    grep ' / / .*context=.*container_file_t:s0[",]' /proc/self/mountinfo && cat /etc/hosts /etc/resolv.conf && echo x > /dev/shm/x && echo x > /dev/null
USER 1000
RUN grep -q container_t /proc/self/attr/current
END
}
enforced() {
    build --no-cache << 'END'
RUN ! ls /sys
END
}
shared() {
    build << 'END'
RUN --mount=type=cache,target=/c mkdir /c/d && echo kept > /c/d/f
RUN --mount=type=cache,target=/c cat /c/d/f && echo more >> /c/d/f
END
}
insecure() {
    build --allow security.insecure << 'END'
RUN --security=insecure grep kernel_t /proc/self/attr/current && ls /sys && grep ' /dev/shm .*container_file_t:s0:c1022,c1023' /proc/self/mountinfo
END
}
bare() {
    build --no-cache -o type=tar,dest=/tmp/out.tar << 'END'
RUN echo a > /made; cp /made /copied
END
    tar -tf /tmp/out.tar | grep -q made && ! grep -q container_file_t /tmp/out.tar
}
start --oci-worker-selinux --allow-insecure-entitlement security.insecure
ok "steps have labels of their own" labelled
ok "the policy is enforced" enforced
ok "caches are shared" shared
ok "insecure steps are the daemon's" insecure
ok "layers have no labels" bare
for runtime in runc crun; do
    start --oci-worker-selinux --oci-worker-binary /bin/$runtime
    ok "$runtime is told" labelled
done

version_1() {
    limited << 'END'
RUN cd /sys/fs/cgroup; test $(cat memory/memory.limit_in_bytes) = 67108864 && test $(cat cpu,cpuacct/cpu.cfs_quota_us) = 50000 && \
    test $(cat cpu,cpuacct/cpu.shares) = 512 && test $(cat cpuset/cpuset.cpus) = 0
END
    done=$?
    test -d /sys/fs/cgroup/memory/ci/buildkit && no_others && return $done
}
start
ok "limits of version 1" version_1
ok "out of memory is said" exhausted
mkdir /sys/fs/cgroup/unified
mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
start
ok "limits of version 1 beside an empty version 2" version_1
