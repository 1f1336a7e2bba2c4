//! What nitro-cli's errors mean with this image, by the last lines that nitro-cli and the enclave wrote.

/// nitro-cli's errors, the most telling first, and what they mean here. host/deploy/README.md has the same.
const ERRORS: [(&str, &str); 7] = [
    (
        "E19",
        "a device or a file of the driver cannot be opened: /dev/nitro_enclaves means that the instance was launched \
         without enclaves, ne_cpus that the allocator has not run (systemctl status nitro-enclaves-allocator)",
    ),
    (
        "E22",
        "more CPUs than the allocator has reserved: lower ENCLAVE_CPUS, or raise cpu_count in \
         /etc/nitro_enclaves/allocator.yaml",
    ),
    (
        "E27",
        "more memory than the allocator has reserved: lower ENCLAVE_MEMORY, or raise memory_mib in \
         /etc/nitro_enclaves/allocator.yaml",
    ),
    ("E26", "less memory than four times the image, or than 64 MiB: raise ENCLAVE_MEMORY"),
    ("E29", "right after another enclave has ended; the service tries again by itself"),
    (
        "E36",
        "no heartbeat within 180 s: the kernel did not boot (nitro-cli describe-eif: CheckCRC; the architecture; the \
         signing certificate), or /init failed before teemarkd; deploy/first-boot.sh reads its console",
    ),
    ("E39", "comes with every failed start, and says nothing more: look at the error before it"),
];

/// What a program of this project says before it ends.
const ENDS: [&str; 3] = ["[INIT] FATAL:", "cannot go on:", "ended with status"];

/// Explains why an enclave does not run: the last error of nitro-cli, and what the enclave itself said last, if these lines
/// have either.
pub(super) fn explain(lines: &[String]) -> Option<String> {
    // One failed start may leave several codes, of which E39 is always one; what came before the last start is of no
    // interest.
    let start = lines.iter().rposition(|line| line.contains("Start allocating memory")).unwrap_or(0);
    let last = &lines[start..];
    let has = |code: &str| last.iter().any(|line| line.contains(&format!("[ {code} ]")));
    let code = ERRORS.iter().find(|(code, _)| has(code)).map(|(code, means)| format!("nitro-cli's {code}: {means}"));
    let said = last.iter().rfind(|line| ENDS.iter().any(|end| line.contains(end)));
    let said = said.map(|line| format!("the enclave's last words: {}", line.trim()));
    match (code, said) {
        (Some(code), Some(said)) => Some(format!("{said}; {code}")),
        (code, said) => said.or(code),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(text: &str) -> String {
        explain(&text.lines().map(str::to_owned).collect::<Vec<_>>()).unwrap_or_default()
    }

    #[test]
    fn the_error_that_says_most_is_explained_and_e39_only_if_it_is_alone() {
        let boot = "[ E36 ] Enclave boot failure. Such error appears when attempting to receive the `ready` signal\n";
        let e39 = "[ E39 ] Enclave process connection failure.\n";
        assert!(explained(&format!("{boot}{e39}")).starts_with("nitro-cli's E36: no heartbeat within 180 s"));
        assert!(explained(e39).starts_with("nitro-cli's E39: comes with every failed start"));
        assert!(explained(&format!("[ E29 ] Ioctl failure.\n{e39}")).contains("right after another enclave has ended"));
        assert!(explained("[ E19 ] File operation failure.").contains("/dev/nitro_enclaves"));
        assert_eq!(explained("all is well, without E36"), "");
    }

    #[test]
    fn what_the_enclave_said_itself_comes_first_and_an_earlier_start_is_over() {
        let fatal = "[INIT] FATAL: environment: line 2 of /etc/teemark.env: not NAME=value\n";
        let told = explained(&format!("{fatal}[ E36 ] Enclave boot failure.\n"));
        assert!(told.starts_with("the enclave's last words: [INIT] FATAL: environment: line 2"), "{told}");
        assert!(told.contains("nitro-cli's E36"), "{told}");
        let told = explained(&format!("{fatal}[ E36 ]\nStart allocating memory...\n[ E27 ] Insufficient memory\n"));
        assert!(told.starts_with("nitro-cli's E27") && !told.contains("FATAL"), "{told}");
        let ended = "teemarkd cannot go on: allow list: /allowed_endpoints.yaml:2: expected `- host:port`";
        assert_eq!(explained(ended), format!("the enclave's last words: {ended}"));
    }

    #[test]
    fn every_error_stands_in_the_page_on_the_parent_too() {
        let page = std::fs::read_to_string("../deploy/README.md").unwrap();
        let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| E")).collect();
        for (code, _) in ERRORS {
            let named = |row: &&str| row.split('|').nth(1).is_some_and(|codes| codes.contains(code));
            assert!(rows.iter().any(named), "{code}");
        }
    }
}
