//! Documents in Markdown.

/// The fenced blocks of code, each without the indentation of its fence, and the text between them.
pub(crate) fn code_and_prose(text: &str) -> (Vec<String>, String) {
    let (mut blocks, mut prose, mut fence) = (Vec::new(), String::new(), None);
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        match (line.trim_start().starts_with("```"), fence) {
            (true, None) => {
                fence = Some(indent);
                blocks.push(line[indent..].to_owned() + "\n");
            }
            (true, Some(_)) => fence = None,
            (false, Some(indent)) => {
                let block = blocks.last_mut().unwrap();
                block.push_str(line.get(indent..).unwrap_or_default());
                block.push('\n');
            }
            (false, None) => prose.push_str(&format!("{line}\n")),
        }
    }
    (blocks, prose)
}
