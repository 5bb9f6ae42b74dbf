//! How it went with memory that the system was to move, whether there is a system or not.

/// What became of memory that was to be moved. If it was not, the contents are where they were.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Remapped {
    /// It was moved.
    Moved,
    /// It was not, and the new place is as it was.
    Refused,
    /// It was not, and the new place was unmapped for it, but is mapped again.
    MappedAnew,
    /// It was not, and nobody can tell whether the new place is as it was, or was unmapped for it and is by now another
    /// thread's.
    Lost,
}
