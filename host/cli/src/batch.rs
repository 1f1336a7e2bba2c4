//! Runs a command on several files: their ids, where the outputs go, and how the command ends.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::builder::NonEmptyStringValueParser;
use serde_json::{Value, json};

use crate::failure::{Class, Done, Failure};
use crate::output::{self, Existing};
use crate::progress::Progress;
use crate::terminal::say;

/// What to do if an output file exists.
pub(crate) const REMEDY: &str = "replace it with --force, or choose another --output or --output-dir";

/// The options that name the files and their outputs.
#[derive(clap::Args)]
pub(crate) struct Files {
    /// The files; - for standard input
    #[arg(required = true, value_name = "FILE")]
    input: Vec<PathBuf>,
    /// The file's id [default: the file's name, without folder and .enc]
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    file_id: Option<String>,
    /// Where to write, for one file; - for standard output [default: beside the file; - for -]
    #[arg(long, value_name = "OUT")]
    output: Option<PathBuf>,
    /// The folder to write to, for any number of files
    #[arg(long, value_name = "DIR", conflicts_with = "output")]
    output_dir: Option<PathBuf>,
    /// Replace output files that exist
    #[arg(long)]
    force: bool,
}

/// One file of a command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) input: PathBuf,
    pub(crate) output: PathBuf,
    /// None if it is not given and there is no name to take it from.
    pub(crate) file_id: Option<String>,
    /// The input's length in bytes; 0 if it is not a file.
    pub(crate) length: u64,
}

impl Files {
    pub(crate) fn existing(&self) -> Existing {
        if self.force { Existing::Replace } else { Existing::Keep }
    }

    /// Whether there are several.
    pub(crate) fn are_several(&self) -> bool {
        self.input.len() > 1
    }

    /// Checks everything that can be checked before the first file is touched. `name` returns an input's default output.
    ///
    /// # Errors
    /// The options do not fit the number of files; two outputs are the same; an output exists or cannot be written; one
    /// of several files is missing; standard output is to have both a file and `json`.
    pub(crate) fn jobs(&self, json: bool, name: impl Fn(&Path) -> Result<PathBuf>) -> Result<Vec<Job>> {
        if self.are_several() {
            let one = self.file_id.as_ref().map(|_| "--file-id").or(self.output.as_ref().map(|_| "--output"));
            if let Some(option) = one {
                bail!(Failure::usage(format!(
                    "{option} is for one file, and there are {}; --output-dir names a folder for all, and each file's id \
                     is its name",
                    self.input.len()
                )));
            }
            if self.input.iter().any(|input| input == Path::new("-")) {
                bail!(Failure::usage("standard input (-) has to be the only file"));
            }
        }
        let jobs = self.input.iter().map(|input| self.job(input, &name)).collect::<Result<Vec<_>>>()?;
        if json && jobs.iter().any(|job| job.output == Path::new("-")) {
            bail!(Failure::usage("with --json standard output is for the result; name a file with --output"));
        }
        let mut outputs = HashSet::new();
        for Job { input, output, .. } in &jobs {
            if !outputs.insert(output) {
                bail!(Failure::usage(format!("two of the files would be written to {}", output.display())));
            }
            if self.are_several() {
                let found = fs::metadata(input).with_context(|| format!("cannot read {}", input.display()))?;
                if found.is_dir() {
                    bail!("{} is a folder; name files", input.display());
                }
            }
            output::check(output, self.existing(), REMEDY)?;
        }
        Ok(jobs)
    }

    fn job(&self, input: &Path, name: impl Fn(&Path) -> Result<PathBuf>) -> Result<Job> {
        let output = match (&self.output, &self.output_dir) {
            (Some(output), _) => output.clone(),
            (None, Some(_)) if input == Path::new("-") => {
                bail!(Failure::usage("standard input has no name for a file in --output-dir; give --output"))
            }
            (None, Some(folder)) => {
                let usual = name(input)?;
                folder.join(usual.file_name().with_context(|| format!("{} has no name", input.display()))?)
            }
            (None, None) => name(input)?,
        };
        let file_id = self.file_id.clone().or_else(|| id_of(input));
        let length = fs::metadata(input).map_or(0, |found| if found.is_file() { found.len() } else { 0 });
        Ok(Job { input: input.to_owned(), output, file_id, length })
    }
}

/// The default id of a file: its name before it was encrypted.
fn id_of(input: &Path) -> Option<String> {
    let name = input.file_name()?.to_str().filter(|_| input != Path::new("-"))?;
    Some(name.strip_suffix(".enc").filter(|name| !name.is_empty()).unwrap_or(name).to_owned())
}

/// Does `work` for each file. One that fails does not stop the others.
///
/// # Errors
/// For one file its own error; for several the worst class among those that failed, with the result of each.
pub(crate) fn run(jobs: &[Job], mut work: impl FnMut(&Job, &Progress) -> Result<Value>) -> Result<Done> {
    let lengths: Vec<_> = jobs.iter().map(|job| job.length).collect();
    let progress = Progress::over(&lengths);
    if let [job] = jobs {
        return Ok(Done::new("", work(job, &progress)?));
    }
    let (mut files, mut classes) = (Vec::new(), Vec::new());
    for (at, job) in jobs.iter().enumerate() {
        progress.begin(at + 1, jobs.len());
        let done = work(job, &progress);
        progress.end(job.length);
        files.push(done.unwrap_or_else(|error| {
            let class = Failure::class_of(&error);
            progress.aside(|| say(format_args!("{}: {}: {error:#}", job.input.display(), class.word())));
            classes.push(class);
            let mut object = Failure::object_of(&error);
            object["input"] = json!(job.input.to_string_lossy());
            object
        }));
    }
    match Class::worst(classes.iter().copied()) {
        None => Ok(Done::new("", json!({"files": files}))),
        Some(worst) => {
            let message = format!("{} of {} files failed", classes.len(), jobs.len());
            Err(Failure::new(worst, "files_failed", message).with("files", files.into()).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_id_is_its_name_before_it_was_encrypted() {
        for (input, id) in
            [("a/b.png", Some("b.png")), ("b.png.enc", Some("b.png")), (".enc", Some(".enc")), ("-", None), ("/", None)]
        {
            assert_eq!(id_of(Path::new(input)).as_deref(), id, "{input}");
        }
    }
}
