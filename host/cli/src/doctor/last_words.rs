//! What nitro-cli's errors mean with this image, by the last lines that nitro-cli and the enclave wrote.

use formats::time::Utc;

use super::facts::Said;

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
         signing certificate), or /init failed before teemarkd. Neither says why outside debug mode: \
         deploy/first-boot.sh starts a debug image and reads its console",
    ),
    ("E39", "comes with every failed start, and says nothing more: look at the error before it"),
];

/// What a program of this project says before it ends.
const ENDS: [&str; 3] = ["[INIT] FATAL:", "cannot go on:", "ended with status"];

/// Whether a start begins with this line: systemd's for the service, or nitro-cli's.
fn is_start(said: &Said) -> bool {
    said.text.starts_with("Starting teemark") || said.text.contains("Start allocating memory")
}

/// Explains why an enclave does not run: the last error of nitro-cli, and what the enclave itself said last, if there is
/// either in one of these places since the last start. Of several, the newest counts.
pub(super) fn explain(places: &[Vec<Said>]) -> Option<String> {
    let started = places.iter().flatten().filter(|said| is_start(said)).map(|said| said.at).max();
    let since_start = |place: &'_ Vec<Said>| {
        let own = place.iter().rposition(is_start).unwrap_or(0);
        place[own..].iter().filter(|said| Some(said.at) >= started).cloned().collect::<Vec<_>>()
    };
    let last: Vec<Vec<Said>> = places.iter().map(since_start).collect();
    let mut code = last.iter().filter_map(|place| code(place)).max_by_key(|(at, _)| *at);
    let ends = |said: &&Said| ENDS.iter().any(|end| said.text.contains(end));
    let mut words = last.iter().filter_map(|place| place.iter().rfind(ends)).max_by_key(|said| said.at);
    if let (None, Some((at, _)), Some(said)) = (started, &code, words) {
        // It is not known whether both are about one start.
        if *at < said.at {
            code = None;
        } else if *at > said.at {
            words = None;
        }
    }
    let words = words.map(|said| format!("the enclave's last words: {}", said.text.trim()));
    match (words, code) {
        (Some(words), Some((_, code))) => Some(format!("{words}; {code}")),
        (words, code) => words.or(code.map(|(_, code)| code)),
    }
}

/// The error in these lines that says most, and when it came: one failed start may leave several, of which E39 is always
/// one.
fn code(lines: &[Said]) -> Option<(Utc, String)> {
    ERRORS.iter().find_map(|(code, means)| {
        let said = lines.iter().rfind(|said| said.text.contains(&format!("[ {code} ]")))?;
        Some((said.at, format!("nitro-cli's {code}: {means}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(at: u64, text: &str) -> Vec<Said> {
        text.lines().map(|line| Said { at: Utc(at), text: line.into() }).collect()
    }

    fn explained(text: &str) -> String {
        explain(&[said(7, text)]).unwrap_or_default()
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
    fn of_several_places_the_newest_counts_and_each_is_cut_at_the_last_start() {
        let place = |lines: &[(u64, &str)]| lines.iter().flat_map(|(at, text)| said(*at, text)).collect::<Vec<_>>();
        let old = place(&[(10, "[ E29 ] Ioctl failure.")]);
        let fresh = place(&[(20, "Starting teemark-enclave.service - teemark enclave..."), (200, "[ E36 ] x")]);
        let told = |places: &[&Vec<Said>]| explain(&places.iter().map(|place| (*place).clone()).collect::<Vec<_>>());
        for places in [[&old, &fresh], [&fresh, &old]] {
            assert!(told(&places).unwrap().starts_with("nitro-cli's E36"), "{places:?}");
        }
        // What a collector has of an earlier boot is about that one; what it has of this one comes first.
        let words = |at| place(&[(at, "7 00 log 2026-11-30T02:00:00Z ERROR teemarkd: teemarkd cannot go on: x")]);
        assert!(told(&[&fresh, &words(10)]).unwrap().starts_with("nitro-cli's E36"));
        let both = told(&[&fresh, &words(21)]).unwrap();
        assert!(both.starts_with("the enclave's last words: 7 00 log") && both.contains("; nitro-cli's E36"), "{both}");
        // Without a start nobody knows, and the newer one is told alone.
        assert!(told(&[&old, &words(9)]).unwrap().starts_with("nitro-cli's E29"));
        assert!(!told(&[&old, &words(11)]).unwrap().contains("E29"));
        // A start that has not failed yet.
        let again = place(&[(200, "[ E36 ] x"), (210, "Starting teemark-enclave.service - teemark enclave...")]);
        assert_eq!(told(&[&again, &old, &words(21)]), None);
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
