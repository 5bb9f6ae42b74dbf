//! Files, without std and without memory of their own.
//!
//! The C library's functions are those in which threads are cancelled; a thread that is to be cancelled is to go on here. So
//! the system is called without them.

use super::interrupted;
use core::ffi::CStr;
use core::mem::ManuallyDrop;

/// What tells a file from others as long as it is there: its device, and its number there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity(u64, u64);

/// Opens a file, which no program that is executed has open; less than 0 if that is refused.
fn open(path: &CStr, flags: libc::c_int, mode: libc::c_uint) -> libc::c_int {
    let flags = flags | libc::O_CLOEXEC;
    // SAFETY: the path ends with a zero byte.
    unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, mode) as libc::c_int }
}

/// Reads into the beginning of `room`; less than 0 if that is refused.
fn read_at(descriptor: libc::c_int, room: &mut [u8], offset: u64) -> isize {
    let (start, len) = (room.as_mut_ptr(), room.len());
    // How an offset of 64 bits is passed in words of 32 differs from processor to processor.
    // SAFETY: the room is writable for its length.
    #[cfg(target_pointer_width = "64")]
    return unsafe { libc::syscall(libc::SYS_pread64, descriptor, start, len, offset) as isize };
    // SAFETY: as above.
    #[cfg(target_pointer_width = "32")]
    return unsafe { libc::pread(descriptor, start.cast(), len, offset as libc::off_t) };
}

/// An open file, closed when dropped.
#[derive(Debug)]
pub(crate) struct File(libc::c_int);

impl File {
    /// Opens a file for reading.
    pub(crate) fn open(path: &CStr) -> Option<File> {
        File::of(open(path, libc::O_RDONLY, 0))
    }

    /// Makes a file that only its owner can read; `None` if there is one already.
    pub(crate) fn create(path: &CStr) -> Option<File> {
        File::of(open(path, libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL, 0o600))
    }

    /// Another descriptor for standard error, which stays open when a program closes its own, as some do at their end.
    pub(crate) fn of_standard_error() -> Option<File> {
        /// Out of the way: programs expect to get the lowest ones.
        const LOWEST: libc::c_int = 100;
        // SAFETY: a new descriptor affects no other.
        File::of(unsafe { libc::fcntl(libc::STDERR_FILENO, libc::F_DUPFD_CLOEXEC, LOWEST) })
    }

    /// Leaves the file open, and says by which descriptor.
    pub(crate) fn into_descriptor(self) -> libc::c_int {
        ManuallyDrop::new(self).0
    }

    /// The file of a descriptor, which stays open.
    pub(crate) fn lent(descriptor: libc::c_int) -> ManuallyDrop<File> {
        ManuallyDrop::new(File(descriptor))
    }

    /// Which file it is. Who closes all descriptors may have opened another since.
    pub(crate) fn identity(&self) -> Option<Identity> {
        // SAFETY: zeros are a valid value of the struct, which is written.
        let (failed, status) = unsafe {
            let mut status: libc::stat = core::mem::zeroed();
            (libc::fstat(self.0, &mut status), status)
        };
        (failed == 0).then_some(Identity(status.st_dev, status.st_ino))
    }

    fn of(descriptor: libc::c_int) -> Option<File> {
        (descriptor >= 0).then_some(File(descriptor))
    }

    /// Reads what is at `offset`; fewer bytes than there is room for at the end of the file, or when it fails.
    pub(crate) fn read_at(&self, offset: u64, room: &mut [u8]) -> usize {
        let mut filled = 0;
        while filled < room.len() {
            let rest = &mut room[filled..];
            let read = read_at(self.0, rest, offset + filled as u64);
            match usize::try_from(read) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(_) if interrupted() => {}
                Err(_) => break,
            }
        }
        filled
    }

    /// Writes all of `bytes`; false if the system refuses some.
    pub(crate) fn write(&self, bytes: &[u8]) -> bool {
        super::write_all(self.0, bytes)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: the descriptor is the file's own.
        unsafe { libc::syscall(libc::SYS_close, self.0) };
    }
}
