//! The log's way out: whether a collector has what the enclave wrote.

use formats::address::Address;

use super::super::facts::{Facts, Parent, Relay};
use super::{Judged, Metrics, warning, wrong};

/// What the enclave says of its log.
struct Told<'a> {
    /// Where it goes, as TEEMARK_LOG_TO has it; `off` if nowhere.
    to: &'a str,
    last: u64,
    acknowledged: u64,
    /// Whether a collector has acknowledged what there was when it was first asked.
    arrives: bool,
}

/// Judges by what the enclave says; what is seen on the parent explains what is wrong.
pub(super) fn judge(parent: &Parent, facts: &Facts) -> Judged {
    let dropped = facts.enclave.metrics.as_ref().and_then(|metrics| metrics.as_ref().ok());
    let dropped = dropped.map_or(0.0, |text| Metrics::parse(text).sum("teemark_log_lines_dropped_total", &[]));
    match told(facts) {
        None => not_told(parent),
        Some(Told { to: "off", .. }) => sends_none(parent),
        Some(told) if !told.arrives => {
            let (found, advice) = lost_on_the_way(parent, &told);
            let lost = if dropped > 0.0 { format!("; {dropped} records are lost already") } else { String::new() };
            wrong(format!("{found}{lost}"), advice)
        }
        Some(Told { acknowledged, .. }) if dropped > 0.0 => warning(
            format!("a collector has the log up to record {acknowledged}, and {dropped} records were lost before"),
            "teemark log verify names them; keep relay and collector running",
        ),
        Some(Told { last, acknowledged, .. }) => {
            Ok(format!("a collector has acknowledged record {acknowledged} of {last}"))
        }
    }
}

fn told(facts: &Facts) -> Option<Told<'_>> {
    let log = &facts.enclave.status.as_ref()?.as_ref().ok()?["log"];
    let number = |name: &str| log[name].as_u64();
    let (last, acknowledged) = (number("last")?, number("acknowledged")?);
    let arrives = log["connected"] == true && acknowledged > 0 && acknowledged >= facts.enclave.logged;
    Some(Told { to: log["to"].as_str()?, last, acknowledged, arrives })
}

/// The enclave was not asked, or does not know the question.
fn not_told(parent: &Parent) -> Judged {
    let found = match parent.relays.iter().find_map(|relay| Some((relay, relay.reached.as_ref().err()?))) {
        Some((relay, why)) => return wrong(format!("the relay leads to {}, where {why}", relay.to), START_COLLECTOR),
        None if parent.relays.is_empty() => "teemark log relay does not run, and the enclave does not say".to_owned(),
        None => "a relay leads to a collector, and the enclave does not say".to_owned(),
    };
    warning(
        format!("{found} whether a collector has its log"),
        "expose the admin port on the parent, at EXPOSE_ADMIN, where /admin/status says so; an older image does not",
    )
}

fn sends_none(parent: &Parent) -> Judged {
    let none = "the image sends no log: its TEEMARK_LOG_TO or TEEMARK_LOG is off";
    match parent.relays.first() {
        None => Ok(none.into()),
        Some(relay) => warning(
            format!("{none}, and the relay to {} carries nothing", relay.to),
            "systemctl disable --now teemark-log-relay; or build the image with TEEMARK_LOG_TO=vsock:3:9001",
        ),
    }
}

const START_COLLECTOR: &str = "start teemark-log-collect on that machine, and let the parent reach its port";

/// Why nothing arrives, and what to do.
fn lost_on_the_way(parent: &Parent, told: &Told<'_>) -> (String, &'static str) {
    let Told { to, last, acknowledged, .. } = told;
    let since = match acknowledged {
        0 => format!("no collector has acknowledged any of the log's {last} records"),
        _ if acknowledged >= last => format!("the log's stream to the collector is broken after record {last}"),
        _ => format!("no collector has acknowledged the log's records from {} to {last}", acknowledged + 1),
    };
    let taken: Vec<&Relay> = parent.relays.iter().filter(|relay| takes(&relay.listen, to)).collect();
    match (taken.first(), parent.relays.first()) {
        (Some(relay), _) => match &relay.reached {
            Err(why) => (format!("{since}: the relay leads to {}, where {why}", relay.to), START_COLLECTOR),
            Ok(()) => (
                format!("{since}: the relay leads to {}, where somebody listens", relay.to),
                "is that teemark log collect? Then its log says why it acknowledges nothing: after records that are missing \
                 it does not until the enclave starts anew. Its key (teemark keygen --for collector --public) has to be in the \
                 image's TEEMARK_AUDIT_KEYS, if that has any",
            ),
        },
        (None, Some(relay)) => (
            format!("{since}: the enclave sends it to {to}, and the relay listens on {}", relay.listen),
            "set LOG_RELAY_LISTEN in /etc/teemark/log-relay.env to the image's TEEMARK_LOG_TO, without the 3, and restart \
             teemark-log-relay",
        ),
        (None, None) => (
            format!("{since}: teemark log relay does not run"),
            "systemctl enable --now teemark-log-relay, with LOG_RELAY_TO in /etc/teemark/log-relay.env; if there is to be no \
             collector, build the image with TEEMARK_LOG_TO=off",
        ),
    }
}

