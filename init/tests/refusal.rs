//! The program as everyone but the kernel meets it.

use std::process::Command;

#[test]
fn a_process_that_is_not_pid_1_says_so_and_does_nothing() {
    let output = Command::new(env!("CARGO_BIN_EXE_init")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = "[INIT] this program is PID 1 of an enclave and nothing else; here it does nothing\n";
    assert_eq!(String::from_utf8_lossy(&output.stderr), said);
    assert!(output.stdout.is_empty());
}
