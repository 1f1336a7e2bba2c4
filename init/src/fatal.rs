//! Every error that stops the boot.

use core::fmt;

/// Defines [`Fatal`]: for each kind a variant, its conversion, and its words, which are the error's own.
macro_rules! fatal {
    ($($kind:ident($error:ty),)*) => {
        /// Why the enclave does not boot.
        #[derive(Debug)]
        pub enum Fatal<'a> {
            $($kind($error),)*
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
    Console(crate::console::Error),
    Mount(crate::mounts::Error),
    Limit(crate::limits::Error),
    Module(crate::modules::Error),
    Entropy(crate::entropy::Error),
    CommandLine(crate::command_line::Error),
    Environment(crate::environment::Error),
    Target(crate::target::Error<'a>),
}
