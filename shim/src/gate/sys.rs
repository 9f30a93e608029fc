//! The gate's unsafe code: interface requests and the wait for running BPF programs.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_char, c_int, c_short, c_ulong, ifreq};

/// Makes the descriptor of `/dev/net/tun` a tap, without packet information headers. `%d` in
/// `pattern` becomes a free number. Returns the device's name.
pub(super) fn make_tap(tun: BorrowedFd<'_>, pattern: &str) -> io::Result<String> {
    let mut request = request(pattern)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as c_short;
    interface_ioctl(tun, libc::TUNSETIFF, &mut request)?;
    let name: Vec<u8> = request
        .ifr_name
        .iter()
        // Signed on x86_64, unsigned on arm64.
        .flat_map(|byte| byte.to_ne_bytes())
        .take_while(|byte| *byte != 0)
        .collect();
    String::from_utf8(name).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Sets MTU (bytes) and queue length (frames) of an interface. `socket` is any socket in its network
/// namespace. Returns its index.
pub(super) fn set_up(socket: BorrowedFd<'_>, name: &str, mtu: i32, queue: i32) -> io::Result<u32> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_mtu = mtu;
    interface_ioctl(socket, libc::SIOCSIFMTU, &mut request)?;
    request.ifr_ifru.ifru_ifindex = queue;
    interface_ioctl(socket, libc::SIOCSIFTXQLEN, &mut request)?;
    interface_ioctl(socket, libc::SIOCGIFINDEX, &mut request)?;
    // SAFETY: SIOCGIFINDEX has set this field, and every bit pattern is a valid integer.
    let ifindex = unsafe { request.ifr_ifru.ifru_ifindex };
    Ok(ifindex.cast_unsigned())
}

/// Brings an interface up, without address resolution. `socket` is any socket in its network namespace.
pub(super) fn bring_up(socket: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_NOARP) as c_short;
    interface_ioctl(socket, libc::SIOCSIFFLAGS, &mut request)
}

/// Whether an interface is up. `socket` is any socket in its network namespace. Of the requests here the only one that
/// does not wait for the kernel's network lock.
pub(super) fn is_up(socket: BorrowedFd<'_>, name: &str) -> io::Result<bool> {
    let mut request = request(name)?;
    interface_ioctl(socket, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: SIOCGIFFLAGS has set this field, and every bit pattern is a valid integer.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(c_int::from(flags) & libc::IFF_UP != 0)
}

fn request(name: &str) -> io::Result<ifreq> {
    // SAFETY: integers, pointers and arrays of them, for all of which zero is valid.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as c_char;
    }
    Ok(request)
}

fn interface_ioctl(fd: BorrowedFd<'_>, code: c_ulong, request: &mut ifreq) -> io::Result<()> {
    // SAFETY: each request used here (TUNSETIFF, SIOC[GS]IF*) reads and writes one `ifreq`, which
    // `request` is for the time of the call; the descriptor is open for as long.
    let result: c_int = unsafe {
        libc::ioctl(
            fd.as_raw_fd(),
            code as libc::Ioctl,
            std::ptr::from_mut(request),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Returns when every BPF program that ran when it was called has ended.
///
/// Programs run in RCU read-side sections, and this command of membarrier(2) is a wait for all of
/// those. A kernel with `nohz_full` CPUs refuses it; then this does nothing, and a packet that
/// arrives within the same microsecond as the end of a hold may have to be sent again.
pub(super) fn wait_for_running_programs() {
    // SAFETY: the command takes no pointers.
    unsafe {
        libc::syscall(
            libc::SYS_membarrier,
            libc::MEMBARRIER_CMD_GLOBAL,
            0_u32,
            0_i32,
        )
    };
}
