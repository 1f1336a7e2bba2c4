//! The ids of a request, by which its log lines and its answer are found.
//!
//! A client or a balancer may name a request; whatever it calls it, the daemon's own number tells it from every other one
//! of this process.

use std::cell::RefCell;
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use ring::rand::{SecureRandom, SystemRandom};

use super::http::values;

/// Header field of requests and answers.
pub const FIELD: &str = "X-Request-Id";
/// Longest id that is taken from a request, in bytes.
const LONGEST: usize = 64;

/// Requests so far.
static REQUESTS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static CURRENT: RefCell<Option<RequestId>> = const { RefCell::new(None) };
}

/// A request's ids.
#[derive(Clone)]
pub struct RequestId {
    /// Counts the requests of this process.
    number: u64,
    /// The client's id, if it gave a usable one.
    name: String,
}

impl RequestId {
    /// The ids of the next request; `head` has the lines of its head.
    pub fn next(head: &[u8]) -> RequestId {
        let number = REQUESTS.fetch_add(1, Ordering::Relaxed) + 1;
        let mut given = values(head, FIELD);
        let name = match (given.next(), given.next()) {
            (Some(name), None) if is_usable(name) => str::from_utf8(name).ok().map(str::to_owned),
            _ => None,
        };
        RequestId { number, name: name.unwrap_or_else(|| format!("{}-{number}", process())) }
    }

    /// The ids of the request that this thread serves, if any: another thread that works for it enters them too.
    pub fn of_this_thread() -> Option<RequestId> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// The id for the answer.
    pub fn into_name(self) -> String {
        self.name
    }

    /// From now on this thread's log lines are about this request.
    pub fn enter(&self) -> InLog {
        CURRENT.set(Some(self.clone()));
        InLog(())
    }
}

/// While this exists, the thread's log lines are about a request.
pub struct InLog(());

impl Drop for InLog {
    fn drop(&mut self) {
        CURRENT.set(None);
    }
}

/// The ids of this thread's request as a log line has them, in front of its text; nothing if there is no request.
pub struct OfThisThread;

impl fmt::Display for OfThisThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A thread that ends may still log.
        let current = CURRENT.try_with(|current| current.borrow().clone());
        match current.ok().flatten() {
            Some(RequestId { number, name }) => write!(f, "[{number} {name}] "),
            None => Ok(()),
        }
    }
}

/// Calls `tell` with the ids of this thread's request, if there is one.
pub fn of_this_thread(tell: impl FnOnce(u64, &str)) {
    let _ = CURRENT.try_with(|current| {
        if let Some(RequestId { number, name }) = &*current.borrow() {
            tell(*number, name);
        }
    });
}

/// 1 to 64 of A-Z a-z 0-9 - _ .: nothing that could break a line of a log, here or elsewhere.
fn is_usable(name: &[u8]) -> bool {
    (1..=LONGEST).contains(&name.len()) && name.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

/// Tells this process from others, so that ids made here are made nowhere else.
fn process() -> &'static str {
    static PROCESS: OnceLock<String> = OnceLock::new();
    PROCESS.get_or_init(|| {
        let mut bytes = [0; 8];
        // Without random numbers there would be no keys, and so no daemon.
        let _ = SystemRandom::new().fill(&mut bytes);
        hex::encode(bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(head: &str) -> String {
        RequestId::next(head.as_bytes()).into_name()
    }

    #[test]
    fn an_id_is_taken_if_it_is_1_to_64_harmless_characters_and_otherwise_made_anew() {
        let longest = "x".repeat(64);
        for good in ["a", "AZaz09-_.", &longest] {
            assert_eq!(name(&format!("Host:x\nx-request-id: {good} \n")), good);
        }
        let too_long = "x".repeat(65);
        let mut made =
            vec![name("Host:x\n"), name("X-Request-Id:a\nX-Request-Id:a\n"), name("\r\nX-Request-Id: body\n")];
        for bad in ["", "a b", "a,b", "a\u{1b}[2J", "ä", "a:b", &too_long] {
            made.push(name(&format!("X-Request-Id:{bad}\n")));
        }
        assert!(made.iter().all(|name| is_usable(name.as_bytes()) && name.starts_with(process())), "{made:?}");
        let count = made.len();
        made.sort_unstable();
        made.dedup();
        assert_eq!(made.len(), count, "each is another");
    }

    #[test]
    fn a_line_names_the_request_of_its_own_thread_and_of_no_other() {
        let id = RequestId::next(b"X-Request-Id: of-a-test\n");
        let number = id.number;
        assert_eq!(OfThisThread.to_string(), "");
        let entered = id.enter();
        assert_eq!(OfThisThread.to_string(), format!("[{number} of-a-test] "));
        assert_eq!(std::thread::spawn(|| OfThisThread.to_string()).join().unwrap(), "");
        drop(entered);
        assert_eq!(OfThisThread.to_string(), "");
        assert!(RequestId::next(b"X-Request-Id: of-a-test\n").number > number);
    }
}
