//! The items of the bundle, from files, credentials and commands. A source that fails keeps its last good value.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use formats::bundle::{Outgoing, Received};
use formats::certificates::{self, Part, Parts};
use formats::items::{CERTIFICATES, ENDPOINT, FILE_KEYS, GRANT_KEYS};
use formats::service::ServiceUrl;

use super::config::{self, CredentialSource, ExecSource, FileSource, Source};
use super::exec;
use super::snapshot::{Piece, Snapshot};
use crate::bundle;
use crate::certificate::{self, Authority, Content};
use crate::keys::KeyFile;
use crate::manifest;

/// Largest source, in bytes: as large as a bundle can be.
const LARGEST: u64 = 16 << 20;
/// A file that changed so recently may change again within the resolution of its time.
const RECENT: Duration = Duration::from_secs(2);

/// A source that failed, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) item: String,
    pub(crate) reason: String,
}

/// The sources, and what they had when they were last read.
pub(crate) struct Sources {
    snapshot: Snapshot,
    parsed: BTreeMap<&'static str, Parsed>,
    certificate: Option<[Reader; 3]>,
    endpoint: Option<Bytes>,
    file_keys: Option<Reader>,
    grant_keys: Option<Reader>,
}

/// What was read for an item, and why it could not be used, if it could not.
struct Parsed {
    bytes: Vec<Arc<Vec<u8>>>,
    fault: Option<String>,
}

/// Reads one source.
struct Reader {
    from: Origin,
    /// What was read last, and when the file was changed.
    last: Option<Bytes>,
}

/// What a source had.
#[derive(Clone)]
struct Bytes {
    bytes: Arc<Vec<u8>>,
    modified_ms: Option<u64>,
}

impl Bytes {
    fn new(bytes: Vec<u8>, modified_ms: Option<u64>) -> Bytes {
        Bytes { bytes: Arc::new(bytes), modified_ms }
    }
}

/// The last result of a command; `None` before it has ended for the first time.
type Slot = Arc<Mutex<Option<Result<Arc<Vec<u8>>, String>>>>;

enum Origin {
    File { path: PathBuf, last: Option<Identity> },
    Credential(PathBuf),
    Exec(Slot),
}

/// By what a file that has changed is known.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    length: u64,
    modified: Option<SystemTime>,
}

impl Sources {
    /// Starts what has to run in the background: a thread for each command. `config_ms` is when the configuration was
    /// changed.
    ///
    /// # Errors
    /// A credential is named, and there are none; a thread cannot be started.
    pub(crate) fn new(items: &config::Items, config_ms: u64) -> Result<Sources> {
        let reader = |source: &Option<Source>| source.as_ref().map(Reader::new).transpose();
        let certificate = match &items.certificate {
            Some(config::Certificate { cert, key, ca }) => {
                Some([Reader::new(cert)?, Reader::new(key)?, Reader::new(ca)?])
            }
            None => None,
        };
        Ok(Sources {
            snapshot: Snapshot::default(),
            parsed: BTreeMap::new(),
            certificate,
            endpoint: items.endpoint.clone().map(|url| Bytes::new(url.into_bytes(), Some(config_ms))),
            file_keys: reader(&items.file_keys)?,
            grant_keys: reader(&items.grant_keys)?,
        })
    }

