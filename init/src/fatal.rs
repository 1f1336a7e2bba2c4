//! Every error that stops the boot.

use core::fmt;

/// Defines [`Fatal`]: for each kind a variant and its conversion; its text is that of the error in it.
macro_rules! fatal {
    ($($(#[$doc:meta])* $kind:ident($error:ty),)*) => {
        /// Why the enclave does not boot.
        #[derive(Debug)]
        pub enum Fatal<'a> {
            $($(#[$doc])* $kind($error),)*
        }

        $(impl<'a> From<$error> for Fatal<'a> {
            fn from(error: $error) -> Self {
                Self::$kind(error)
            }
        })*

        impl fmt::Display for Fatal<'_> {
            fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
                match self {
                    $(Self::$kind(error) => error.fmt(f),)*
                }
            }
        }
    };
}

fatal! {
    /// The standard streams cannot be opened.
    Console(crate::console::Error),
    /// A file system cannot be mounted.
    Mount(crate::mounts::Error),
    /// A resource limit cannot be set.
    Limit(crate::limits::Error),
    /// A kernel module of the image cannot be loaded.
    Module(crate::modules::Error),
    /// The kernel's random numbers cannot be seeded from the security module.
    Entropy(crate::entropy::Error),
    /// The kernel's command line names no target that can be used.
    CommandLine(crate::command_line::Error),
    /// The environment file cannot be used.
    Environment(crate::environment::Error),
    /// The target cannot be started.
    Target(crate::target::Error<'a>),
}
