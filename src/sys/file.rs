//! Files, without std and without memory of their own.

use super::interrupted;
use core::ffi::CStr;
use core::mem::ManuallyDrop;

/// What tells a file from others as long as it is there: its device, and its number there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity(u64, u64);

/// An open file, closed when dropped.
#[derive(Debug)]
pub(crate) struct File(libc::c_int);

impl File {
    /// Opens a file for reading.
    pub(crate) fn open(path: &CStr) -> Option<File> {
        // SAFETY: the path ends with a zero byte.
        File::of(unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) })
    }

    /// Makes a file that only its owner can read; `None` if there is one already.
    pub(crate) fn create(path: &CStr) -> Option<File> {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC;
        // SAFETY: the path ends with a zero byte.
        File::of(unsafe { libc::open(path.as_ptr(), flags, 0o600 as libc::c_uint) })
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
            let at = (offset + filled as u64) as libc::off_t;
            // SAFETY: the rest of the room is writable for its length.
            let read = unsafe { libc::pread(self.0, rest.as_mut_ptr().cast(), rest.len(), at) };
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
        unsafe { libc::close(self.0) };
    }
}
