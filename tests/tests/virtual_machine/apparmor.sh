mount -t securityfs security /sys/kernel/security
mount -t cgroup2 cgroup /sys/fs/cgroup
cat > /tmp/profile << 'END'
profile kiln-steps flags=(attach_disconnected,mediate_deleted) {
  file,
  capability,
  signal,
  unix,
  deny /forbidden w,
}
END

unloaded() {
    ! start --oci-worker-apparmor-profile kiln-steps && grep -q 'profile "kiln-steps" is not loaded.*apparmor_parser -r' /tmp/log
}
ok "a profile that is not loaded is named" unloaded

apparmor_parser -r -K /tmp/profile
confined() {
    build --no-cache << 'END'
RUN test "$(cat /proc/self/attr/current)" = "kiln-steps (enforce)" && ! touch /forbidden && touch /allowed
USER 1000
RUN test "$(cat /proc/self/attr/current)" = "kiln-steps (enforce)"
END
}
insecure() {
    build --allow security.insecure << 'END'
RUN --security=insecure test "$(cat /proc/self/attr/current)" = unconfined && touch /forbidden
END
}
start --oci-worker-apparmor-profile kiln-steps --allow-insecure-entitlement security.insecure
ok "steps are in the profile" confined
ok "insecure steps are not" insecure

version_2() {
    limited << 'END'
RUN cd /sys/fs/cgroup; test $(cat memory.max) = 67108864 && test "$(cat cpu.max)" = "50000 100000" && test $(cat cpu.weight) = 20 && \
    test $(cat cpuset.cpus) = 0
END
    done=$?
    test -d /sys/fs/cgroup/ci/buildkit && no_others && return $done
}
ok "limits of version 2" version_2
ok "out of memory is said" exhausted

for runtime in runc crun; do
    start --oci-worker-apparmor-profile kiln-steps --oci-worker-binary /bin/$runtime
    ok "$runtime is told" confined
done
stop

# An ordinary user.
mkdir -p /home/bob
chown 1000:1000 /home/bob
ordinary() {
    su -s /bin/sh bob -c 'cd; unset BUILDKIT_HOST; printf "FROM scratch\nCOPY busybox /busybox\nRUN [\"/busybox\", \"id\"]\nRUN [\"/busybox\", \"rm\", \"/busybox\"]\n" > Dockerfile
        cp /bin/busybox .; kiln --root /home/bob/data build --progress plain . < /dev/null; code=$?; cat data/daemon.log; exit $code'
}
forbidden() {
    sysctl -w kernel.unprivileged_userns_clone=0
    said 'sysctl -w kernel.unprivileged_userns_clone=1' ordinary
    code=$?
    sysctl -w kernel.unprivileged_userns_clone=1
    return $code
}
ok "users without namespaces are told why" forbidden
ok "an ordinary user builds" ordinary
