//! The paths of files and folders in the enclave.

/// PID 1, which the kernel starts from the first ramdisk.
pub const INIT: &str = "/init";
/// The kernel module that init loads if it is there (init/src/modules.rs).
pub const MODULE: &str = "/nsm.ko";
/// The daemon, which is the target unless the command line names another.
pub const DAEMON: &str = "/teemarkd";
/// The allow list, where the daemon looks for it unless TEEMARK_ENDPOINTS is set.
pub const ENDPOINTS: &str = "/allowed_endpoints.yaml";
/// The environment file, which init reads (init/src/environment.rs).
pub const ENVIRONMENT: &str = "/etc/teemark.env";
/// The folder of the client certificate, where the daemon looks for it unless TEEMARK_CERTS is set.
pub const CERTS: &str = "/opt/enclave/certs";
/// The launcher of a debug image: run.sh.
pub const LAUNCHER: &str = "/run.sh";
/// The shell of a debug image.
pub const SHELL: &str = "/bin/busybox";
