//! docs/openapi.yaml against the routes and the answers of a running daemon, and against the table of errors.

#[path = "../support/mod.rs"]
mod support;

mod fuzz;

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;

use serde_json::json;
use support::*;
use yaml_rust2::{Yaml, YamlLoader};

const METHODS: [&str; 5] = ["get", "post", "put", "delete", "options"];

fn description() -> Yaml {
    let text = fs::read_to_string(repository().join("docs/openapi.yaml")).unwrap();
    YamlLoader::load_from_str(&text).unwrap().remove(0)
}

/// The paths on this listener, and the methods that each has.
fn paths(of: &Yaml, admin: bool) -> Vec<(String, BTreeSet<String>)> {
    let all = of["paths"].as_hash().unwrap().iter();
    let here = all.filter(|(_, item)| item["servers"].is_badvalue() != admin);
    let named = here.map(|(path, item)| {
        let methods = item.as_hash().unwrap().keys().filter_map(Yaml::as_str).filter(|key| METHODS.contains(key));
        (path.as_str().unwrap().to_owned(), methods.map(str::to_owned).collect())
    });
    named.collect()
}

fn code(to: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let method = method.to_uppercase();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: 2\r\n\r\n");
    let answer = request(to, &head, b"{}");
    let code = serde_json::from_slice(&answer.body).unwrap_or(json!({}))["code"].as_str().map(str::to_owned);
    (answer.status, code.unwrap_or_default())
}

#[test]
fn every_route_that_is_described_exists_with_just_these_methods() {
    let (of, daemon) = (description(), Setup::new(1).start());
    let mut described = 0;
    for (to, admin) in [(daemon.public, false), (daemon.admin, true)] {
        for (path, methods) in paths(&of, admin) {
            // A drain would have the daemon refuse what comes after it; it waits for a second.
            let path = path.replace("{file_id}", "f") + if path == "/admin/drain" { "?seconds=1" } else { "" };
            for method in METHODS {
                let (status, code) = code(to, method, &path);
                assert_ne!((status, code.as_str()), (404, "not_found"), "{method} {path}");
                let known = methods.contains(method);
                assert_eq!(status == 405, !known, "{method} {path}: {status} {code}");
                described += usize::from(known);
            }
            if path.starts_with("/admin/drain") {
                assert_eq!(code(to, "delete", "/admin/drain").0, 200);
            }
        }
    }
    assert_eq!(described, 29, "operations");
}

#[test]
fn every_operation_lists_its_statuses_and_what_any_request_may_get() {
    let of = description();
    let items = of["paths"].as_hash().unwrap().values();
    let operations = items.flat_map(|item| METHODS.map(|method| item[method]["responses"].clone()));
    for responses in operations.filter(|responses| !responses.is_badvalue()) {
        // Schemathesis takes any status for described where there is a default.
        for status in ["400", "408", "413", "417", "431", "500", "503"] {
            assert!(!responses[status].is_badvalue() && responses["default"].is_badvalue(), "{status}: {responses:?}");
        }
    }
}

/// Each path in the code's table of routes, as its patterns spell it.
fn routes(file: &str) -> BTreeSet<String> {
    let code = fs::read_to_string(repository().join(file)).unwrap();
    let patterns = code.lines().filter_map(|line| {
        let (pattern, _) = line.trim_start().strip_prefix('[')?.split_once(']')?;
        line.contains("=>").then(|| pattern.to_owned())
    });
    let path = |pattern: String| {
        let parts = pattern.split(", ").map(|part| match part.strip_prefix('"') {
            Some(text) => text.trim_end_matches('"').to_owned(),
            None => format!("{{{part}}}"),
        });
        format!("/{}", parts.collect::<Vec<_>>().join("/"))
    };
    patterns.map(path).collect()
}

#[test]
fn every_route_of_the_code_is_described() {
    let of = description();
    let described = |admin| paths(&of, admin).into_iter().map(|(path, _)| path).collect::<BTreeSet<_>>();
    let mut public = routes("src/api/public.rs");
    assert!(public.remove("/metrics"), "with TEEMARK_PUBLIC_METRICS it is public too");
    assert_eq!(public, described(false));
    assert_eq!(routes("src/api/admin.rs"), described(true));
}

#[test]
fn the_codes_of_errors_are_those_of_the_table() {
    let table = fs::read_to_string(repository().join("src/api/error.rs")).unwrap();
    let rows = table.split("(4").chain(table.split("(5")).filter_map(|rest| {
        let (status, rest) = rest.split_once(", \"")?;
        let code = rest.split('"').next()?;
        // A function gives the rows of invalid_request, from status and message.
        (status.len() == 2 && !code.contains(' ')).then(|| code.to_owned())
    });
    let rows: BTreeSet<String> = rows.collect();
    let of = description();
    let described = of["components"]["schemas"]["Code"]["enum"].as_vec().unwrap();
    let described: BTreeSet<String> = described.iter().map(|code| code.as_str().unwrap().to_owned()).collect();
    assert_eq!(rows.difference(&described).collect::<Vec<_>>(), Vec::<&String>::new(), "not described");
    let counted = BTreeSet::from(teemarkd::metrics::CODES.map(str::to_owned));
    assert_eq!(counted, described, "those that /metrics counts");
    let reference = fs::read_to_string(repository().join("docs/REFERENCE.md")).unwrap();
    for code in &described {
        assert!(reference.contains(code.as_str()), "{code} is not in docs/REFERENCE.md");
    }
}
