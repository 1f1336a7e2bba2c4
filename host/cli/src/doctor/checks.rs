//! The checklist: each line is judged by a function of the facts alone.

mod log;

use std::time::Duration;

use formats::time::Utc;
use serde_json::{Value, json};

use super::facts::{Exposed, Facts, Found, Listener, Parent, Place};
use super::last_words::explain;
use super::processes::exposed_cid;
use crate::metrics::Metrics;

/// A clock that is off by this much is told, and by this much makes fresh grants fail: the daemon allows 10 s.
const DRIFT: Duration = Duration::from_secs(2);
const GRANTS_FAIL: Duration = Duration::from_secs(10);
/// A certificate that ends within this time is told, and within this one is wrong; the daemon's log warns at both.
const RENEW: Duration = Duration::from_secs(30 * 86_400);
const ENDS: Duration = Duration::from_secs(7 * 86_400);

/// How a line of the checklist is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    Ok,
    Warning,
    Wrong,
}

impl Verdict {
    pub(super) fn name(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Wrong => "wrong",
        }
    }
}

/// A line of the checklist, judged.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) verdict: Verdict,
    /// What was found.
    pub(super) found: String,
    /// What to do about it; empty if nothing.
    pub(super) advice: String,
}

impl Check {
    pub(super) fn to_json(&self) -> Value {
        json!({"check": self.name, "verdict": self.verdict.name(), "found": self.found, "do": self.advice})
    }
}

/// What was found, or what is not as it should be and what to do.
type Judged = Result<String, (Verdict, String, String)>;

fn warning(found: impl Into<String>, advice: impl Into<String>) -> Judged {
    Err((Verdict::Warning, found.into(), advice.into()))
}

fn wrong(found: impl Into<String>, advice: impl Into<String>) -> Judged {
    Err((Verdict::Wrong, found.into(), advice.into()))
}

/// All lines that the facts are about, in the order in which they depend on each other.
pub(super) fn all(facts: &Facts) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut add = |name, judged: Judged| {
        checks.push(match judged {
            Ok(found) => Check { name, verdict: Verdict::Ok, found, advice: String::new() },
            Err((verdict, found, advice)) => Check { name, verdict, found, advice },
        });
    };
    if let Some(parent) = &facts.parent {
        add("device", device(parent));
        add("allocator", allocator(parent));
        add("image", image(parent, facts));
        add("enclave", enclave(parent, facts));
        for exposed in &parent.exposed {
            add(if exposed.name == "public" { "public port" } else { "admin port" }, port(exposed, facts));
        }
    }
    add("ready", ready(facts));
    add("attestation", attestation(facts));
    add("allow list", allow_list(facts));
    if let Some(parent) = &facts.parent {
        add("proxies", proxies(parent, facts));
    }
    add("endpoints", endpoints(facts));
    add("service", service(facts));
    add("clock", clock(facts));
    if let Some(status) = &facts.enclave.status {
        add("certificate", certificate(status, facts.now));
    }
    if let Some(parent) = &facts.parent {
        add("log", log::judge(parent, facts));
    }
    if let Some(keeper) = &facts.keeper {
        add("keeper", self::keeper(keeper));
    }
    checks
}

fn device(parent: &Parent) -> Judged {
    if parent.device {
        return Ok("/dev/nitro_enclaves is there".into());
    }
    wrong(
        "/dev/nitro_enclaves is not there",
        "launch the instance with enclaves enabled (--enclave-options Enabled=true), of a type that has them; on a machine \
         that is not the parent, look from outside with --endpoint URL",
    )
}