    /// The names of all items that are to come from the sources.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        let given = [
            (CERTIFICATES, self.certificate.is_some()),
            (ENDPOINT, self.endpoint.is_some()),
            (FILE_KEYS, self.file_keys.is_some()),
            (GRANT_KEYS, self.grant_keys.is_some()),
        ];
        given.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect()
    }

    /// Reads what has changed. Returns what the sources have, and which failed.
    pub(crate) fn refresh(&mut self, now: SystemTime) -> (&Snapshot, Vec<Fault>) {
        let mut faults = Vec::new();
        let mut changed = false;
        for name in self.names() {
            match self.read(name, now) {
                Ok(Some(piece)) => changed |= self.snapshot.replace(name, piece),
                Ok(None) => {}
                Err(error) => faults.push(Fault { item: name.to_owned(), reason: format!("{error:#}") }),
            }
        }
        if changed {
            self.snapshot.revision = self.snapshot.revision.next();
        }
        (&self.snapshot, faults)
    }

    /// An item, if what was read for it is not what was read before.
    fn read(&mut self, name: &'static str, now: SystemTime) -> Result<Option<Piece>> {
        let one = |reader: &mut Option<Reader>| reader.as_mut().map_or(Ok(None), |reader| reader.read(now));
        let read: Option<Vec<Bytes>> = match name {
            CERTIFICATES => match &mut self.certificate {
                Some([cert, key, ca]) => {
                    let parts = [(cert, Part::Certificate), (key, Part::Key), (ca, Part::Authority)];
                    let read = parts.map(|(reader, part)| reader.read(now).with_context(|| part.name()));
                    read.into_iter().collect::<Result<Option<_>>>()?
                }
                None => None,
            },
            ENDPOINT => self.endpoint.clone().map(|bytes| vec![bytes]),
            FILE_KEYS => one(&mut self.file_keys)?.map(|bytes| vec![bytes]),
            _ => one(&mut self.grant_keys)?.map(|bytes| vec![bytes]),
        };
        // A command has not ended for the first time.
        let Some(read) = read else { return Ok(None) };
        let bytes: Vec<_> = read.iter().map(|read| read.bytes.clone()).collect();
        if let Some(Parsed { bytes: before, fault }) = self.parsed.get(name)
            && before.len() == bytes.len()
            && before.iter().zip(&bytes).all(|(before, bytes)| Arc::ptr_eq(before, bytes))
        {
            return fault.as_ref().map_or(Ok(None), |fault| Err(anyhow!("{fault}")));
        }
        let piece = piece(name, &read);
        let fault = piece.as_ref().err().map(|error| format!("{error:#}"));
        self.parsed.insert(name, Parsed { bytes, fault });
        piece.map(Some)
    }
}

/// An item from what its sources have, in the order of the parts.
fn piece(name: &str, read: &[Bytes]) -> Result<Piece> {
    let modified_ms = read.iter().filter_map(|bytes| bytes.modified_ms).max();
    let outgoing = match (name, read) {
        (CERTIFICATES, [cert, key, ca]) => {
            let parts = Parts([cert, key, ca].map(|part| part.bytes.to_vec()));
            Outgoing { mtls_client_cert_json: Some(checked(&parts)?), ..Outgoing::default() }
        }
        (ENDPOINT, [url]) => {
            let url = ServiceUrl::parse(&String::from_utf8_lossy(&url.bytes));
            let url = url.map_err(|why| anyhow!("it {why}; write https://HOST:PORT"))?;
            Outgoing { ecs_watermark_endpoint: Some(url.as_str().to_owned()), ..Outgoing::default() }
        }
        (FILE_KEYS, [keys]) => {
            Outgoing { file_keys: Some(KeyFile::parse(&keys.bytes)?.into_keys()), ..Outgoing::default() }
        }
        (GRANT_KEYS, [keys]) => {
            Outgoing { grant_keys: Some(bundle::parse_grant_keys(&keys.bytes)?), ..Outgoing::default() }
        }
        _ => bail!("it has another number of parts"),
    };
    let received = Received::parse_v2(&outgoing.to_json())?;
    let item = manifest::describe(&received)?.remove(name).context("it cannot be described")?;
    Ok(Piece { outgoing, item, modified_ms })
}

/// The item from its three parts, which are checked as the daemon checks them: it would refuse them otherwise.
fn checked(parts: &Parts<Vec<u8>>) -> Result<String> {
    for (part, bytes) in parts.iter() {
        let (content, authority) = match part {
            Part::Certificate => (Content::Certificates, Some(Authority::No)),
            Part::Authority => (Content::Certificates, Some(Authority::Yes)),
            Part::Key => (Content::PrivateKey, None),
        };
        certificate::check(bytes, content).with_context(|| part.name())?;
        if let Some(authority) = authority {
            certificate::check_dates(bytes, authority, formats::time::Utc::now()).with_context(|| part.name())?;
        }
    }
    certificate::check_pair(parts.get(Part::Certificate), parts.get(Part::Key))?;
    Ok(certificates::write(parts))
}

impl Reader {
    fn new(source: &Source) -> Result<Reader> {
        let from = match source {
            Source::File(FileSource { file }) => Origin::File { path: file.clone(), last: None },
            Source::Credential(CredentialSource { credential }) => Origin::Credential(credential_path(credential)?),
            Source::Exec(source) => Origin::Exec(start(source.clone())?),
        };
        Ok(Reader { from, last: None })
    }

