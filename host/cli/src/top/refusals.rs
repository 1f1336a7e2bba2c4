//! The last refusals, from what /admin/log shows of the log.

use std::collections::VecDeque;

use formats::hpke::PrivateKey;
use formats::log::{Kind, Record};
use formats::time::Utc;
use serde::Serialize;
use serde_json::Value;

use crate::log::Segments;

/// How many are kept.
const MOST: usize = 100;

/// A request or a bundle that was refused.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Refusal {
    /// The number of its record.
    pub(super) number: u64,
    #[serde(serialize_with = "as_text")]
    pub(super) time: Utc,
    /// The error's code, and what else is recorded of it.
    pub(super) code: String,
    pub(super) about: String,
}

fn as_text<S: serde::Serializer>(time: &Utc, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(time)
}

/// The last refusals of one start of an enclave, the newest first.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    kept: VecDeque<Refusal>,
    /// The number of the last record that was read.
    last: u64,
    /// How many records of the last look were sealed and could not be opened.
    pub(super) sealed: usize,
    /// Whether there was a log key to open them with.
    pub(super) has_key: bool,
    /// Why there was no log to look at, if there was none.
    pub(super) fault: Option<String>,
}

impl Refusals {
    pub(super) fn newest(&self) -> impl Iterator<Item = &Refusal> {
        self.kept.iter()
    }

    /// Takes what /admin/log answered, or why it did not.
    pub(super) fn take(&mut self, log: Result<&[u8], &str>, key: Option<&PrivateKey>) {
        let log = match log {
            Ok(log) => log,
            Err(why) => {
                self.fault = Some(why.to_owned());
                return;
            }
        };
        (self.fault, self.sealed, self.has_key) = (None, 0, key.is_some());
        let mut segments = Segments::default();
        for record in log.split(|&byte| byte == b'\n').filter_map(Record::parse) {
            let opened = key.and_then(|key| segments.open_next(&record, key));
            let (kind, body) =
                opened.as_ref().map_or((record.kind, record.body), |(kind, body)| (*kind, body.as_str()));
            self.sealed += usize::from(kind == Kind::Sealed);
            if record.head.number <= self.last {
                continue;
            }
            self.last = record.head.number;
            if kind == Kind::Audit
                && let Some(refusal) = refusal(record.head.number, body)
            {
                self.kept.push_front(refusal);
                self.kept.truncate(MOST);
            }
        }
    }
}

/// The refusal that an audit record tells of, if it is one.
fn refusal(number: u64, body: &str) -> Option<Refusal> {
    let record: Value = serde_json::from_str(body).ok()?;
    let text = |name: &str| record[name].as_str().unwrap_or_default();
    let known = [("file_id", "file"), ("user_id", "user"), ("request_id", "request"), ("jti", "grant")];
    let known = known.into_iter().filter(|(name, _)| !text(name).is_empty());
    let known: String = known.map(|(name, word)| format!(" {word} {}", text(name))).collect();
    let more =
        |what: &str| record["not_recorded_before"].as_u64().map(|n| format!("{what}{n} before it are not recorded"));
    let (code, about) = match text("event") {
        "refused" => {
            let status = record["status"].as_u64().map_or_else(String::new, |status| status.to_string());
            let about = status + &known + &more("; ").unwrap_or_default();
            (text("code"), about)
        }
        "withheld" => ("audit_unavailable", "503 no collector acknowledged it in time".to_owned()),
        "bundle_refused" => ("bundle_refused", format!("{}: {}", text("field"), text("reason"))),
        "not_recorded" => ("not_recorded", more("")?),
        _ => return None,
    };
    let time = Utc(record["time_ms"].as_u64().unwrap_or_default() / 1000);
    Some(Refusal { number, time, code: code.to_owned(), about })
}

#[cfg(test)]
mod tests {
    use formats::hpke::PublicKey;
    use formats::log::{Head, Segment};

    use super::*;

    fn log(records: &[(Kind, String)]) -> Vec<u8> {
        let (mut head, mut out) = (Head::default(), Vec::new());
        records.iter().for_each(|(kind, body)| head.write(*kind, body.as_bytes(), &mut out));
        out
    }

    fn refused(code: &str) -> (Kind, String) {
        let body = format!(
            r#"{{"file_id":"f","user_id":"alice","status":422,"code":"{code}","event":"refused","time_ms":1800000000999}}"#
        );
        (Kind::Audit, body)
    }

    fn codes(refusals: &Refusals) -> Vec<&str> {
        refusals.newest().map(|refusal| refusal.code.as_str()).collect()
    }

    #[test]
    fn each_refusal_is_kept_once_the_newest_first_and_what_was_given_is_none() {
        let mut records =
            vec![refused("one"), (Kind::Audit, r#"{"event":"given","status":200}"#.into()), refused("two")];
        let mut refusals = Refusals::default();
        refusals.take(Ok(&log(&records)), None);
        records.push((Kind::Log, "refused".into()));
        records.push((
            Kind::Audit,
            r#"{"event":"bundle_refused","field":"FILE_KEYS","reason":"empty","time_ms":1}"#.into(),
        ));
        records.push((Kind::Audit, r#"{"event":"not_recorded","not_recorded_before":7,"time_ms":1}"#.into()));
        refusals.take(Ok(&log(&records)), None);
        assert_eq!(codes(&refusals), ["not_recorded", "bundle_refused", "two", "one"]);
        let about: Vec<&str> = refusals.newest().map(|refusal| refusal.about.as_str()).collect();
        assert_eq!(about[..3], ["7 before it are not recorded", "FILE_KEYS: empty", "422 file f user alice"]);
        assert_eq!(refusals.newest().last().unwrap().time, Utc(1_800_000_000));
        refusals.take(Err("gone"), None);
        assert_eq!((refusals.fault.as_deref(), codes(&refusals).len()), (Some("gone"), 4));
        records.extend((0..300).map(|_| refused("flood")));
        refusals.take(Ok(&log(&records)), None);
        assert!(codes(&refusals).len() == MOST && codes(&refusals).iter().all(|code| *code == "flood"));
    }

    #[test]
    fn sealed_records_are_counted_and_opened_only_with_their_key() {
        let key = |byte| PrivateKey::new(Box::new([byte; 32]));
        let ours: PublicKey = key(1).public();
        let (segment, body) = Segment::new(&[ours], 1).unwrap();
        let (kind, refusal) = refused("secret");
        let sealed = (Kind::Sealed, segment.seal(2, kind, refusal.as_bytes()));
        let log = log(&[(Kind::Key, body), sealed]);
        for (key, sealed, code) in [(None, 1, &[][..]), (Some(key(2)), 1, &[]), (Some(key(1)), 0, &["secret"])] {
            let mut refusals = Refusals::default();
            refusals.take(Ok(&log), key.as_ref());
            assert_eq!((refusals.sealed, codes(&refusals).as_slice()), (sealed, code));
        }
    }
}
