//! What daemon and helper say to each other: one JSON message a packet, with descriptors attached, over a SEQPACKET socket. What may be
//! larger than a packet (specs with secrets) travels in a memory file.
use std::io::{self, IoSlice, IoSliceMut, Read as _, Seek as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use snapshot::MountSpec;

use crate::Sample;
use crate::container::{DeviceNode, Resources, Rlimit};

/// Everything the helper needs to make a container and its first process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub id: String,
    /// Empty directories to mount on, in the helper's own namespace only.
    pub stage_root: PathBuf,
    pub stage_tree: PathBuf,
    pub root: MountSpec,
    pub root_readonly: bool,
    pub mounts: Vec<SpecMount>,
    pub hostname: String,
    pub network: SpecNetwork,
    pub insecure: bool,
    pub hosts: PathBuf,
    pub resolv: PathBuf,
    pub cgroup: String,
    pub resources: Resources,
    pub devices: Vec<DeviceNode>,
    pub recursive_stubs: bool,
    /// Show the daemon's own `/proc`.
    pub host_proc: bool,
    pub emulator: Option<crate::Emulator>,
    pub labels: Labels,
    pub process: SpecProcess,
    /// Run this OCI runtime instead of making the container ourselves.
    pub oci: Option<Oci>,
}

/// What the kernel's security modules are told of a container; `None` for what they are not to confine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Labels {
    /// AppArmor's profile.
    pub apparmor: Option<String>,
    /// SELinux's label of processes.
    pub process: Option<String>,
    /// SELinux's label of what is mounted.
    pub mount: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SpecNetwork {
    Host,
    /// One that was made; its descriptor follows the memory file.
    Given,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SpecMount {
    pub dest: String,
    pub source: Source,
    pub readonly: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Source {
    Tree {
        spec: MountSpec,
        selector: String,
    },
    Bind {
        path: PathBuf,
    },
    Tmpfs {
        size: Option<u64>,
    },
    /// Data lies in the memory file, after the spec.
    Secret {
        offset: usize,
        len: usize,
        uid: u32,
        gid: u32,
        mode: u32,
    },
    Socket {
        path: PathBuf,
        uid: u32,
        gid: u32,
        mode: u32,
    },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SpecProcess {
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub cwd: String,
    pub user: String,
    pub groups: Vec<u32>,
    pub tty: bool,
    pub rlimits: Vec<Rlimit>,
    pub insecure: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Oci {
    pub binary: PathBuf,
    /// The runtime's own record of containers.
    pub state: PathBuf,
    /// A directory for this container.
    pub bundle: PathBuf,
}

/// From the daemon. Numbers name processes of one container; its first is 0.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// To the zygote, with the monitor's end of a new socket.
    Monitor,
    /// To the zygote: remove the cgroup of a container whose monitor has died.
    Sweep {
        cgroup: String,
    },
    /// With the memory file of a [`Spec`], its network if that is given, and, unless it has a terminal, stdin, stdout and stderr.
    Start,
    /// With the memory file of a [`SpecProcess`] and its streams, as above.
    Exec {
        number: u32,
    },
    Signal {
        number: u32,
        signal: i32,
    },
    Kill,
}

/// To the daemon.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// With a handle of the process whose end ends all others, so that the daemon can kill it when nobody else is left to.
    Leader,
    /// Ready to execute the program.
    Started {
        number: u32,
        stubs: Vec<PathBuf>,
    },
    /// With the other end of the process's terminal.
    Terminal {
        number: u32,
    },
    /// The process does not exist, or will end without having run its program.
    Failed {
        number: u32,
        failure: Failure,
    },
    Exited {
        number: u32,
        code: i32,
        oom_killed: bool,
        usage: Vec<Sample>,
    },
    /// Something worth a warning in the daemon's log.
    Warning {
        message: String,
    },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub message: String,
    pub errno: Option<i32>,
    /// The container stands, but the program cannot be executed in it.
    pub program: bool,
}

/// Larger than any message: programs' names and stub paths are the only unbounded parts.
const PACKET: usize = 256 * 1024;
const DESCRIPTORS: usize = 4;

pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    for end in [&a, &b] {
        rustix::net::sockopt::set_socket_send_buffer_size_force(end, PACKET * 2)
            .or_else(|_| rustix::net::sockopt::set_socket_send_buffer_size(end, PACKET * 2))?;
    }
    Ok((a, b))
}

pub(crate) fn send(socket: impl AsFd, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let data = serde_json::to_vec(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    rustix::io::retry_on_intr(|| rustix::net::sendmsg(&socket, &[IoSlice::new(&data)], &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// `None` when the other side is gone.
pub(crate) fn receive<T: DeserializeOwned>(socket: impl AsFd, buffer: &mut Vec<u8>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    // Ask for the size first: room for the largest message would cost more page faults than everything else here.
    let peek = RecvFlags::PEEK | RecvFlags::TRUNC;
    match rustix::io::retry_on_intr(|| rustix::net::recv(&socket, &mut [0u8; 0][..], peek)) {
        Ok((_, size)) => buffer.resize(size, 0),
        Err(rustix::io::Errno::CONNRESET) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(&mut buffer[..])], &mut control, RecvFlags::CMSG_CLOEXEC)
    });
    let received = match received {
        Ok(received) => received,
        Err(rustix::io::Errno::CONNRESET) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    if received.bytes == 0 {
        return Ok(None);
    }
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    Ok(Some((serde_json::from_slice(&buffer[..received.bytes])?, fds)))
}

/// A descriptor that comes with whatever bytes, as OCI runtimes send terminals.
pub(crate) fn receive_fd(socket: impl AsFd) -> io::Result<Option<OwnedFd>> {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::io::retry_on_intr(|| rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC))?;
    let first = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(first)
}

/// A memory file: length of the JSON, the JSON, then `blobs`.
pub(crate) fn write_memory<'a>(message: &impl Serialize, blobs: impl IntoIterator<Item = &'a [u8]>) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("kiln-sandbox", rustix::fs::MemfdFlags::CLOEXEC)?;
    let json = serde_json::to_vec(message)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(&(json.len() as u64).to_ne_bytes())?;
    file.write_all(&json)?;
    for blob in blobs {
        file.write_all(blob)?;
    }
    Ok(file.into())
}

/// The message of [`write_memory`] and its blobs in one piece.
pub(crate) fn read_memory<T: DeserializeOwned>(fd: OwnedFd) -> io::Result<(T, Vec<u8>)> {
    let mut file = std::fs::File::from(fd);
    file.rewind()?;
    let mut all = Vec::new();
    file.read_to_end(&mut all)?;
    let (length, rest) = all.split_first_chunk().ok_or(io::ErrorKind::UnexpectedEof)?;
    let length = u64::from_ne_bytes(*length) as usize;
    let (json, blobs) = rest.split_at_checked(length).ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok((serde_json::from_slice(json)?, blobs.to_vec()))
}
