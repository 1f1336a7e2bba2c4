//! The target's environment: the measured file /etc/teemark.env, and a PATH.

use core::ffi::CStr;
use core::fmt;

use crate::files;
use crate::text::Text;

/// The file; it is part of the image and so of its measurement.
pub const FILE: &CStr = c"/etc/teemark.env";
/// Largest file, in bytes.
pub const FILE_BYTES: usize = 64 * 1024;
/// Most variables that the file may set.
pub const VARIABLES: usize = 256;
/// The PATH if the file sets none.
const PATH: &CStr = c"PATH=/bin:/sbin:/usr/bin:/usr/sbin";

/// Why the file is not used. No part of it is used either, since the missing part could hold a setting that matters.
#[derive(Debug)]
pub enum Error {
    /// The file exists, but cannot be read completely.
    File(files::Error),
    /// Something is wrong with this line, counted from 1.
    Line(usize, Fault),
}

/// What is wrong with a line.
#[derive(Debug, PartialEq, Eq)]
pub enum Fault {
    /// Neither `NAME=value`, nor blank, nor a comment.
    NotAVariable,
    /// The name has other characters than A-Z, a-z, 0-9 and _, or begins with a digit.
    Name,
    /// The value has a control character other than a tab, such as the carriage return of a Windows line.
    Value,
    /// The last line of a text has no line feed. [`Environment::load`] adds it, so only other callers get this.
    Unended,
    /// An earlier line sets the same variable.
    Repeated,
    /// There are more than [`VARIABLES`].
    TooMany,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::File(error) => write!(f, "environment: {error}"),
            Self::Line(line, fault) => write!(f, "environment: line {line} of {}: {fault}", Text(FILE)),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::NotAVariable => write!(f, "neither NAME=value, nor blank, nor a comment that begins with #"),
            Self::Name => write!(f, "a name has letters without accents, digits and _, and no digit first"),
            Self::Value => write!(f, "a control character in the value, perhaps the carriage return of a Windows line"),
            Self::Unended => write!(f, "the line does not end with a line feed"),
            Self::Repeated => write!(f, "an earlier line sets the same variable"),
            Self::TooMany => write!(f, "more than {VARIABLES} variables"),
        }
    }
}

/// `NAME=value` for execve(2), each name once.
///
/// It has the file's variables and PATH only, not HOME, TERM and the others that the kernel gives PID 1.
pub struct Environment<'a> {
    variables: [&'a CStr; VARIABLES + 1],
    length: usize,
}

impl<'a> Environment<'a> {
    /// Reads the file. If it is missing, says so and sets nothing.
    ///
    /// # Errors
    /// [`Error`].
    pub fn load(buffer: &'a mut [u8; FILE_BYTES + 1]) -> Result<Self, Error> {
        match files::read_text(FILE, buffer) {
            Ok(text) => Self::parse(text),
            Err(error) if error.is_missing() => {
                say!("no {}: every setting has its default", Text(FILE));
                Self::parse(&mut [])
            }
            Err(error) => Err(Error::File(error)),
        }
    }

    /// Reads the text of the file: lines that end with a line feed, the last one too. This changes the text: each line feed
    /// becomes a zero byte.
    ///
    /// # Errors
    /// The first line that is wrong. The error never has a value.
    pub fn parse(text: &'a mut [u8]) -> Result<Self, Error> {
        let mut environment = Self { variables: [c""; VARIABLES + 1], length: 0 };
        for (number, line) in (1..).zip(text.split_inclusive_mut(|byte| *byte == b'\n')) {
            if line.trim_ascii().is_empty() || line[0] == b'#' {
                continue;
            }
            let variable = check(line).map_err(|fault| Error::Line(number, fault))?;
            environment.add(variable).map_err(|fault| Error::Line(number, fault))?;
        }
        if !environment.sets(b"PATH") {
            environment.push(PATH);
        }
        Ok(environment)
    }

    /// Every variable, in the order of the file.
    pub fn variables(&self) -> &[&'a CStr] {
        &self.variables[..self.length]
    }

    fn add(&mut self, variable: &'a CStr) -> Result<(), Fault> {
        if self.sets(name(variable)) {
            return Err(Fault::Repeated);
        }
        if self.length == VARIABLES {
            return Err(Fault::TooMany);
        }
        self.push(variable);
        Ok(())
    }

    fn push(&mut self, variable: &'a CStr) {
        self.variables[self.length] = variable;
        self.length += 1;
    }

