//! A VMM that was taken over, in the real unit beside an ordinary VM: what it may not do, one attack after another.
//!
//! The unit's QEMU is replaced by `hostile`, which starts the real one and attacks as its user, in its sandbox.

use std::{cell::Cell, fmt::Write, fs};

use anyhow::{Context, Result, ensure};
use nix::libc;
use volant_testhost::HOSTILE_VARIABLE;
use volant_tests::{BOOT, Site, eventually};

const UNIT: &str = "volant-vm@evil.service";
/// How a process ends that makes a system call which its unit does not have.
const SECCOMP: &[&str] = &["killed 31"];
/// What a host with the older control groups keeps to itself; a throw-away host then enforces no limit.
const OPEN_CONTROL_GROUPS: &str = "for group in devices memory pids; do \
    mount -o remount,rw,bind /sys/fs/cgroup/$group 2>/dev/null || true; done; systemctl daemon-reexec";

/// A host with an ordinary VM `web` and a VM `evil`, whose VMM attacks when it is told.
struct Field {
    site: Site,
    evil: u32,
    web: u32,
    rounds: Cell<u32>,
}

impl Field {
    fn new() -> Result<Self> {
        let site = Site::new()?;
        let program =
            std::env::var_os(HOSTILE_VARIABLE).context("run this by `cargo xtask test`")?;
        fs::copy(program, site.host.path().join("root/hostile"))?;
        site.host.sh(&format!(
            "cp /usr/bin/qemu-system-x86_64 /usr/bin/qemu-real && chmod 755 /root/hostile && \
             mkdir -p /etc/systemd/system/{UNIT}.d && \
             printf '[Service]\\nBindReadOnlyPaths=/root/hostile:/usr/bin/qemu-system-x86_64\\n' \
             > /etc/systemd/system/{UNIT}.d/hostile.conf && systemctl daemon-reload"
        ))?;
        site.host.sh(OPEN_CONTROL_GROUPS)?;
        site.create("web", "hello")?;
        site.create("evil", "hello")?;
        let pid = |vm: &str| -> Result<u32> {
            let text = site
                .host
                .sh(&format!("systemctl show -P MainPID volant-vm@{vm}"))?;
            text.trim().parse().context("no process id")
        };
        let (evil, web) = (pid("evil")?, pid("web")?);
        Ok(Self {
            site,
            evil,
            web,
            rounds: Cell::new(0),
        })
    }

    /// A file of the unit's own `/tmp`.
    fn file(&self, name: &str) -> String {
        format!("/proc/{}/root/tmp/{name}", self.evil)
    }

    /// Has the VMM attack; gives the file in which it will tell what became of it.
    fn ask(&self, attacks: &[String]) -> Result<String> {
        let host = &self.site.host;
        let round = self.rounds.get() + 1;
        self.rounds.set(round);
        let (ask, answer) = (
            self.file(&format!("ask-{round}")),
            self.file(&format!("answer-{round}")),
        );
        fs::write(host.path().join("var/tmp/ask"), attacks.join("\n") + "\n")?;
        host.sh(&format!(
            "cp /var/tmp/ask {ask}.new && chmod 644 {ask}.new && mv {ask}.new {ask}"
        ))?;
        Ok(answer)
    }

    /// What became of each attack.
    fn attack(&self, attacks: &[String]) -> Result<Vec<String>> {
        let host = &self.site.host;
        let answer = self.ask(attacks)?;
        let text = eventually("the attacks are over", 2 * BOOT, || {
            let output = host.try_sh(&format!("cat {answer}"))?;
            Ok(output
                .status
                .success()
                .then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
        })?;
        let answers: Vec<String> = text.lines().map(str::to_owned).collect();
        ensure!(answers.len() == attacks.len(), "{attacks:?}\n{text}");
        Ok(answers)
    }

    /// Every attack must end in one of the ways that `refused` tells apart.
    fn expect(&self, attacks: &[String], refused: &[&str]) -> Result<()> {
        let mut wrong = String::new();
        for (attack, answer) in attacks.iter().zip(self.attack(attacks)?) {
            eprintln!("{attack}: {answer}");
            if !refused.iter().any(|one| answer.contains(one)) {
                writeln!(wrong, "{attack}: {answer}")?;
            }
        }
        ensure!(wrong.is_empty(), "not refused as {refused:?}:\n{wrong}");
        Ok(())
    }
}

fn lines(text: &str) -> Vec<String> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect()
}

