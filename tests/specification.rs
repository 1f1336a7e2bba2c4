//! SPECIFICATION.md and docs/THREAT-MODEL.md name tests, which must exist.

use std::fs;
use std::path::Path;

fn sources(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|e| e == "rs") {
            text.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_test_that_the_specification_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = |name| fs::read_to_string(root.join(name)).unwrap();
    let specification = page("SPECIFICATION.md") + &page("docs/THREAT-MODEL.md");
    let mut text = String::new();
    for folder in [
        "src",
        "event-loop/src",
        "event-loop/tests",
        "formats/src",
        "formats/tests",
        "tests",
        "init/src",
        "image/src",
        "image/tests",
        "host/cli/src",
        "host/cli/tests",
        "host/vm/tests",
    ] {
        sources(&root.join(folder), &mut text);
    }
    let names = specification.split('`').skip(1).step_by(2);
    let names = names
        .filter(|n| n.contains('_') && n.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'));
    let (mut seen, mut missing) = (0, Vec::new());
    for name in names {
        seen += 1;
        // A test of the harness, or a scenario of host/vm/tests, which lists its own; rustfmt breaks a long line of those.
        // In a macro, such as proptest!, it is indented twice.
        let test = ["", "    ", "        "].iter().any(|indent| text.contains(&format!("#[test]\n{indent}fn {name}(")));
        let scenario = ["", "\n    "].iter().any(|indent| text.contains(&format!("fn {name}({indent}stage: &Stage")));
        if !test && !scenario {
            missing.push(name);
        }
    }
    assert!(seen > 40, "only {seen} names were found");
    assert!(missing.is_empty(), "the pages name tests that do not exist: {missing:#?}");
}