    /// What the source has now; `None` while a command has not ended for the first time.
    fn read(&mut self, now: SystemTime) -> Result<Option<Bytes>> {
        match &mut self.from {
            Origin::File { path, last } => {
                let found = fs::metadata(&*path).with_context(|| path.display().to_string())?;
                let identity = Identity::of(&found);
                if self.last.is_none() || *last != Some(identity) || identity.is_recent(now) {
                    let bytes = read_file(path, &found)?;
                    // What has not changed stays the same object, by which it is known.
                    if self.last.as_ref().is_none_or(|last| *last.bytes != bytes) {
                        self.last = Some(Bytes::new(bytes, identity.modified_ms()));
                    }
                    *last = Some(identity);
                }
            }
            Origin::Credential(path) => {
                if self.last.is_none() {
                    let found = fs::metadata(&*path).with_context(|| path.display().to_string())?;
                    self.last = Some(Bytes::new(read_file(path, &found)?, None));
                }
            }
            Origin::Exec(slot) => match &*slot.lock().unwrap_or_else(PoisonError::into_inner) {
                Some(Ok(bytes)) => self.last = Some(Bytes { bytes: bytes.clone(), modified_ms: None }),
                Some(Err(reason)) => bail!("{reason}"),
                None => {}
            },
        }
        Ok(self.last.clone())
    }
}

/// Where systemd has put a credential (systemd.exec(5)).
///
/// # Errors
/// This is not a unit with credentials.
pub(crate) fn credential_path(name: &str) -> Result<PathBuf> {
    let Some(folder) = std::env::var_os("CREDENTIALS_DIRECTORY") else {
        bail!("the credential {name} is named, and $CREDENTIALS_DIRECTORY is not set: see LoadCredential= of systemd");
    };
    if name.is_empty() || name.contains('/') {
        bail!("{name:?} is not the name of a credential");
    }
    Ok(Path::new(&folder).join(name))
}

fn read_file(path: &Path, found: &Metadata) -> Result<Vec<u8>> {
    let what = || path.display().to_string();
    if !found.is_file() {
        bail!("{} is not a file", what());
    }
    if found.len() > LARGEST {
        bail!("{} is larger than 16 MiB", what());
    }
    fs::read(path).with_context(what)
}

impl Identity {
    fn of(found: &Metadata) -> Identity {
        Identity { device: found.dev(), inode: found.ino(), length: found.len(), modified: found.modified().ok() }
    }

    fn is_recent(&self, now: SystemTime) -> bool {
        self.modified.is_none_or(|modified| now.duration_since(modified).unwrap_or_default() < RECENT)
    }

    fn modified_ms(&self) -> Option<u64> {
        let since = self.modified?.duration_since(UNIX_EPOCH).ok()?;
        u64::try_from(since.as_millis()).ok()
    }
}

/// Runs a command again and again, in a thread of its own; returns where its last result is.
fn start(source: ExecSource) -> Result<Slot> {
    let slot = Slot::default();
    let to = slot.clone();
    thread::Builder::new().name("source".into()).spawn(move || {
        loop {
            // A panic must not end the thread: the source would stay as it is for good.
            let result = panic::catch_unwind(AssertUnwindSafe(|| exec::output(&source)));
            let result = result.unwrap_or_else(|_| Err(anyhow!("the keeper has a fault: see standard error")));
            let result = result.map(Arc::new).map_err(|error| format!("{error:#}"));
            *to.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
            thread::sleep(Duration::from_secs(source.every));
        }
    })?;
    Ok(slot)
}

#[cfg(test)]
mod tests {
    use formats::state::Items;
    use tempfile::TempDir;

    use super::*;

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const OTHER: &str = "/wECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    struct Folder(TempDir);

    impl Folder {
        fn new() -> Folder {
            Folder(tempfile::tempdir().unwrap())
        }

