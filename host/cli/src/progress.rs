//! Progress bars for files large enough to make an operator wonder.

use indicatif::{ProgressBar, ProgressStyle};

/// Below this many bytes a command is done before a bar could be read.
const WORTH_A_BAR: u64 = 4 << 20;

/// A bar on stderr over `length` bytes. It stays hidden where stderr is no terminal, for a small file, and where the
/// length is unknown.
pub fn bar(length: Option<u64>, step: &'static str) -> ProgressBar {
    match length {
        Some(length) if length > WORTH_A_BAR => {
            let style = ProgressStyle::with_template("{msg:10} {bar:40} {bytes}/{total_bytes} {eta}");
            let bar = ProgressBar::new(length).with_message(step);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        }
        _ => ProgressBar::hidden(),
    }
}
