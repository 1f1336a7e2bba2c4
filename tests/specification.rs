//! SPECIFICATION.md names tests; they have to be there.

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
    let specification = fs::read_to_string(root.join("SPECIFICATION.md")).unwrap();
    let mut text = String::new();
    sources(&root.join("src"), &mut text);
    sources(&root.join("tests"), &mut text);
    let names = specification.split('`').skip(1).step_by(2);
    let names = names
        .filter(|n| n.contains('_') && n.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'));
    let (mut seen, mut missing) = (0, Vec::new());
    for name in names {
        seen += 1;
        if !["", "    "].iter().any(|indent| text.contains(&format!("#[test]\n{indent}fn {name}("))) {
            missing.push(name);
        }
    }
    assert!(seen > 40, "only {seen} names were found");
    assert!(missing.is_empty(), "SPECIFICATION.md names tests that do not exist: {missing:#?}");
}