    fn sets(&self, wanted: &[u8]) -> bool {
        self.variables().iter().any(|variable| name(variable) == wanted)
    }
}

/// The part before the equals sign.
fn name(variable: &CStr) -> &[u8] {
    variable.to_bytes().split(|byte| *byte == b'=').next().unwrap_or_default()
}

/// Checks one line and puts a zero byte in place of its line feed.
fn check(line: &mut [u8]) -> Result<&CStr, Fault> {
    let equals = line.iter().position(|byte| *byte == b'=').ok_or(Fault::NotAVariable)?;
    let (name, value) = line.split_at(equals);
    if name.is_empty() || name[0].is_ascii_digit() || !name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_') {
        return Err(Fault::Name);
    }
    let value = value.strip_suffix(b"\n").ok_or(Fault::Unended)?;
    if value.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
        return Err(Fault::Value);
    }
    let last = line.len() - 1;
    line[last] = 0;
    CStr::from_bytes_with_nul(line).map_err(|_| Fault::Value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::{String, ToString};
    use std::vec::Vec;
    use std::{format, vec};

    const DEFAULT_PATH: &str = "PATH=/bin:/sbin:/usr/bin:/usr/sbin";

    fn parsed(text: &str) -> Vec<String> {
        let mut text = text.as_bytes().to_vec();
        let environment = Environment::parse(&mut text).unwrap();
        environment.variables().iter().map(|v| v.to_str().unwrap().to_string()).collect()
    }

    fn error(text: &[u8]) -> String {
        format!("{}", Environment::parse(&mut text.to_vec()).err().unwrap())
    }

    #[test]
    fn variables_come_in_the_order_of_the_file_and_blank_lines_and_comments_are_left_out() {
        let text = "# settings\n\nB=2\n  \t\nA=1\n#C=3\n";
        assert_eq!(parsed(text), ["B=2", "A=1", DEFAULT_PATH]);
    }

    #[test]
    fn a_value_is_taken_as_it_is() {
        let text = "A= '$B' \"x\" # y \\\nB=\nC==\tä=\n";
        assert_eq!(parsed(text), ["A= '$B' \"x\" # y \\", "B=", "C==\tä=", DEFAULT_PATH]);
    }

    #[test]
    fn the_files_path_replaces_the_default() {
        assert_eq!(parsed("PATH=/x\n"), ["PATH=/x"]);
        assert_eq!(parsed("MYPATH=/x\n"), ["MYPATH=/x", DEFAULT_PATH]);
        assert_eq!(parsed(""), [DEFAULT_PATH]);
    }

    #[test]
    fn a_bad_line_is_named_by_its_number_and_its_value_is_not_shown() {
        let cases: [(&[u8], usize, Fault); 11] = [
            (b"A=1\nsecret\n", 2, Fault::NotAVariable),
            (b"A=secret", 1, Fault::Unended),
            (b"\n\n=secret\n", 3, Fault::Name),
            (b"export A=secret\n", 1, Fault::Name),
            (b" A=secret\n", 1, Fault::Name),
            (b"1A=secret\n", 1, Fault::Name),
            (b"\xef\xbb\xbfA=secret\n", 1, Fault::Name),
            (b"A=secret\r\n", 1, Fault::Value),
            (b"A=\0secret\n", 1, Fault::Value),
            (b"  # secret\n", 1, Fault::NotAVariable),
            (b"A=1\nAB=1\nA=secret\n", 3, Fault::Repeated),
        ];
        for (text, line, fault) in cases {
            let error = error(text);
            assert_eq!(error, format!("environment: line {line} of /etc/teemark.env: {fault}"), "{text:?}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn the_most_variables_fit_and_one_more_is_refused() {
        let mut text: Vec<u8> = (0..VARIABLES).flat_map(|i| format!("V{i}=\n").into_bytes()).collect();
        assert_eq!(parsed(std::str::from_utf8(&text).unwrap()).len(), VARIABLES + 1);
        text.extend(b"W=\n");
        assert_eq!(error(&text), "environment: line 257 of /etc/teemark.env: more than 256 variables");
    }

    #[test]
    fn no_text_makes_the_parser_panic() {
        // Every text of five of these bytes: those that the parser looks for, and one of each other kind.
        let bytes = b"=#\n\r\0A_1 \xff";
        for mut n in 0..bytes.len().pow(5) {
            let mut text = vec![];
            for _ in 0..5 {
                text.push(bytes[n % bytes.len()]);
                n /= bytes.len();
            }
            let _ = Environment::parse(&mut text);
        }
    }
}