fn allocator(parent: &Parent) -> Judged {
    let (set_aside, wanted) = (&parent.allocator, parent.wanted);
    if set_aside.memory_mib == 0 {
        return wrong(
            "no memory is set aside for enclaves",
            "systemctl enable --now nitro-enclaves-allocator; journalctl -u nitro-enclaves-allocator says why it failed",
        );
    }
    // A running enclave has its memory and CPUs already. Where it is not known whether one runs, its line says so.
    let runs = parent.enclaves.as_ref().map_or(true, |enclaves| enclaves.iter().any(|enclave| enclave.runs()));
    let memory = if runs { set_aside.memory_mib } else { set_aside.free_mib };
    if memory < wanted.memory_mib {
        return wrong(
            format!("{memory} MiB are set aside for enclaves, and ENCLAVE_MEMORY is {} (E27)", wanted.memory_mib),
            "raise memory_mib in /etc/nitro_enclaves/allocator.yaml and restart nitro-enclaves-allocator, or lower \
             ENCLAVE_MEMORY in /etc/teemark/parent.env",
        );
    }
    match set_aside.cpus {
        None => wrong(
            "the module nitro_enclaves is not loaded, so no CPUs are set aside",
            "systemctl enable --now nitro-enclaves-allocator",
        ),
        Some(cpus) if cpus < wanted.cpus => wrong(
            format!("{cpus} CPUs are set aside for enclaves, and ENCLAVE_CPUS is {} (E22)", wanted.cpus),
            "raise cpu_count in /etc/nitro_enclaves/allocator.yaml and restart nitro-enclaves-allocator; on x86, CPUs \
             come in pairs",
        ),
        Some(cpus) => Ok(format!("{} MiB and {cpus} CPUs are set aside", set_aside.memory_mib)),
    }
}

fn image(parent: &Parent, facts: &Facts) -> Judged {
    let (file, measured) = &parent.eif;
    let measured = match measured {
        Ok(measured) => measured,
        Err(why) => {
            return warning(
                format!("{file}: {why}"),
                "is it the image's file (--eif), and is nitro-cli here (dnf install aws-nitro-enclaves-cli)?",
            );
        }
    };
    let Some(pcrs) = &facts.pcrs else {
        return warning(format!("{file} is not compared"), "name the .pcrs file of the image's build with --pcrs");
    };
    if let Err(why) = pcrs.check(measured, false) {
        return wrong(
            format!("{file} is not the image of --pcrs: {why}"),
            "copy the .eif and the .pcrs file of one build; teemark attest refuses any other image",
        );
    }
    let started = facts.described().and_then(|enclave| enclave.measurements.get("PCR0")).and_then(Value::as_str);
    let debug = facts.described().is_some_and(|enclave| enclave.flags.contains("DEBUG"));
    match (started, measured.get(&0)) {
        (Some(started), Some(pcr0)) if !debug && !started.eq_ignore_ascii_case(&hex::encode(pcr0)) => warning(
            format!("{file} is the image of --pcrs, and the enclave was started from another one"),
            "systemctl restart teemark-enclave, and send its secrets again",
        ),
        _ => Ok(format!("{file} is the image of --pcrs")),
    }
}

fn enclave(parent: &Parent, facts: &Facts) -> Judged {
    let enclaves = match &parent.enclaves {
        Ok(enclaves) => enclaves,
        Err(why) => return wrong(why, "run this as root or in group ne, after: dnf install aws-nitro-enclaves-cli"),
    };
    if let Some(enclave) = facts.described() {
        let found = format!("{} runs, CID {}", enclave.enclave_name, enclave.cid);
        if enclave.flags.contains("DEBUG") {
            return warning(
                format!("{found}, in debug mode: its PCRs are zeros, and the parent reads its console"),
                "give it no real secrets; set ENCLAVE_DEBUG=0 and restart teemark-enclave",
            );
        }
        return Ok(found);
    }
    let running: Vec<String> = enclaves
        .iter()
        .filter(|enclave| enclave.runs())
        .map(|enclave| format!("{} (CID {})", enclave.enclave_name, enclave.cid))
        .collect();
    let others = running.join(", ");
    match parent.cid {
        _ if running.is_empty() => {
            let why = explain(&parent.last_words);
            let found =
                why.map_or_else(|| "no enclave is running".into(), |why| format!("no enclave is running; {why}"));
            wrong(found, "systemctl start teemark-enclave; journalctl -u teemark-enclave says how it goes")
        }
        Some(cid) => wrong(
            format!("no enclave has CID {cid}; running: {others}"),
            "an enclave has another CID after each start: leave ENCLAVE_CID and --enclave out, and it is found by its name",
        ),
        None if enclaves.iter().any(|enclave| enclave.runs() && enclave.enclave_name == parent.name) => wrong(
            format!("several enclaves are named {}: {others}", parent.name),
            "end one of them (nitro-cli terminate-enclave --enclave-id), or say which with --enclave CID",
        ),
        None => wrong(
            format!("no enclave named {} is running; running: {others}", parent.name),
            "set ENCLAVE_NAME, or start it: systemctl start teemark-enclave",
        ),
    }
}