/// Whether what listens here takes what an enclave of this machine sends there.
fn takes(listen: &str, to: &str) -> bool {
    match (listen.parse(), to.parse()) {
        (Ok(Address::Vsock { port: here, .. }), Ok(Address::Vsock { port: there, .. })) => here == there,
        (Ok(Address::Tcp { port: here, .. }), Ok(Address::Tcp { port: there, .. })) => here == there,
        (Ok(here), Ok(there)) => Address::eq(&here, &there),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::super::facts::Enclave;
    use super::super::tests::{after, only};
    use super::*;

    fn log(enclave: &mut Enclave, log: Value) {
        enclave.status.as_mut().unwrap().as_mut().unwrap()["log"] = log;
    }

    fn sent(to: &str, connected: bool, acknowledged: u64) -> Value {
        json!({"to": to, "connected": connected, "last": 50, "acknowledged": acknowledged})
    }

    #[test]
    fn a_log_is_well_only_if_a_collector_has_acknowledged_what_there_was() {
        for (connected, acknowledged, words) in [
            (
                true,
                39,
                "no collector has acknowledged the log's records from 40 to 50: the relay leads to tcp:collector",
            ),
            (false, 50, "the log's stream to the collector is broken after record 50: the relay"),
            (true, 0, "no collector has acknowledged any of the log's 50 records: the relay"),
        ] {
            let lines = after(|f, _| log(&mut f.enclave, sent("vsock:3:9001", connected, acknowledged)));
            only(lines, &format!("wrong log: {words}"));
        }
        // Somebody else may carry it.
        assert_eq!(after(|_, p| p.relays.clear()), [""; 0]);
        let lost = after(|f, _| f.enclave.metrics = Some(Ok("teemark_log_lines_dropped_total 12\n".into())));
        only(lost, "warning log: a collector has the log up to record 40, and 12 records were lost before");
    }

    #[test]
    fn why_nothing_arrives_is_told_by_what_the_parent_shows() {
        let silent = |change: fn(&mut Parent)| {
            after(|f, p| {
                log(&mut f.enclave, sent("vsock:3:9001", false, 0));
                f.enclave.metrics = Some(Ok("teemark_log_lines_dropped_total 12\n".into()));
                change(p);
            })
        };
        let begin = "wrong log: no collector has acknowledged any of the log's 50 records";
        only(silent(|p| p.relays.clear()), &format!("{begin}: teemark log relay does not run; 12 records are lost"));
        only(
            silent(|p| p.relays[0].listen = "vsock:9009".into()),
            &format!("{begin}: the enclave sends it to vsock:3:9001, and the relay listens on vsock:9009"),
        );
        only(
            silent(|p| p.relays[0].reached = Err("nobody listens".into())),
            &format!("{begin}: the relay leads to tcp:collector:9002, where nobody listens"),
        );
    }

    #[test]
    fn an_image_that_sends_no_log_needs_no_relay_and_one_that_does_not_say_is_not_well() {
        let off = || sent("off", false, 0);
        assert_eq!(
            after(|f, p| {
                log(&mut f.enclave, off());
                p.relays.clear()
            }),
            [""; 0]
        );
        only(after(|f, _| log(&mut f.enclave, off())), "warning log: the image sends no log");
        only(
            after(|f, _| log(&mut f.enclave, Value::Null)),
            "warning log: a relay leads to a collector, and the enclave",
        );
        let not_asked = after(|f, p| {
            f.enclave.status = None;
            p.relays[0].reached = Err("nobody listens".into())
        });
        // Nor is its allow list then compared.
        only(not_asked[1..].to_vec(), "wrong log: the relay leads to tcp:collector:9002, where nobody listens");
    }

    #[test]
    fn a_relay_takes_what_is_sent_to_its_port() {
        for (listen, to, takes_it) in [
            ("vsock:9001", "vsock:3:9001", true),
            ("vsock:3:9001", "vsock:3:9001", true),
            ("vsock:9002", "vsock:3:9001", false),
            ("tcp:0.0.0.0:9001", "tcp:127.0.0.1:9001", true),
            ("tcp:0.0.0.0:9001", "vsock:3:9001", false),
            ("unix:/run/x", "unix:/run/x", true),
            ("?", "?", false),
        ] {
            assert_eq!(takes(listen, to), takes_it, "{listen} {to}");
        }
    }
}
