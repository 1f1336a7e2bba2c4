//! What a machine is made of.

/// Seconds by which the clock of a machine with a module begins ahead of this machine's, unless a [`Shape`] says otherwise:
/// so far that the daemon has to set it.
const AHEAD: i64 = 200;

/// What a machine has. From a number alone: one processor and that much memory.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Memory in MiB.
    pub memory: u32,
    /// The number of processors.
    pub processors: u32,
    /// Seconds by which its clock begins ahead of this machine's, or behind it. Only the machine `nitro-enclave` has a
    /// module that knows better, so on the others it makes no difference.
    pub ahead: i64,
}

impl From<u32> for Shape {
    fn from(memory: u32) -> Shape {
        Shape { memory, processors: 1, ahead: AHEAD }
    }
}
