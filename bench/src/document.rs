//! docs/PERFORMANCE.md: each table stands between two marks, and is put there anew; the rest is written by hand.

use anyhow::{Context, Result};

/// The document with the tables of these names in their places.
///
/// # Errors
/// A place that the document does not have.
pub(crate) fn fill(document: &str, tables: &[(&str, String)]) -> Result<String> {
    let mut filled = document.to_owned();
    for (name, table) in tables {
        let (begin, end) = (format!("<!-- bench: {name} -->\n"), "<!-- end -->");
        let start = filled.find(&begin).with_context(|| format!("the document has no {begin:?}"))? + begin.len();
        let length = filled[start..].find(end).with_context(|| format!("{name} has no {end:?}"))?;
        filled.replace_range(start..start + length, &format!("\n{table}\n"));
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::fill;

    #[test]
    fn a_table_takes_the_place_of_the_one_before() {
        let document = "a\n<!-- bench: x -->\nold\n<!-- end -->\nb\n";
        let filled = fill(document, &[("x", "new\n".into())]).unwrap();
        assert_eq!(filled, "a\n<!-- bench: x -->\n\nnew\n\n<!-- end -->\nb\n");
        assert_eq!(fill(&filled, &[("x", "new\n".into())]).unwrap(), filled);
        assert!(fill(document, &[("y", String::new())]).is_err());
    }
}