/// One host for all: an attack changes nothing, or the test has failed.
#[test]
fn a_vmm_that_was_taken_over_finds_nothing_but_its_own_vm() -> Result<()> {
    let field = Field::new()?;
    let attacks = [
        files,
        devices,
        processes,
        sockets,
        system_calls,
        bus,
        after_a_reload,
        resources,
    ];
    let mut wrong = String::new();
    for attack in attacks {
        if let Err(error) = attack(&field) {
            writeln!(wrong, "{error:?}")?;
        }
    }
    ensure!(wrong.is_empty(), "{wrong}");
    // The neighbour noticed nothing.
    let pid = field
        .site
        .host
        .sh("systemctl show -P MainPID volant-vm@web")?;
    ensure!(pid.trim() == field.web.to_string(), "web is another: {pid}");
    let address = field.site.address("web")?;
    field
        .site
        .expect_page(&format!("http://{address}/"), "web")?;
    field
        .site
        .host
        .sh("volar vms stop evil && volar vms stop web")?;
    Ok(())
}

fn files(field: &Field) -> Result<()> {
    let host = &field.site.host;
    host.sh("cp /usr/bin/cat /usr/local/bin/cat-as-root && chmod 4755 /usr/local/bin/cat-as-root && mkdir -p /home/someone")?;
    let blob = host.sh("find /var/lib/volant/registry/blobs -type f | head -1")?;
    let blob = blob.trim();
    // Of the journal, all but what its own user wrote.
    let journals = host.sh(
        "find /run/log/journal /var/log/journal -name system.journal -o -name user-1879100001.journal 2>/dev/null || true",
    )?;
    ensure!(
        !blob.is_empty() && journals.lines().count() == 2,
        "nothing to look for: {blob} {journals}"
    );
    let journals: String = journals
        .lines()
        .map(|journal| format!("read {journal}\n"))
        .collect();
    let attacks = lines(&format!(
        "read /etc/shadow
         read {blob}
         read /var/lib/volant/registry/registry.db
         list /var/lib/volant/registry
         list /var/lib/volant/registry/credentials
         list /var/lib/volant/ipam
         list /run/credentials/{UNIT}
         list /run/volant/vm
         list /run/volant/vm/web
         list /run/volant/vm/evil
         list /root
         list /home
         list /home/someone
         list /run/user
         write /etc/volant/volant.toml
         write /proc/sys/kernel/core_pattern
         create /etc/volant/trust.d/evil
         create /etc/systemd/system/evil.service
         create /usr/bin/evil
         create /usr/local/bin/evil
         create /var/lib/evil
         create /var/lib/volant/evil
         create /run/evil
         create /run/volant/evil
         create /run/volant/vm/evil/evil
         create /dev/evil
         create /dev/shm/evil
         create /dev/mqueue/evil
         create /sys/fs/cgroup/evil
         chmod /usr/bin/qemu-real
         {journals}"
    ));
    field.expect(&attacks, &["EACCES", "EROFS", "EPERM"])?;
    // What it was given to read it cannot open to write; and no program makes it another user.
    let attacks = lines("reopen\n run /usr/local/bin/cat-as-root /etc/shadow");
    field.expect(&attacks, &["none of 2 files", "exit 1"])?;
    field.expect(&lines("create /tmp/own\n read /dev/null"), &["ok"])
}

fn devices(field: &Field) -> Result<()> {
    let nodes = [
        ("fuse", 10, 229),
        ("loop-control", 10, 237),
        ("vhost-net", 10, 238),
        ("vsock", 10, 121),
        ("input-evil", 13, 64),
        ("mem-evil", 1, 1),
        ("disk-evil", 8, 0),
        ("rtc-evil", 250, 0),
    ];
    let mut attacks = lines("read /dev/net/tun\n write /dev/net/tun");
    for (name, major, minor) in nodes {
        let kind = if name == "disk-evil" { 'b' } else { 'c' };
        let make = format!("rm -f /dev/{name}; mknod -m 666 /dev/{name} {kind} {major} {minor}");
        field.site.host.sh(&make)?;
        attacks.push(format!("write /dev/{name}"));
    }
    field.expect(&attacks, &["EPERM", "EACCES"])
}

