//! Taps: network interfaces whose other end is a descriptor.

use std::{
    fs::OpenOptions,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
};

use nix::libc;

nix::ioctl_write_ptr_bad!(
    tun_set_iff,
    nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
    libc::ifreq
);

/// The highest bit is in use, so the kernel's signed field is filled from an unsigned number.
const FLAGS: u16 =
    (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL) as u16;

/// Creates a tap of that name in the caller's network namespace: without packet information, with virtio's header.
/// The interface lives as long as the descriptor, which is non-blocking and closed on exec. Needs `CAP_NET_ADMIN`.
///
/// # Errors
/// `EBUSY`: there is an interface of that name, whatever its kind. Otherwise what /dev/net/tun says.
pub fn open_tap(name: &str) -> io::Result<OwnedFd> {
    // SAFETY: an ifreq is plain data, for which all zeros is a value.
    #[allow(unsafe_code, reason = "libc gives no other way to build an ifreq")]
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte stays zero: the end of the name.
    if name.is_empty() || name.len() >= request.ifr_name.len() || name.contains('\0') {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = FLAGS.cast_signed();
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    // SAFETY: the descriptor is open and `request` is an ifreq, as TUNSETIFF expects; the kernel keeps no pointer.
    #[allow(unsafe_code, reason = "TUNSETIFF is an ioctl")]
    unsafe { tun_set_iff(tun.as_raw_fd(), &raw const request) }?;
    Ok(tun.into())
}
