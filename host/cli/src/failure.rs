//! How a command ends: with what it did, or with a failure whose class is the exit status.

use std::fmt;
use std::process::ExitCode;

use serde_json::{Map, Value, json};

/// What a failure means to whoever has to decide what to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// The daemon, or what it proves of itself, said no, and will say so again: exit status 1.
    Refused,
    /// Wrong usage, or anything else that went wrong: exit status 2.
    Other,
    /// The same command may succeed later: exit status 3.
    TryAgain,
}

impl Class {
    /// The exit status.
    pub(crate) fn status(self) -> u8 {
        match self {
            Class::Refused => 1,
            Class::Other => 2,
            Class::TryAgain => 3,
        }
    }

    /// The word before the message on standard error.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Class::Refused => "refused",
            Class::Other => "error",
            Class::TryAgain => "try again",
        }
    }

    /// The class of several failures: the one that trying again helps least.
    pub(crate) fn worst(classes: impl IntoIterator<Item = Class>) -> Option<Class> {
        classes.into_iter().min_by_key(|class| class.status())
    }
}

/// A failure of a known class. It is passed on as an [`anyhow::Error`], with context around it or as context around its
/// cause; an error without one in it has [`Class::Other`].
#[derive(Debug)]
pub(crate) struct Failure {
    class: Class,
    /// For programs: the daemon's own code, or one of these here.
    code: String,
    message: String,
    /// More members of the JSON object.
    details: Map<String, Value>,
}

impl Failure {
    pub(crate) fn new(class: Class, code: &str, message: impl fmt::Display) -> Failure {
        Failure { class, code: code.to_owned(), message: message.to_string(), details: Map::new() }
    }

    pub(crate) fn refused(code: &str, message: impl fmt::Display) -> Failure {
        Failure::new(Class::Refused, code, message)
    }

    pub(crate) fn try_again(code: &str, message: impl fmt::Display) -> Failure {
        Failure::new(Class::TryAgain, code, message)
    }

    /// A command line that makes no sense; the same as an error of the parser.
    pub(crate) fn usage(message: impl fmt::Display) -> Failure {
        Failure::new(Class::Other, "usage", message)
    }

    /// Adds a member to the JSON object.
    pub(crate) fn with(mut self, name: &str, value: Value) -> Failure {
        self.details.insert(name.to_owned(), value);
        self
    }

    /// Its class.
    pub(crate) fn class(&self) -> Class {
        self.class
    }

    /// The class of any error.
    pub(crate) fn class_of(error: &anyhow::Error) -> Class {
        error.downcast_ref::<Failure>().map_or(Class::Other, |failure| failure.class)
    }

    /// The JSON object of any error: `error`, `code`, `exit`, and what else is known.
    pub(crate) fn object_of(error: &anyhow::Error) -> Value {
        let failure = error.downcast_ref::<Failure>();
        let mut object = failure.map(|failure| failure.details.clone()).unwrap_or_default();
        object.insert("error".into(), json!(format!("{error:#}")));
        object.insert("code".into(), json!(failure.map_or("error", |failure| &failure.code)));
        object.insert("exit".into(), json!(Failure::class_of(error).status()));
        object.into()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<Class> for ExitCode {
    fn from(class: Class) -> ExitCode {
        ExitCode::from(class.status())
    }
}

/// What a command did: what goes to standard output, as text or, with `--json`, as one object.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) text: Vec<u8>,
    pub(crate) json: Value,
}

impl Done {
    pub(crate) fn new(text: impl Into<Vec<u8>>, json: Value) -> Done {
        Done { text: text.into(), json }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn the_class_is_found_below_context_and_as_context() {
        let below = anyhow::Error::new(Failure::try_again("busy", "no room")).context("the first of two");
        let above = Err::<(), _>(anyhow!("timed out")).context(Failure::refused("late", "no answer")).unwrap_err();
        for (error, class, code) in
            [(below, Class::TryAgain, "busy"), (above, Class::Refused, "late"), (anyhow!("x"), Class::Other, "error")]
        {
            let error = error.context("more");
            let object = Failure::object_of(&error);
            assert_eq!((Failure::class_of(&error), &object["code"]), (class, &json!(code)));
            assert_eq!((&object["exit"], &object["error"]), (&json!(class.status()), &json!(format!("{error:#}"))));
        }
    }

    #[test]
    fn of_several_a_refusal_counts_before_an_error_and_that_before_what_may_pass() {
        use Class::*;
        assert_eq!(Class::worst([TryAgain, Refused, Other]), Some(Refused));
        assert_eq!(Class::worst([TryAgain, Other]), Some(Other));
        assert_eq!(Class::worst([TryAgain, TryAgain]), Some(TryAgain));
        assert_eq!(Class::worst([]), None);
    }
}