fn processes(field: &Field) -> Result<()> {
    let (web, evil) = (field.web, field.evil);
    let vmm = field.site.host.sh("pgrep --uid 1879100001 qemu-system")?;
    let vmm = vmm.trim();
    field.expect(
        &lines(&format!(
            "list /proc/1
             list /proc/{web}
             list /proc/{vmm}
             memory-of 1
             memory-of {web}
             memory-of {vmm}
             memory-of {evil}
             descriptors-of {evil}"
        )),
        &["ENOENT", "EACCES"],
    )?;
    let kill = libc::SYS_kill;
    field.expect(
        &lines(&format!(
            "call {kill} {web} 9\n call {kill} {vmm} 9\n call {kill} 1 9"
        )),
        &["EPERM"],
    )?;
    let mut attacks = Vec::new();
    for pid in [web, evil] {
        attacks.extend([
            format!("call {} 16 {pid} 0 0", libc::SYS_ptrace),
            format!("call {} {pid} 0 0 0 0 0", libc::SYS_process_vm_readv),
            format!("call {} {pid} 0 0 0 0 0", libc::SYS_process_vm_writev),
        ]);
    }
    attacks.push(format!("call {} 3 1 0", libc::SYS_pidfd_getfd));
    field.expect(&attacks, SECCOMP)
}

/// A process that executes a new program would be open to others of its user again.
fn after_a_reload(field: &Field) -> Result<()> {
    field.site.host.sh(&format!("systemctl reload {UNIT}"))?;
    eventually("the next supervisor serves", BOOT, || {
        Ok((field.site.vm("evil")?["generation"] == 2).then_some(()))
    })?;
    processes(field)?;
    // What the kernel closes from the first instruction on is a program that its user cannot read.
    field.expect(&lines("read /usr/lib/volant/vmd"), &["EACCES"])
}

fn sockets(field: &Field) -> Result<()> {
    field.expect(
        &lines(
            "connect /run/volant/vm/web/vmd.sock
             connect /run/volant/vm/evil/vmd.sock
             connect /run/volant/vm/evil/control.sock
             connect /run/volant/registryd.sock
             connect /run/volant/ipamd.sock
             connect /run/volant/api.sock
             connect /run/systemd/private",
        ),
        &["EACCES"],
    )?;
    let families = [
        libc::AF_INET,
        libc::AF_INET6,
        libc::AF_NETLINK,
        libc::AF_PACKET,
        libc::AF_ALG,
        libc::AF_VSOCK,
    ];
    let attacks: Vec<String> = families
        .iter()
        .map(|family| format!("call {} {family} 3 0", libc::SYS_socket))
        .collect();
    field.expect(&attacks, &["EAFNOSUPPORT"])?;
    // A service of the host that trusts whoever comes.
    field.site.host.sh(
        "systemd-run --quiet --unit=abstract systemd-socket-activate --listen=@volant-abstract /bin/cat",
    )?;
    eventually("somebody listens", BOOT, || {
        let found = field
            .site
            .host
            .try_sh("grep -q @volant-abstract /proc/net/unix")?;
        Ok(found.status.success().then_some(()))
    })?;
    field.expect(
        &lines("connect-abstract volant-abstract"),
        &["ECONNREFUSED"],
    )
}

fn system_calls(field: &Field) -> Result<()> {
    let none = [
        (libc::SYS_mount, "none /tmp tmpfs 0 0"),
        (libc::SYS_umount2, "/tmp 0"),
        (libc::SYS_pivot_root, "/tmp /tmp"),
        (libc::SYS_chroot, "/tmp"),
        (libc::SYS_move_mount, "0 a 0 b 0"),
        (libc::SYS_fsopen, "ext4 0"),
        (libc::SYS_open_tree, "0 /tmp 0"),
        (libc::SYS_open_by_handle_at, "-100 0 0"),
        (libc::SYS_bpf, "0 0 0"),
        (libc::SYS_perf_event_open, "0 0 -1 -1 0"),
        (libc::SYS_keyctl, "0 -3 0"),
        (libc::SYS_add_key, "user a b 1 -3"),
        (libc::SYS_request_key, "user a 0 0"),
        (libc::SYS_finit_module, "-1 a 0"),
        (libc::SYS_init_module, "0 0 0"),
        (libc::SYS_delete_module, "a 0"),
        (libc::SYS_reboot, "4276215469 672274793 19088743"),
        (libc::SYS_kexec_load, "0 0 0 0"),
        (libc::SYS_swapon, "/tmp 0"),
        (libc::SYS_clock_settime, "0 0"),
        (libc::SYS_settimeofday, "0 0"),
        (libc::SYS_adjtimex, "0"),
        (libc::SYS_clock_adjtime, "0 0"),
        (libc::SYS_iopl, "3"),
        (libc::SYS_ioperm, "0 1 1"),
        (libc::SYS_syslog, "3 0 0"),
        (libc::SYS_acct, "/tmp/own"),
        (libc::SYS_vhangup, ""),
    ];
    let attacks: Vec<String> = none
        .iter()
        .map(|(number, arguments)| format!("call {number} {arguments}"))
        .collect();
    field.expect(&attacks, SECCOMP)?;
    let refused = [
        (libc::SYS_unshare, libc::CLONE_NEWUSER.to_string()),
        (libc::SYS_unshare, libc::CLONE_NEWNET.to_string()),
        (libc::SYS_unshare, libc::CLONE_NEWNS.to_string()),
        (libc::SYS_clone, format!("{} 0 0 0 0", libc::CLONE_NEWUSER)),
        (libc::SYS_setns, "0 0".to_owned()),
        (libc::SYS_io_uring_setup, "8 0".to_owned()),
        (libc::SYS_userfaultfd, "1".to_owned()),
        (libc::SYS_setuid, "0".to_owned()),
        (libc::SYS_setgid, "0".to_owned()),
        (libc::SYS_setgroups, "0 0".to_owned()),
        (libc::SYS_chmod, format!("/tmp/own {}", 0o4755)),
        (
            libc::SYS_mknod,
            format!("/tmp/disk {} {}", 0o60_666, 8 << 8),
        ),
        (libc::SYS_personality, "262144".to_owned()),
        (libc::SYS_ioprio_set, format!("1 0 {}", 1 << 13)),
    ];
    let attacks: Vec<String> = refused
        .iter()
        .map(|(number, arguments)| format!("call {number} {arguments}"))
        .collect();
    field.expect(&attacks, &["EPERM"])
}

