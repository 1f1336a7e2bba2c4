//! The documents, compared with each other and with what they describe.

#[path = "support/markdown.rs"]
mod markdown;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use markdown::code_and_prose;
use ring::digest::{SHA256, digest};
use teemarkd::metrics::{Live, METRICS};

/// A document: its path in the repository, and its text.
struct Page {
    path: PathBuf,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(root().join(&path)).unwrap_or_else(|e| panic!("{}: {e}", path.as_ref().display()))
}

/// Every Markdown file of the repository, by `git ls-files`' rules: no build output, no hidden folders.
fn pages() -> Vec<Page> {
    fn walk(folder: &Path, found: &mut Vec<Page>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy();
            if path.is_dir() && !["target", "out", "base"].contains(&&*name) && !name.starts_with('.') {
                walk(&path, found);
            } else if name.ends_with(".md") {
                found.push(Page { text: read(&path), path });
            }
        }
    }
    let mut found = Vec::new();
    walk(root(), &mut found);
    assert!(found.len() > 15, "only {} documents were found", found.len());
    found
}

/// The texts between single backquotes in prose.
fn code_spans(prose: &str) -> impl Iterator<Item = &str> {
    prose.split('`').skip(1).step_by(2)
}

/// The words in capitals that begin with TEEMARK_.
fn settings_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_uppercase() && c != '_');
    words.filter(|word| word.len() > "TEEMARK_".len() && word.starts_with("TEEMARK_")).collect()
}

/// The code that reads the daemon's settings.
fn settings_source() -> String {
    let sources = ["src/settings.rs", "src/settings/logs.rs"].map(read);
    sources.iter().map(|source| source.split("#[cfg(test)]").next().unwrap()).collect()
}

/// The name by which GitHub links to a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

#[test]
fn the_readmes_have_at_most_150_lines() {
    for name in ["README.md", "README.zh.md"] {
        let lines = read(name).lines().count();
        assert!(lines <= 150, "{name} has {lines} lines");
    }
}

#[test]
fn what_an_operator_and_a_user_need_is_there_in_chinese_with_the_same_code() {
    let mut blocks = 0;
    for page in ["README", "docs/OPERATOR", "docs/USER", "docs/TROUBLE", "host/deploy/README", "certs/README"] {
        let [english, chinese] = ["md", "zh.md"].map(|end| code_and_prose(&read(format!("{page}.{end}"))).0);
        for (n, pair) in english.iter().zip(&chinese).enumerate() {
            assert_eq!(pair.0, pair.1, "block {} of {page}.md and {page}.zh.md", n + 1);
        }
        assert_eq!(english.len(), chinese.len(), "blocks of {page}.md and {page}.zh.md");
        blocks += english.len();
    }
    assert!(blocks > 20, "only {blocks} blocks were found");
}

#[test]
fn every_link_leads_to_a_file_and_a_heading_that_are_there() {
    let mut links = 0;
    for Page { path, text } in pages() {
        let (_, prose) = code_and_prose(&text);
        for link in prose.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if link.starts_with("http") {
                continue;
            }
            links += 1;
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: {link}", path.display());
            if !heading.is_empty() {
                let (_, prose) = code_and_prose(&read(&target));
                let headings = prose.lines().filter(|line| line.starts_with('#')).map(|l| l.trim_start_matches('#'));
                let there = headings.map(anchor).any(|there| there == heading);
                assert!(there, "{}: {link} has no such heading", path.display());
            }
        }
    }
    assert!(links > 60, "only {links} links were found");
}

#[test]
fn every_setting_metric_and_error_code_is_in_the_reference() {
    let reference = read("docs/REFERENCE.md");
    let row = |first: &str| reference.lines().find(|line| line.starts_with(&format!("| {first} |")));

    let source = settings_source();
    let settings = settings_in(&source);
    assert!(settings.len() > 15, "{settings:?}");
    for setting in settings {
        assert!(row(setting).is_some(), "{setting} is missing");
    }

    METRICS.certificate_ends.set(1);
    let metrics = METRICS.print(&Live::default());
    let metrics: Vec<_> = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    assert!(metrics.len() > 10, "{metrics:?}");
    for (name, kind) in metrics {
        let labelled = format!("| {name}{{");
        let row = row(name).or_else(|| reference.lines().find(|line| line.starts_with(&labelled)));
        assert!(row.is_some_and(|row| row.contains(kind)), "{name}, a {kind}, is missing");
    }

    let source = read("src/api/error.rs").split_whitespace().collect::<Vec<_>>().join(" ");
    let mut codes = 0;
    for rest in source.split('(').skip(1) {
        let Some((status, rest)) = rest.split_once(", \"") else { continue };
        let (status, code) = (status.trim_start(), rest.split('"').next().unwrap());
        let is_row = status.len() == 3 && status.bytes().all(|b| b.is_ascii_digit());
        if is_row && code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
            codes += 1;
            assert!(row(status).is_some_and(|row| row.contains(code)), "{status} {code} is missing");
        }
    }
    assert!(codes > 15, "only {codes} codes were found");
}

