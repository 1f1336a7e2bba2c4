//! Safe functions for the system calls for which rustix has none. No other module has unsafe code.

use core::ffi::{CStr, c_char, c_int, c_short, c_uint, c_ushort};
use core::mem::{MaybeUninit, size_of};
use core::ptr;
use core::sync::atomic::{AtomicI32, Ordering};
use core::time::Duration;

use rustix::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::ioctl;
use rustix::net::AddressFamily;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::process::{Pid, Signal};

use crate::environment::VARIABLES;

/// The standard error stream, which is the console.
pub(crate) fn stderr() -> BorrowedFd<'static> {
    // SAFETY: nothing closes descriptor 2. Where the kernel has opened no console, it is not open before /dev/console
    // is put there, and what is written before fails.
    unsafe { BorrowedFd::borrow_raw(libc::STDERR_FILENO) }
}

/// The pipe's end that [`keep_for_target`] keeps; none yet.
static FOR_TARGET: AtomicI32 = AtomicI32::new(-1);

/// Keeps the writing end of the pipe that is the target's standard input, as long as this process runs.
pub(crate) fn keep_for_target(pipe: OwnedFd) {
    FOR_TARGET.store(pipe.into_raw_fd(), Ordering::Relaxed);
}

/// The writing end of the pipe that is the target's standard input, if there is one.
pub(crate) fn for_target() -> Option<BorrowedFd<'static>> {
    let fd = FOR_TARGET.load(Ordering::Relaxed);
    // SAFETY: it came from an OwnedFd that nothing closes.
    (fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
}

/// `struct sockaddr_vm` of linux/vm_sockets.h.
#[repr(C)]
pub(crate) struct VsockAddress {
    family: c_ushort,
    reserved: c_ushort,
    port: c_uint,
    cid: c_uint,
    zero: [u8; 4],
}

impl VsockAddress {
    pub(crate) fn new(cid: u32, port: u32) -> Self {
        Self { family: AddressFamily::VSOCK.as_raw(), reserved: 0, port, cid, zero: [0; 4] }
    }
}

// SAFETY: the pointer is to a `struct sockaddr_vm` of that very length, which lives as long as the call.
unsafe impl SocketAddrArg for VsockAddress {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        let length = SocketAddrLen::try_from(size_of::<Self>()).expect("16 bytes");
        f(ptr::from_ref(self).cast(), length)
    }
}

/// Mixes a seed of `N` bytes into the kernel's random numbers and credits all of its bits (RNDADDENTROPY of random(4)).
pub(crate) fn credit_entropy<const N: usize>(pool: impl AsFd, seed: [u8; N]) -> Result<(), Errno> {
    /// `struct rand_pool_info` of linux/random.h, with its data.
    #[repr(C)]
    struct PoolInfo<const N: usize> {
        entropy_bits: c_int,
        data_bytes: c_int,
        data: [u8; N],
    }
    // In the header the command's size is that of the two numbers only.
    const RNDADDENTROPY: ioctl::Opcode = ioctl::opcode::write::<[c_int; 2]>(b'R', 3);
    let data_bytes = c_int::try_from(N).expect("a seed has few bytes");
    let info = PoolInfo { entropy_bits: 8 * data_bytes, data_bytes, data: seed };
    // SAFETY: the command reads a `struct rand_pool_info` and as many bytes behind it as that says, which PoolInfo
    // has, and writes nothing.
    unsafe { ioctl::ioctl(pool, ioctl::Setter::<RNDADDENTROPY, PoolInfo<N>>::new(info)) }
}

/// Signals that no longer interrupt or end this process, but wait until [`HeldSignals::wait`] takes them.
pub struct HeldSignals(libc::sigset_t);

impl HeldSignals {
    /// Blocks these signals. Several of one kind that wait together count as one.
    pub fn hold(signals: &[Signal]) -> Self {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset initializes the set, and the other calls are given that set; sigprocmask may be given
        // no place for the old mask. They fail on a bad signal or a bad `how` only, and there is neither.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in signals {
                libc::sigaddset(set.as_mut_ptr(), signal.as_raw());
            }
            libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut());
            Self(set.assume_init())
        }
    }

    /// Waits for one of the signals and returns its number; 0 if none comes before the timeout, if there is one.
    pub fn wait(&self, timeout: Option<Duration>) -> i32 {
        let timeout =
            timeout.map(|t| libc::timespec { tv_sec: t.as_secs().cast_signed(), tv_nsec: t.subsec_nanos().into() });
        let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
        // SAFETY: the set is initialized; siginfo and timeout may be null, and a timeout that is not lives on above.
        let signal = unsafe { libc::sigtimedwait(&self.0, ptr::null_mut(), timeout) };
        signal.max(0)
    }
}

/// Runs a function in a process of its own, which then ends; here, if no process can be made.
pub(crate) fn in_child(run: impl FnOnce()) {
    // SAFETY: PID 1 has one thread, so the child has everything that this process has, and no lock that nobody opens.
    let child = unsafe { libc::fork() };
    if child <= 0 {
        run();
    }
    if child == 0 {
        exit(0);
    }
}

/// Ends this process without any clean-up, of which none is needed.
pub fn exit(status: c_int) -> ! {
    // SAFETY: _exit(2) takes any number and does not return.
    unsafe { libc::_exit(status) }
}

/// Starts a program in a session of its own, with every signal unblocked and in its default disposition, with its path
/// as its only argument and these variables as its whole environment. The standard streams are this process's.
///
/// # Errors
/// That of execve(2) in the child, or of making the child.
pub(crate) fn spawn(path: &CStr, environment: &[&CStr]) -> Result<Pid, Errno> {
    let arguments = [path.as_ptr().cast_mut(), ptr::null_mut()];
    let mut variables = [ptr::null_mut::<c_char>(); VARIABLES + 2];
    // One pointer is left out, so that the last one stays null.
    for (to, from) in variables[..VARIABLES + 1].iter_mut().zip(environment) {
        *to = from.as_ptr().cast_mut();
    }
    let signals = c_short::try_from(libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF);
    let flags = libc::POSIX_SPAWN_SETSID | signals.expect("the field has this type");
    let mut pid = 0;
    // SAFETY: every pointer is to something that lives until the end of the call; sets and attributes are initialized
    // before they are read, and those calls cannot fail on memory; both arrays end with a null pointer and hold
    // strings that end with a zero byte, which posix_spawn does not change.
    let error = unsafe {
        let (mut none, mut all) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigfillset(all.as_mut_ptr());
        let mut attributes = MaybeUninit::uninit();
        libc::posix_spawnattr_init(attributes.as_mut_ptr());
        libc::posix_spawnattr_setsigmask(attributes.as_mut_ptr(), none.as_ptr());
        libc::posix_spawnattr_setsigdefault(attributes.as_mut_ptr(), all.as_ptr());
        libc::posix_spawnattr_setflags(attributes.as_mut_ptr(), flags);
        let (path, arguments, variables) = (path.as_ptr(), arguments.as_ptr(), variables.as_ptr());
        let error = libc::posix_spawn(&mut pid, path, ptr::null(), attributes.as_ptr(), arguments, variables);
        libc::posix_spawnattr_destroy(attributes.as_mut_ptr());
        error
    };
    match Pid::from_raw(pid) {
        Some(pid) if error == 0 => Ok(pid),
        _ => Err(Errno::from_raw_os_error(error)),
    }
}