        fn keys(&self, keys: &[(&str, &str)]) {
            let members: Vec<_> = keys.iter().map(|(id, key)| format!(r#""{id}":"{key}""#)).collect();
            fs::write(self.0.path().join("keys.json"), format!("{{{}}}\n", members.join(","))).unwrap();
        }

        fn sources(&self) -> Sources {
            let file_keys = Some(Source::File(FileSource { file: self.0.path().join("keys.json") }));
            let endpoint = Some("https://h:8".to_owned());
            Sources::new(&config::Items { file_keys, endpoint, ..config::Items::default() }, 77).unwrap()
        }
    }

    fn refreshed(sources: &mut Sources) -> (Snapshot, Vec<Fault>) {
        let (snapshot, faults) = sources.refresh(SystemTime::now());
        (snapshot.clone(), faults)
    }

    #[test]
    fn a_file_is_read_again_when_it_changes_and_a_bad_one_keeps_the_last_value() {
        let folder = Folder::new();
        let mut sources = folder.sources();
        let (first, faults) = refreshed(&mut sources);
        assert_eq!(first.items.keys().collect::<Vec<_>>(), [ENDPOINT]);
        assert!(faults[0].item == FILE_KEYS && faults[0].reason.contains("keys.json"), "{faults:?}");
        folder.keys(&[("a", KEY)]);
        let (second, faults) = refreshed(&mut sources);
        assert!(faults.is_empty() && second.revision != first.revision && second.items.contains_key(FILE_KEYS));
        assert_eq!(refreshed(&mut sources).0.revision, second.revision);
        fs::write(folder.0.path().join("keys.json"), format!("{{\"a\":\"{KEY}")).unwrap();
        let (third, faults) = refreshed(&mut sources);
        assert_eq!((third.revision, &third.items), (second.revision, &second.items));
        assert!(faults.len() == 1 && !faults[0].reason.contains(&KEY[4..12]), "{faults:?}");
        // Another order of the same keys is no change.
        folder.keys(&[("a", KEY)]);
        assert_eq!(refreshed(&mut sources).0.revision, second.revision);
    }

    #[test]
    fn an_enclave_whose_keys_are_known_is_sent_the_difference() {
        let folder = Folder::new();
        let mut sources = folder.sources();
        let names = [FILE_KEYS.to_owned()];
        folder.keys(&[("a", KEY), ("b", KEY)]);
        let first = refreshed(&mut sources).0.items;
        folder.keys(&[("b", KEY), ("c", OTHER)]);
        let second = refreshed(&mut sources).0;
        let bundle = second.bundle(&names, &first, false);
        assert!(bundle.file_keys.is_none());
        assert_eq!(bundle.file_keys_add.unwrap().0.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["c"]);
        assert_eq!(bundle.file_keys_remove.into_iter().collect::<Vec<_>>(), ["a"]);
        assert!(second.bundle(&names, &first, true).file_keys_add.is_none());
        // Keys that nobody knows are replaced.
        assert_eq!(second.bundle(&names, &Items::new(), false).file_keys.unwrap().0.len(), 2);
        // Another key under the same id goes and comes.
        folder.keys(&[("b", OTHER), ("c", OTHER)]);
        let third = refreshed(&mut sources).0.bundle(&names, &second.items, false);
        assert_eq!(third.file_keys_add.unwrap().0.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["b"]);
        assert_eq!(third.file_keys_remove.into_iter().collect::<Vec<_>>(), ["b"]);
        // Back to an earlier set, from the one after it.
        folder.keys(&[("b", KEY), ("c", OTHER)]);
        refreshed(&mut sources);
        folder.keys(&[("a", KEY), ("b", KEY)]);
        let back = refreshed(&mut sources).0;
        assert_eq!(back.items, first);
        assert_eq!(back.bundle(&names, &second.items, false).file_keys_remove.into_iter().collect::<Vec<_>>(), ["c"]);
    }

    #[test]
    fn a_commands_failure_keeps_its_last_output() {
        let folder = Folder::new();
        let path = folder.0.path().join("keys.json");
        let exec = ["/bin/cat", path.to_str().unwrap()].map(str::to_owned).to_vec();
        let source = ExecSource { exec, environment: Vec::new(), timeout: 30, every: 1 };
        folder.keys(&[("a", KEY)]);
        let file_keys = Some(Source::Exec(source));
        let mut sources = Sources::new(&config::Items { file_keys, ..config::Items::default() }, 0).unwrap();
        let mut until = |done: &dyn Fn(&Snapshot, &[Fault]) -> bool| {
            loop {
                let (snapshot, faults) = sources.refresh(SystemTime::now());
                if done(snapshot, &faults) {
                    return snapshot.clone();
                }
                thread::sleep(Duration::from_millis(10));
            }
        };
        let first = until(&|snapshot, _| snapshot.items.contains_key(FILE_KEYS));
        fs::remove_file(&path).unwrap();
        let second = until(&|_, faults| faults.iter().any(|fault| fault.reason.contains("status 1")));
        assert_eq!(first.items, second.items);
        folder.keys(&[("b", KEY)]);
        until(&|snapshot, faults| faults.is_empty() && snapshot.items != first.items);
    }
}