#[test]
fn what_the_documents_name_is_there() {
    let source = settings_source();
    let settings = settings_in(&source);
    let makefile = read("Makefile");
    let targets: BTreeSet<_> = makefile
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(target, _)| target)
        .filter(|target| !target.is_empty() && target.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'))
        .collect();
    let (mut named, mut made) = (0, 0);
    for Page { path, text } in pages() {
        for setting in settings_in(&text) {
            named += 1;
            assert!(settings.contains(setting), "{}: {setting} is not a setting", path.display());
        }
        let (blocks, prose) = code_and_prose(&text);
        for line in blocks.iter().flat_map(|block| block.lines()).chain(code_spans(&prose)) {
            let Some(target) = line.strip_prefix("make ").and_then(|rest| rest.split_whitespace().next()) else {
                continue;
            };
            made += 1;
            assert!(targets.contains(target), "{}: the Makefile has no {target}", path.display());
        }
    }
    assert!(named > 40 && made > 10, "only {named} settings and {made} targets were found");
}

/// Long lines of hex are examples, and short ones are told in words.
#[test]
fn the_examples_of_the_formats_are_those_of_the_vectors() {
    let vectors: String =
        fs::read_dir(root().join("formats/vectors")).unwrap().map(|f| read(f.unwrap().path())).collect();
    let formats = read("docs/FORMATS.md");
    let is_hex = |line: &str| line.len() > 64 && line.bytes().all(|b| b.is_ascii_hexdigit());
    let examples: Vec<_> = formats.lines().map(str::trim).filter(|line| is_hex(line)).collect();
    assert!(examples.len() >= 3, "{examples:?}");
    for example in examples {
        assert!(vectors.contains(&format!("\"{example}\"")), "{example} is in no vector");
    }
}

#[test]
fn every_picture_was_rendered_from_its_source() {
    let folder = root().join("docs/pictures");
    let mut pictures = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let source = entry.unwrap().path();
        if source.extension().is_some_and(|end| end == "dot") {
            pictures += 1;
            let hash = hex::encode(digest(&SHA256, &fs::read(&source).unwrap()));
            let picture = read(source.with_extension("svg"));
            assert!(picture.contains(&hash), "{}: run docs/pictures/render.sh", source.display());
        }
    }
    assert!(pictures > 2, "only {pictures} pictures were found");
}

/// The figures of tests/costs/recorded.txt that are costs of `of`.
fn recorded(of: &str) -> BTreeMap<String, f64> {
    let text = read("tests/costs/recorded.txt");
    let rows = text.lines().filter_map(|line| line.strip_prefix(of)?.strip_prefix(' ')?.split_once(' '));
    rows.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
}

#[test]
fn the_bytes_of_the_daemons_crates_are_those_that_were_recorded() {
    // By their names in Cargo.lock, but for hyphens.
    let mut bytes = BTreeMap::<String, f64>::new();
    for (name, value) in recorded("crates") {
        let name = match name.as_str() {
            "ring-(C-and-assembly)" => "ring",
            "webpki" => "rustls_webpki",
            "libc-and-other-C" => "musl",
            name => name,
        };
        *bytes.entry(name.to_owned()).or_default() += value;
    }
    assert!(bytes.len() > 20, "{bytes:?}");

    let page = read("docs/DEPENDENCIES.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let mut figures = 0;
    for row in rows {
        let (names, said) = (row.split(" | ").next().unwrap(), row.rsplit(" | ").next().unwrap());
        let names = names.replace('-', "_");
        let crates = || names.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|name| !name.is_empty());
        if said.starts_with("under 1,000") {
            let larger: Vec<_> = crates().filter(|name| bytes.contains_key(*name)).collect();
            assert!(larger.is_empty(), "{larger:?} have 1,000 bytes or more");
        } else if let Ok(said) = said.replace(',', "").parse::<f64>() {
            figures += 1;
            let sum: f64 = crates().filter_map(|name| bytes.remove(name)).sum();
            assert!((said - sum).abs() <= sum / 10.0, "docs/DEPENDENCIES.md: {names} have {sum} bytes, not {said}");
        }
    }
    assert!(figures > 10, "only {figures} figures were found");
    assert!(bytes.is_empty(), "docs/DEPENDENCIES.md does not name {bytes:?}");
}

#[test]
fn the_images_size_on_the_page_about_fleets_is_the_recorded_one() {
    let page = read("docs/SCALING.md");
    let said = page.lines().find_map(|line| line.strip_prefix("| EIF | ")?.split_once(" MB |")).unwrap().0;
    let (said, recorded) = (said.parse::<f64>().unwrap(), recorded("image")["eif"] / 1e6);
    assert!((said - recorded).abs() < 0.1, "docs/SCALING.md: the EIF has {recorded} MB, not {said}");
}
