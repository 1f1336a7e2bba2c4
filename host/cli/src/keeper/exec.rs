//! Runs a command for its standard output, within bounds of time and length. The output is a secret: nothing of it is told.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::config::ExecSource;
use crate::command;

/// Runs the command and returns its standard output. It has no standard input, and its standard error is thrown away.
///
/// # Errors
/// It cannot be started, takes too long, prints too much, or ends with another status than 0.
pub(crate) fn output(source: &ExecSource) -> Result<Vec<u8>> {
    let (program, arguments) = source.exec.split_first().context("no program is named")?;
    let given = source.environment.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(given).stderr(Stdio::null());
    let (bytes, status) = command::run(&mut command, program, Duration::from_secs(source.timeout))?;
    if !status.success() {
        bail!("{program} {}", told(status));
    }
    Ok(bytes)
}

fn told(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, signal) => format!("was ended by signal {}", signal.unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::command::PAUSE;

    fn shell(script: &str, timeout: u64, environment: &[&str]) -> ExecSource {
        ExecSource {
            exec: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            environment: environment.iter().map(|name| (*name).to_owned()).collect(),
            timeout,
            every: 1,
        }
    }

    fn error(source: &ExecSource) -> String {
        format!("{:#}", output(source).unwrap_err())
    }

    #[test]
    fn a_command_has_the_variables_that_are_named_and_no_others() {
        assert_eq!(output(&shell("printf secret", 30, &[])).unwrap(), b"secret");
        let printed = |names: &[&str]| output(&shell("/usr/bin/env", 30, names)).unwrap();
        let path = format!("PATH={}", std::env::var("PATH").unwrap());
        let has = |printed: Vec<u8>| String::from_utf8(printed).unwrap().lines().any(|line| line == path);
        assert!(!has(printed(&[])) && has(printed(&["PATH", "TEEMARK_NOT_SET"])));
    }

    #[test]
    fn one_that_fails_is_told_without_a_word_of_its_output() {
        let told = error(&shell("echo secret; echo secret >&2; exit 7", 30, &[]));
        assert!(told.ends_with("ended with status 7") && !told.contains("secret"), "{told}");
        assert!(error(&shell("kill -9 $$", 30, &[])).contains("signal 9"));
        let missing = ExecSource { exec: vec!["/not/there".into()], ..shell("", 1, &[]) };
        assert!(error(&missing).contains("cannot run /not/there"));
    }

    #[test]
    fn one_that_hangs_is_ended_with_all_that_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let script = format!("sleep 1000 & echo $! >{}; wait", pid.display());
        let started = |limit| {
            assert!(error(&shell(&script, limit, &[])).contains(&format!("longer than {limit} s")));
            std::fs::read_to_string(&pid).ok()?.trim().parse().ok()
        };
        // On a busy machine a second may not be enough for the shell to start anything.
        let child: i32 = [1, 2, 4, 8, 16, 32].into_iter().find_map(started).unwrap();
        // Soon it is gone, or a zombie that waits for its new parent.
        let state = || std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        while !state().is_empty() && !state().contains(") Z ") {
            thread::sleep(PAUSE);
        }
        // The output has ended, and the command has not.
        assert!(error(&shell("exec >&-; sleep 1000", 1, &[])).contains("longer than 1 s"));
    }

    #[test]
    fn one_that_prints_too_much_is_ended() {
        assert!(error(&shell("exec cat /dev/zero", 600, &[])).contains("more than 16 MiB"));
    }
}
