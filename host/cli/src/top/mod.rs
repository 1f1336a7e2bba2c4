//! `teemark top`: what enclaves are doing, in a terminal.
//!
//! ```text
//! screen     the terminal: draws, reads keys, and is left as it was
//! view       which enclave is chosen, and what fits where      page      the same as plain text
//! overview   the table of all enclaves                         details   all that is known of one
//! text       styled text                                       numbers   how numbers are written
//! levels     what is a worry
//! enclaves   what became of each enclave, look by look
//! figures    what two looks say together                       refusals  the last ones of the log
//! ask        asks each enclave, by a thread of its own
//! ```

mod ask;
mod details;
mod enclaves;
mod figures;
mod levels;
mod numbers;
mod overview;
mod page;
mod refusals;
mod screen;
mod text;
mod view;

use std::io::{IsTerminal, stdout};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use formats::hpke::PrivateKey;
use formats::time::Utc;
use serde_json::{Value, json};

use self::ask::Asker;
use self::enclaves::{Asked, Enclave};
use crate::daemon::{self, Cacert};
use crate::failure::{Done, Failure};
use crate::{log, output};

/// Show what enclaves are doing: requests, latencies, memory, certificate, clock, log, last refusals.
///
/// It asks the admin port of each for /metrics, /admin/status and /admin/log, and changes nothing. Rates and latencies cover
/// the time between two looks; at the first look, the time since the start. ! marks what an alert would warn of, and !! what
/// is critical.
#[derive(clap::Args)]
#[command(after_help = "Keys: up and down choose an enclave, Page Up and Page Down scroll its details, q or Esc quits.

Examples:
  teemark top
  teemark top 10.0.1.5:3001 10.0.2.5:3001 --interval 5
  teemark top --once --json | jq '.enclaves[].figures.memory_bytes'

Exit status of --once: 0 if all enclaves answer, otherwise 3.")]
pub(crate) struct Arguments {
    /// Admin addresses: HOST:PORT, http://HOST:PORT or https://HOST
    #[arg(value_name = "ADDRESS", default_value = "127.0.0.1:3001", value_parser = admin_address)]
    addresses: Vec<String>,
    /// Seconds between two looks at an enclave, 0.2 to 3600
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = interval)]
    interval: Duration,
    /// Look once, print the result as text and exit; implied by --json or when standard output is not a terminal
    #[arg(long)]
    once: bool,
    /// The log key that opens a sealed log (keygen --for log), for the last refusals
    #[arg(long, value_name = "FILE")]
    log_key: Option<PathBuf>,
    #[command(flatten)]
    cacert: Cacert,
}

/// The base of an admin port's addresses; http where no scheme is given.
fn admin_address(text: &str) -> Result<String, String> {
    let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    daemon::endpoint(&url).map_err(|_| {
        "write HOST:PORT, http://HOST:PORT or https://HOST, the address that leads to the admin port".into()
    })
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.2..=3600.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "not a number of seconds from 0.2 to 3600".to_owned())
}

/// Looks at the enclaves, once or until somebody ends it.
///
/// # Errors
/// A file cannot be read; the terminal cannot be used; with `--once` an enclave does not answer.
pub(crate) fn run(arguments: &Arguments, json: bool) -> Result<Done> {
    let Arguments { addresses, interval, once, log_key, cacert } = arguments;
    if cacert.is_given() && !addresses.iter().any(|address| address.starts_with("https://")) {
        return Err(Failure::usage("--cacert is for https, and every address is plain http").into());
    }
    let key = log_key.as_deref().map(log::log_key).transpose()?;
    let askers = addresses.iter().map(|address| Asker::new(address, cacert)).collect::<Result<Vec<_>>>()?;
    let enclaves = addresses.iter().map(|address| Enclave::new(address.clone())).collect::<Vec<_>>();
    if *once || json || !stdout().is_terminal() {
        return look_once(enclaves, &askers, key.as_ref(), json);
    }
    screen::run(enclaves, askers, *interval, key.as_ref())?;
    Ok(Done::new("", Value::Null))
}

/// Asks all of them at the same time, once.
fn look_once(mut enclaves: Vec<Enclave>, askers: &[Asker], key: Option<&PrivateKey>, json: bool) -> Result<Done> {
    let asked: Vec<Asked> = thread::scope(|scope| {
        let threads: Vec<_> = askers.iter().map(|asker| scope.spawn(|| asker.ask())).collect();
        threads.into_iter().map(|thread| thread.join().expect("an asking thread does not panic")).collect()
    });
    for (enclave, asked) in enclaves.iter_mut().zip(asked) {
        enclave.take(asked, key);
    }
    let text = page::as_text(&enclaves, Utc::now());
    let objects: Value = enclaves.iter().map(as_object).collect();
    let silent = enclaves.iter().filter(|enclave| enclave.silence.is_some()).count();
    if silent == 0 {
        return Ok(Done::new(text, json!({"enclaves": objects})));
    }
    if !json {
        output::to_stdout(text.as_bytes())?;
    }
    let failure = Failure::try_again("no_answer", format!("{silent} of {} enclaves do not answer", enclaves.len()));
    Err(failure.with("enclaves", objects).into())
}

fn as_object(enclave: &Enclave) -> Value {
    let silence = enclave.silence.as_ref();
    json!({
        "address": enclave.address,
        "answers": silence.is_none(),
        "error": silence.map(|silence| &silence.why),
        "figures": enclave.figures,
        "refusals": enclave.refusals.newest().collect::<Vec<_>>(),
        "sealed_records": enclave.refusals.sealed,
        "log_fault": enclave.refusals.fault,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admin_address_may_leave_out_the_scheme() {
        assert_eq!(admin_address("127.0.0.1:3001").as_deref(), Ok("http://127.0.0.1:3001"));
        assert_eq!(admin_address("[::1]:3001").as_deref(), Ok("http://[::1]:3001"));
        assert_eq!(admin_address("https://h/").as_deref(), Ok("https://h"));
        for bad in ["", "tcp://h:1", "unix:/x y", "http://h/?q"] {
            assert!(admin_address(bad).unwrap_err().contains("HOST:PORT"), "{bad}");
        }
    }

    #[test]
    fn an_interval_may_have_a_fraction_and_has_bounds() {
        assert_eq!(interval("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["0", "0.1", "-1", "3601", "NaN", "inf", "2s", ""] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }
}
