//! The allow list lists what was written, in order, and nothing else.

use std::collections::BTreeSet;

use formats::allow_list::{AllowList, AllowListError};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::config;

fn parse(text: &str) -> Result<AllowList, AllowListError> {
    AllowList::parse("list", text.as_bytes())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn no_text_makes_the_allow_list_panic_and_an_error_names_file_and_line(
        text in prop_oneof![any::<String>(), "(endpoints:|- |[a-c.:0-9 #\"'-]|\n){0,40}"],
    ) {
        if let Err(e) = parse(&text) {
            let message = e.to_string();
            let place = message.split(": ").next().unwrap();
            // file:line, or the file alone where no line is to blame
            if let Some((_, line)) = place.rsplit_once(':') {
                let line: usize = line.parse().unwrap();
                prop_assert!((1..=text.lines().count()).contains(&line), "{}", message);
            } else {
                prop_assert!(message.ends_with("has no `endpoints:`"), "{}", message);
            }
        }
    }

    #[test]
    fn a_list_gives_its_hosts_in_order_however_it_is_written_and_no_others(
        hosts in vec(("[a-zA-Z0-9]([a-zA-Z0-9-]{0,8}[a-z0-9])?(\\.[a-z]{1,6}){0,3}", prop::option::of(1_u16..)), 0..30),
        styles in vec((select(&["", "\"", "'"][..]), select(&["", " # why", "\t# - x:1"][..]), select(&["", "\n", "  \n# b\n"][..])), 30),
        other in ("[a-z]{1,8}\\.[a-z]{1,8}", 1_u16..),
    ) {
        let mut known = BTreeSet::new();
        let mut text = "---\nendpoints:\n".to_owned();
        let mut expected = Vec::new();
        for ((host, port), (quote, comment, blank)) in hosts.iter().zip(&styles) {
            let place = (host.to_ascii_lowercase(), port.unwrap_or(443));
            if !known.insert(place.clone()) {
                continue;
            }
            let port = port.map_or(String::new(), |port| format!(":{port}"));
            text += &format!("  - {quote}{host}{port}{quote}{comment}\n{blank}");
            expected.push(place);
        }
        let list = parse(&text).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let found: Vec<_> = list.iter().map(|e| (e.host().to_owned(), e.port())).collect();
        prop_assert_eq!(&found, &expected);
        for (i, (host, port)) in expected.iter().enumerate() {
            let endpoint = list.find(&host.to_ascii_uppercase(), *port).unwrap();
            prop_assert_eq!((endpoint.index(), endpoint.loopback().octets()), (i, [127, 0, 0, 64 + u8::try_from(i).unwrap()]));
        }
        prop_assert_eq!(list.find(&other.0, other.1).is_some(), known.contains(&other));
        // The same list with an entry twice is refused.
        if let Some((host, port)) = expected.first() {
            let error = parse(&format!("{text}- {host}:{port}")).unwrap_err().to_string();
            let last = text.lines().count() + 1;
            prop_assert!(error.contains(&format!(":{last}: ")) && error.contains("twice"), "{}", error);
        }
    }
}