/// Bus, manager and policy refuse it.
fn bus(field: &Field) -> Result<()> {
    // dbus-daemon lets nobody in who has no name; dbus-broker does. What it may then is to be seen.
    field.site.host.sh(
        "echo 'vm-evil:x:1879100002:1879100002::/:/usr/sbin/nologin' >> /etc/passwd && \
         echo 'vm-evil:x:1879100002:' >> /etc/group && systemctl reload dbus",
    )?;
    field.expect(&lines("run /usr/bin/busctl --timeout=10 list"), &["ok"])?;
    let manager =
        "org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager";
    let registry = "com.volantvm.Registry1 /com/volantvm/Registry1 com.volantvm.Registry1.Manager";
    let ipam = "com.volantvm.Ipam1 /com/volantvm/Ipam1 com.volantvm.Ipam1.Manager";
    let vm = "/com/volantvm/Vm1 com.volantvm.Vm1 Pause";
    let calls = [
        format!("{registry} OpenVm"),
        format!("{ipam} Attach"),
        format!("{ipam} ListLeases"),
        format!("com.volantvm.vm.web {vm}"),
        format!("com.volantvm.vm.evil {vm}"),
        "org.freedesktop.DBus /org/freedesktop/DBus org.freedesktop.DBus RequestName su com.volantvm.vm.other 4".to_owned(),
        format!("{manager} StopUnit ss volant-vm@web.service replace"),
        format!("{manager} RestartUnit ss {UNIT} replace"),
        format!("{manager} ReloadUnit ss {UNIT} replace"),
        format!("{manager} KillUnit ssi volant-vm@web.service all 9"),
        format!("{manager} SetUnitProperties sba(sv) {UNIT} true 1 TasksMax t 100000"),
        format!("{manager} StartTransientUnit ssa(sv)a(sa(sv)) evil.service replace 0 0"),
        format!("{manager} SetEnvironment as 1 LD_PRELOAD=/tmp/evil.so"),
        "org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager PowerOff b false".to_owned(),
        "org.freedesktop.hostname1 /org/freedesktop/hostname1 org.freedesktop.hostname1 SetHostname sb evil false".to_owned(),
    ];
    let attacks: Vec<String> = calls
        .iter()
        .map(|call| format!("run /usr/bin/busctl --timeout=10 call {call}"))
        .collect();
    field.expect(
        &attacks,
        &["Access denied", "Interactive authentication required"],
    )
}

/// Limits hold, and it is this VM that pays.
fn resources(field: &Field) -> Result<()> {
    field.expect(&lines("forks 2000"), &["EAGAIN"])?;
    let large = lines("create /var/tmp/large");
    field.expect(&large, &["ok"])?;
    field.expect(
        &lines("run /usr/bin/dd if=/dev/zero of=/var/tmp/large bs=1M count=64"),
        &["No space left"],
    )?;
    // The older control groups kill the process, and with the newer ones systemd ends the whole unit.
    let answer = field.ask(&lines("memory 4096"))?;
    eventually("the host has taken the memory back", BOOT, || {
        let output = field.site.host.try_sh(&format!(
            "test $(systemctl show -P MainPID {UNIT}) != {} || grep -q '^killed 9' {answer}",
            field.evil
        ))?;
        Ok(output.status.success().then_some(()))
    })
}