fn port(exposed: &Exposed, facts: &Facts) -> Judged {
    let Exposed { name, address, listener } = exposed;
    let process = match listener {
        Listener::Nobody => {
            return wrong(
                format!("nobody listens on {address}"),
                "systemctl start teemark-expose; journalctl -u teemark-expose says why it ended",
            );
        }
        Listener::Unseen => {
            return warning(format!("who listens on {address} cannot be seen"), "run this as root");
        }
        Listener::Process(process) => process,
    };
    let Some(cid) = exposed_cid(&process.words) else {
        let program = process.words.first().map_or("?", String::as_str);
        return wrong(
            format!("{address} is taken by {program} (process {}), which does not lead to the enclave", process.number),
            format!("end it, or set EXPOSE_{} in /etc/teemark/parent.env to another port", name.to_uppercase()),
        );
    };
    match facts.described() {
        Some(enclave) if enclave.cid != cid => wrong(
            format!("{address} leads to CID {cid}, and the enclave has CID {}", enclave.cid),
            "systemctl restart teemark-expose: an enclave has another CID after each start",
        ),
        _ => Ok(format!("{address} leads to CID {cid}")),
    }
}

fn ready(facts: &Facts) -> Judged {
    let (is_ready, answer) = match &facts.enclave.ready {
        Ok(answer) => answer,
        Err(why) => {
            let advice =
                "see the lines above: the enclave, the public port; nitro-cli console shows a debug enclave's start";
            let outside = "is the address right, does the security group admit this machine, does the enclave run?";
            return wrong(why, if facts.parent.is_some() { advice } else { outside });
        }
    };
    if *is_ready {
        return Ok("it serves files".into());
    }
    let text = |name: &str| answer[name].as_str().map(|why| format!("{name}: {why}"));
    let missing: Vec<&str> = answer["missing"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !missing.is_empty() {
        return wrong(
            format!("secrets are missing: {}", missing.join(", ")),
            "seal them with teemark secrets and send them, or look at the keeper's log; a restarted enclave has lost them",
        );
    }
    if let Some(why) = text("client_certificate") {
        return wrong(why, "send another client certificate with teemark secrets");
    }
    if let Some(why) = text("clock") {
        return wrong(why, "terminate the enclave and start it anew; if it happens again, stop and start the instance");
    }
    if let Some(why) = text("audit") {
        return wrong(why, "mend the log's collector or relay, see below; TEEMARK_AUDIT=required waits for them");
    }
    if answer["draining"] == true {
        return wrong("it is drained", "/usr/local/libexec/teemark/drain.sh --back puts it back into service");
    }
    if let Some(state) = answer["complete_at"].as_str() {
        return wrong(format!("more bundles are to come, up to state {state}"), "send the rest of them");
    }
    wrong("/ready is 503", "ask /ready what is missing")
}

fn attestation(facts: &Facts) -> Judged {
    match &facts.enclave.attested {
        Some(Ok(attested)) if attested.in_debug_mode() => warning(
            "the enclave's registers are zeros: nothing is proven about its code",
            "for anything but a trial, start the image without debug mode, on an instance with a Nitro Secure Module",
        ),
        Some(Ok(_)) if facts.enclave.unproven.is_some() => warning(
            format!("{} proves nothing about the enclave", facts.enclave.unproven.unwrap_or_default()),
            "for anything but a trial, name the .pcrs file alone",
        ),
        Some(Ok(attested)) => Ok(format!("module {} vouches for the image of --pcrs", attested.module_id)),
        Some(Err(why)) => wrong(
            why,
            "give it no secrets; is the .pcrs file from the build of the image that runs, and is this its address?",
        ),
        None => warning("not attested", "name the .pcrs file of the image's build with --pcrs"),
    }
}

fn allow_list(facts: &Facts) -> Judged {
    let (file, here) = &facts.allow_list;
    let there = facts.enclave.status.as_ref().and_then(|status| status.as_ref().ok());
    let there: Option<Vec<&str>> =
        there.and_then(|status| Some(status["endpoints"].as_array()?.iter().filter_map(Value::as_str).collect()));
    let here = match here {
        Ok(here) => here,
        Err(why) => return warning(why, "name the image's allow list with --endpoints, to compare it"),
    };
    let advice = "copy the allowed_endpoints.yaml that the image was built from, print vsock-proxy.yaml and vsock-proxy.env \
                  anew with teemark vsock-proxy, and restart the proxies; or build and deploy the image with this one";
    let differs = |what: String| wrong(format!("{file} is not the enclave's allow list: {what}"), advice);
    // What is attested counts before what is only told.
    match (&facts.enclave.attested, there) {
        (_, Some(there)) if there != here.endpoints => {
            differs(format!("it has {}, and the enclave has {}", here.endpoints.join(", "), there.join(", ")))
        }
        (Some(Ok(attested)), _) if attested.allow_list_sha256 != here.sha256 => differs(format!(
            "its SHA-256 is {}, and {} is attested",
            hex::encode(here.sha256),
            hex::encode(attested.allow_list_sha256)
        )),
        (Some(Ok(_)), _) => Ok(format!("{file} is the attested one")),
        (_, Some(_)) => Ok(format!("{file} matches the list that the enclave reports")),
        (_, None) => warning(
            format!("{file} is not compared: the enclave neither attests its allow list nor tells of it"),
            "fix the problems above first",
        ),
    }
}

fn proxies(parent: &Parent, facts: &Facts) -> Judged {
    let mut faults = Vec::new();
    let (mut down, mut moved) = (Vec::new(), false);
    for (port, endpoint) in (facts.base_port..).zip(&facts.endpoints) {
        let here: Vec<_> = parent.proxies.iter().filter(|proxy| proxy.port == port).collect();
        if here.is_empty() {
            down.push(port);
            faults.push(format!("nothing runs for vsock port {port}, which leads to {}", endpoint.name));
        }
        for proxy in here.iter().filter(|proxy| !proxy.to.is(endpoint)) {
            moved |= facts.endpoints.iter().any(|other: &Place| other.is(&proxy.to));
            let (to, process) = (&proxy.to.name, proxy.process);
            faults.push(format!("vsock port {port} leads to {to} and not to {} (process {process})", endpoint.name));
        }
    }
    if facts.endpoints.is_empty() {
        return warning("no allow list is known", "name the image's allow list with --endpoints");
    }
    let units =
        |ports: &[u32]| ports.iter().map(|port| format!("teemark-vsock-proxy@{port}")).collect::<Vec<_>>().join(" ");
    match (faults.is_empty(), moved) {
        (true, _) => Ok(format!("{} in the order of the allow list", facts.endpoints.len())),
        (false, true) => wrong(
            format!("the proxies are in another order than the allow list: {}", faults.join("; ")),
            "teemark vsock-proxy --format environment | sudo tee /etc/teemark/vsock-proxy.env, from the image's list; then \
             systemctl restart 'teemark-vsock-proxy@*'",
        ),
        (false, false) if down.is_empty() => {
            wrong(faults.join("; "), "print vsock-proxy.env anew with teemark vsock-proxy, and restart the proxies")
        }
        (false, false) => wrong(faults.join("; "), format!("systemctl enable --now {}", units(&down))),
    }
}

fn endpoints(facts: &Facts) -> Judged {
    let health = match &facts.enclave.health {
        Ok(health) => health,
        Err(why) => return wrong(why, "fix the problems above first"),
    };
    let status = health["endpoints_status"].as_object();
    let unreached: Vec<&str> =
        status.into_iter().flatten().filter(|(_, reached)| **reached != true).map(|(name, _)| name.as_str()).collect();
    match (status.map_or(0, serde_json::Map::len), unreached.as_slice()) {
        (0, _) => warning("/health_check names no endpoint yet", "ask again in some seconds"),
        (number, []) => Ok(format!("the enclave reaches {number} of {number}")),
        (_, unreached) => wrong(
            format!("the enclave does not reach {}", unreached.join(", ")),
            "is its vsock-proxy running, does vsock-proxy.yaml allow the host, and does the host listen?",
        ),
    }
}

fn service(facts: &Facts) -> Judged {
    let service = match &facts.enclave.health {
        Ok(health) => &health["watermark"],
        Err(why) => return wrong(why, "fix the problems above first"),
    };
    if service["healthy"] == true {
        return Ok("the watermark service is healthy".into());
    }
    match service["error"].as_str() {
        Some(why) => wrong(format!("the watermark service: {why}"), "docs/TROUBLE.md has a row for each fault of TLS"),
        None => wrong(
            "the watermark service answers /health with an error, such as 503",
            "the way to it works, TLS too: see the service's own log",
        ),
    }
}

fn clock(facts: &Facts) -> Judged {
    let ahead = match &facts.enclave.ahead_ms {
        Ok(ahead) => *ahead,
        Err(why) => return warning(format!("the clocks are not compared: {why}"), "fix the problems above first"),
    };
    let off = Duration::from_millis(ahead.unsigned_abs());
    let (seconds, side) = (off.as_secs(), if ahead > 0 { "behind" } else { "ahead of" });
    let advice = "set this machine's clock: chronyc tracking; on EC2, chrony asks 169.254.169.123";
    // What the enclave found when it last compared its clock with the module's.
    let metrics = facts.enclave.metrics.as_ref().and_then(|metrics| metrics.as_ref().ok());
    let drift = metrics.and_then(|text| Metrics::parse(text).value("teemark_clock_drift_seconds"));
    if off > GRANTS_FAIL {
        return wrong(
            format!("this machine's clock is {seconds} s {side} the enclave's module; grants that are made here fail"),
            advice,
        );
    }
    match drift {
        Some(drift) if drift.abs() > GRANTS_FAIL.as_secs_f64() => wrong(
            format!(
                "the enclave's clock was {:.1} s {} its module's when they were last compared",
                drift.abs(),
                if drift > 0.0 { "ahead of" } else { "behind" }
            ),
            "it sets its clock each minute: ask again in a minute, or restart the enclave",
        ),
        _ if off > DRIFT => warning(format!("this machine's clock is {seconds} s {side} the enclave's module"), advice),
        _ => Ok(format!("within {} s of the enclave's module", DRIFT.as_secs())),
    }
}

fn certificate(status: &Found<Value>, now: Utc) -> Judged {
    let status = match status {
        Ok(status) => status,
        Err(why) => return warning(why, "expose the admin port on the parent, at EXPOSE_ADMIN"),
    };
    let renew = "make a new one (certs/make-certs.sh --client-only --force) and send it with teemark secrets";
    match status["client_certificate"].as_str() {
        None => return wrong("there is no client certificate", "send one with teemark secrets"),
        Some("valid") => {}
        Some(fault) => return wrong(fault, renew),
    }
    let told = status["client_certificate_expires"].as_str().unwrap_or_default();
    let Some(ends) = Utc::parse(told) else {
        return warning(format!("it is not known when the client certificate expires: {told:?}"), "update teemark");
    };
    let left = Duration::from_secs(ends.0.saturating_sub(now.0));
    let found = format!("the client certificate expires in {} days, at {ends}", left.as_secs() / 86_400);
    match left {
        _ if left < ENDS => wrong(found, renew),
        _ if left < RENEW => warning(found, renew),
        _ => Ok(found),
    }
}

fn keeper(metrics: &Found<String>) -> Judged {
    let metrics = match metrics {
        Ok(text) => Metrics::parse(text),
        Err(why) => return wrong(why, "is the keeper running, and does it listen where this machine reaches it?"),
    };
    let enclaves = metrics.by("teemark_keeper_enclave_current", "enclave");
    let (current, behind): (Vec<&str>, Vec<&str>) = enclaves.keys().partition(|name| enclaves[**name] == 1.0);
    match (current.len(), behind.as_slice()) {
        (0, []) => wrong("the keeper watches no enclave", "name its addresses in enclaves.urls of keeper.toml"),
        (number, []) => Ok(format!("{number} enclaves have everything that the keeper's sources have")),
        (_, behind) => wrong(
            format!("the keeper could not bring up to date: {}", behind.join(", ")),
            "journalctl -u teemark-keeper says why: not_attested, not_confirmed, held, no_place",
        ),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use formats::digest::sha256;

    use super::super::facts::{Allocator, AllowList, Described, Enclave, Process, Proxy, Relay, Size};
    use super::*;

    const DAY: u64 = 86_400;
    const NOW: Utc = Utc(1_800_000_000);

    fn place(name: &str) -> Place {
        Place { name: name.into(), addresses: vec![] }
    }

    fn described(name: &str, cid: u32, flags: &str) -> Described {
        let (enclave_name, state, flags) = (name.into(), "RUNNING".into(), flags.into());
        Described { enclave_name, cid, state, flags, measurements: Default::default() }
    }

    fn exposed(name: &'static str, line: &str) -> Exposed {
        let process = Process { number: 7, words: line.split(' ').map(str::to_owned).collect() };
        Exposed { name, address: "127.0.0.1:3000".into(), listener: Listener::Process(process) }
    }

    fn status(ends: u64) -> Value {
        json!({
            "client_certificate": "valid",
            "client_certificate_expires": Utc(NOW.0 + ends).to_string(),
            "endpoints": ["a.example:443", "b.example:443"],
            "log": {"to": "vsock:3:9001", "connected": true, "last": 50, "acknowledged": 40},
        })
    }

    /// A deployment on which nothing is wrong, but that nobody said which image is expected.
    fn well() -> Facts {
        let names = ["a.example:443", "b.example:443"];
        let proxies = [8101, 8102].into_iter().zip(names).map(|(port, to)| Proxy { port, to: place(to), process: 8 });
        let parent = Parent {
            device: true,
            allocator: Allocator { memory_mib: 512, free_mib: 0, cpus: Some(2) },
            wanted: Size { memory_mib: 512, cpus: 2 },
            eif: ("teemark.eif".into(), Ok([(0, vec![1; 48])].into())),
            name: "teemark".into(),
            cid: None,
            enclaves: Ok(vec![described("teemark", 16, "NONE"), described("other", 17, "NONE")]),
            last_words: vec![],
            exposed: vec![exposed("public", "teemark expose --enclave 16")],
            proxies: proxies.collect(),
            relays: vec![Relay { listen: "vsock:9001".into(), to: "tcp:collector:9002".into(), reached: Ok(()) }],
        };
        let enclave = Enclave {
            endpoint: "http://127.0.0.1:3000".into(),
            ready: Ok((true, json!({"ready": true, "missing": []}))),
            health: Ok(json!({"endpoints_status": {"a.example:443": true}, "watermark": {"healthy": true}})),
            status: Some(Ok(status(90 * DAY))),
            logged: 40,
            metrics: Some(Ok("teemark_clock_drift_seconds 0.2\nteemark_log_lines_dropped_total 0\n".into())),
            attested: None,
            unproven: None,
            ahead_ms: Ok(0),
        };
        let list = AllowList { endpoints: names.map(str::to_owned).to_vec(), sha256: sha256(b"") };
        Facts {
            now: NOW,
            parent: Some(parent),
            enclave,
            pcrs: None,
            allow_list: ("allowed_endpoints.yaml".into(), Ok(list)),
            endpoints: names.map(place).to_vec(),
            base_port: 8101,
            keeper: None,
        }
    }

    /// The lines that are not ok once this was changed, without the two of an image that nobody named.
    pub(super) fn after(change: impl FnOnce(&mut Facts, &mut Parent)) -> Vec<String> {
        let mut facts = well();
        let mut parent = facts.parent.take().unwrap();
        change(&mut facts, &mut parent);
        facts.parent = Some(parent);
        let lines = all(&facts).into_iter().filter(|check| check.verdict != Verdict::Ok);
        let lines = lines.filter(|check| !["image", "attestation"].contains(&check.name));
        lines.map(|check| format!("{} {}: {}", check.verdict.name(), check.name, check.found)).collect()
    }

    #[track_caller]
    pub(super) fn only(lines: Vec<String>, begins: &str) {
        assert!(lines.len() == 1 && lines[0].starts_with(begins), "{begins}: {lines:#?}");
    }

    #[test]
    fn what_is_well_is_ok_and_an_image_that_nobody_named_is_a_warning() {
        assert_eq!(after(|_, _| {}), [""; 0]);
        let warned: Vec<_> =
            all(&well()).into_iter().filter(|c| c.verdict == Verdict::Warning).map(|c| c.name).collect();
        assert_eq!(warned, ["image", "attestation"]);
    }

    #[test]
    fn what_is_set_aside_has_to_be_enough_and_free_only_where_no_enclave_runs() {
        only(after(|_, p| p.wanted.memory_mib = 513), "wrong allocator: 512 MiB are set aside");
        only(
            after(|_, p| p.wanted.cpus = 4),
            "wrong allocator: 2 CPUs are set aside for enclaves, and ENCLAVE_CPUS is 4",
        );
        only(after(|_, p| p.allocator.cpus = None), "wrong allocator: the module nitro_enclaves is not loaded");
        let lines = after(|_, p| p.enclaves = Ok(vec![]));
        assert!(lines[0].starts_with("wrong allocator: 0 MiB") && lines[1].starts_with("wrong enclave"), "{lines:#?}");
    }

    #[test]
    fn the_enclave_that_is_meant_is_the_one_of_the_name_or_the_cid() {
        only(
            after(|_, p| p.enclaves.as_mut().unwrap()[0].flags = "DEBUG_MODE".into()),
            "warning enclave: teemark runs",
        );
        let twice = after(|_, p| p.enclaves.as_mut().unwrap()[1].enclave_name = "teemark".into());
        only(twice, "wrong enclave: several enclaves are named teemark: teemark (CID 16), teemark (CID 17)");
        only(after(|_, p| p.name = "none".into()), "wrong enclave: no enclave named none is running");
        only(after(|_, p| p.cid = Some(18)), "wrong enclave: no enclave has CID 18");
        only(
            after(|_, p| p.cid = Some(17)),
            "wrong public port: 127.0.0.1:3000 leads to CID 16, and the enclave has CID 17",
        );
        only(after(|_, p| p.enclaves = Err("nitro-cli is not here".into())), "wrong enclave: nitro-cli is not here");
    }

    #[test]
    fn a_port_is_nobodys_somebodys_or_not_known() {
        only(after(|_, p| p.exposed[0].listener = Listener::Nobody), "wrong public port: nobody listens");
        only(after(|_, p| p.exposed[0].listener = Listener::Unseen), "warning public port: who listens");
        let taken = after(|_, p| p.exposed[0] = exposed("public", "nginx: master"));
        only(taken, "wrong public port: 127.0.0.1:3000 is taken by nginx: (process 7)");
    }

    #[test]
    fn what_ready_lacks_is_told() {
        for (answer, found) in [
            (json!({"missing": ["FILE_KEYS"]}), "secrets are missing: FILE_KEYS"),
            (json!({"missing": [], "client_certificate": "expired"}), "client_certificate: expired"),
            (json!({"missing": [], "clock": "is off"}), "clock: is off"),
            (json!({"missing": [], "draining": true}), "it is drained"),
            (json!({"missing": [], "complete_at": "ab"}), "more bundles are to come, up to state ab"),
            (json!({}), "/ready is 503"),
        ] {
            only(after(|f, _| f.enclave.ready = Ok((false, answer))), &format!("wrong ready: {found}"));
        }
    }

    #[test]
    fn a_proxy_that_leads_elsewhere_is_named_and_one_by_another_name_of_the_same_place_is_not() {
        only(
            after(|_, p| p.proxies[1].to = place("c.example:443")),
            "wrong proxies: vsock port 8102 leads to c.example",
        );
        let same = [([10, 0, 0, 1], 443).into()];
        let by_address = after(|f, p| {
            p.proxies[1].to = Place { name: "10.0.0.1:443".into(), addresses: same.to_vec() };
            f.endpoints[1].addresses = same.to_vec();
        });
        assert_eq!(by_address, [""; 0]);
        only(after(|_, p| p.proxies.truncate(1)), "wrong proxies: nothing runs for vsock port 8102");
    }

    #[test]
    fn a_clock_is_told_from_two_seconds_on_and_is_wrong_from_ten() {
        for (ahead, line) in [
            (2_000, None),
            (-2_001, Some("warning clock: this machine's clock is 2 s ahead of the enclave's module")),
            (9_000, Some("warning clock: this machine's clock is 9 s behind")),
            (-60_000, Some("wrong clock: this machine's clock is 60 s ahead of")),
        ] {
            let lines = after(|f, _| f.enclave.ahead_ms = Ok(ahead));
            line.map_or_else(|| assert!(lines.is_empty(), "{lines:?}"), |line| only(lines.clone(), line));
        }
        let drifted = after(|f, _| f.enclave.metrics = Some(Ok("teemark_clock_drift_seconds -11.5\n".into())));
        only(drifted, "wrong clock: the enclave's clock was 11.5 s behind its module's");
    }

    #[test]
    fn a_certificate_is_told_from_30_days_on_and_is_wrong_from_7() {
        for (ends, line) in [
            (30 * DAY, None),
            (30 * DAY - 1, Some("warning certificate: the client certificate expires in 29 days")),
            (7 * DAY, Some("warning certificate: the client certificate expires in 7 days")),
            (7 * DAY - 1, Some("wrong certificate: the client certificate expires in 6 days")),
        ] {
            let lines = after(|f, _| f.enclave.status = Some(Ok(status(ends))));
            line.map_or_else(|| assert!(lines.is_empty(), "{lines:?}"), |line| only(lines.clone(), line));
        }
        for (fault, line) in [
            (json!({"client_certificate": "expired at …"}), "wrong certificate: expired at …"),
            (json!({}), "wrong certificate: there is no client certificate"),
            (
                json!({"client_certificate": "valid", "client_certificate_expires": "soon"}),
                "warning certificate: it is not known",
            ),
        ] {
            let facts = Facts { enclave: Enclave { status: Some(Ok(fault)), ..well().enclave }, ..well() };
            let check = all(&facts).into_iter().find(|check| check.name == "certificate").unwrap();
            assert!(format!("{} certificate: {}", check.verdict.name(), check.found).starts_with(line), "{check:?}");
        }
    }

    #[test]
    fn a_keepers_metrics_say_which_enclave_it_could_not_bring_up_to_date() {
        let current =
            |value: u8| format!("teemark_keeper_enclave_current{{enclave=\"http://10.0.0.{value}:3000\"}} {value}\n");
        assert!(keeper(&Ok(current(1))).is_ok());
        let (verdict, found, _) = keeper(&Ok(current(1) + &current(0))).unwrap_err();
        assert!(verdict == Verdict::Wrong && found.ends_with("up to date: http://10.0.0.0:3000"), "{found}");
        assert!(keeper(&Ok(String::new())).is_err() && keeper(&Err("down".into())).is_err());
    }
}
