//! `teemark doctor`: the deployment checklist as one command.
//!
//! ```text
//! parent       gathers what the parent instance shows      processes  what proc(5) shows of programs and ports
//!                                                          said       the last lines of the journal and of logs
//! enclave      gathers what the enclave answers
//! facts        what was gathered
//! checks       judges it, line by line                     last_words what nitro-cli's errors mean
//! ```

mod checks;
mod enclave;
mod facts;
mod last_words;
mod parent;
mod processes;
mod said;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use formats::time::Utc;
use serde_json::{Value, json};

use self::checks::{Check, Verdict};
use self::facts::{AllowList, Facts, Found, Size};
use crate::attest::{Pcrs, Trust};
use crate::daemon::{self, Cacert};
use crate::failure::{Done, Failure};
use crate::output;
use crate::terminal::printable;
use crate::vsock_proxy::Proxied;

/// Go through the deployment checklist: each line ok, warning or wrong, with what to do.
///
/// On the parent it looks at the device, the allocator, the image, the enclave, the ports and who has them, secrets,
/// attestation, the allow list, the proxies, the service, clocks, the client certificate, the log's way out. With
/// --endpoint it looks from outside, at what the public address shows. It changes nothing. Run it as root on the parent:
/// others do not see whose ports are whose.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  sudo teemark doctor --pcrs teemark.pcrs
  sudo teemark doctor --pcrs teemark.pcrs --json | jq -r '.checks[] | select(.verdict != \"ok\") | .check'
  teemark doctor --endpoint https://files.example.com --pcrs teemark.pcrs

Exit status: 0 if nothing is wrong, also with warnings; 1 if something is; 2 if the .pcrs file or a number in parent.env
cannot be read.")]
pub(crate) struct Arguments {
    /// From outside: the public address, http://HOST:PORT or https://HOST
    #[arg(long, value_name = "URL", value_parser = daemon::endpoint)]
    endpoint: Option<String>,
    #[command(flatten)]
    cacert: Cacert,
    #[command(flatten)]
    trust: Trust,
    #[command(flatten)]
    proxied: Proxied,
    /// The keeper's own address, http://HOST:9464, if it is reached from here
    #[arg(long, value_name = "URL", value_parser = daemon::endpoint)]
    keeper: Option<String>,
    #[command(flatten)]
    parent: ParentArguments,
}

/// What is looked at on the parent, without --endpoint. What is not given comes from /etc/teemark/parent.env, as for the services.
#[derive(clap::Args)]
struct ParentArguments {
    /// The image's file [default: /usr/local/lib/teemark/teemark.eif]
    #[arg(long, value_name = "FILE", env = "ENCLAVE_EIF")]
    eif: Option<PathBuf>,
    /// The enclave's name in nitro-cli [default: teemark]
    #[arg(long, value_name = "NAME", env = "ENCLAVE_NAME")]
    name: Option<String>,
    /// The enclave's CID, instead of its name
    #[arg(long, value_name = "CID", env = "ENCLAVE_CID")]
    enclave: Option<u32>,
    /// Its memory in MiB [default: 512]
    #[arg(long, value_name = "MIB", env = "ENCLAVE_MEMORY")]
    memory: Option<u64>,
    /// Its CPUs [default: 2]
    #[arg(long, value_name = "NUMBER", env = "ENCLAVE_CPUS")]
    cpus: Option<usize>,
    /// Where the public port is exposed; empty: it is not [default: 0.0.0.0:3000]
    #[arg(long, value_name = "HOST:PORT", env = "EXPOSE_PUBLIC")]
    public: Option<String>,
    /// Where the admin port is exposed; empty: it is not [default: 127.0.0.1:3001]
    #[arg(long, value_name = "HOST:PORT", env = "EXPOSE_ADMIN")]
    admin: Option<String>,
    /// A collector's folder, for the last words of an enclave that has ended
    #[arg(long, value_name = "FOLDER")]
    logs: Option<PathBuf>,
    /// The folder that stands for the parent's /
    #[arg(long, value_name = "FOLDER", hide = true, default_value = "/")]
    parent_root: PathBuf,
}

/// Goes through the checklist.
///
/// # Errors
/// Something is wrong; the .pcrs file or a number in parent.env cannot be read.
pub(crate) fn run(arguments: &Arguments, json: bool) -> Result<Done> {
    let facts = arguments.facts()?;
    let checks = checks::all(&facts);
    let (text, objects) = (as_text(&facts, &checks), checks.iter().map(Check::to_json).collect::<Vec<_>>());
    let count = |verdict| checks.iter().filter(|check| check.verdict == verdict).count();
    let (wrong, warnings) = (count(Verdict::Wrong), count(Verdict::Warning));
    if wrong == 0 {
        return Ok(Done::new(text, json!({"checks": objects, "warnings": warnings, "wrong": wrong})));
    }
    if !json {
        output::to_stdout(text.as_bytes())?;
    }
    let failure = Failure::refused("doctor", format!("{wrong} of {} lines are wrong", checks.len()));
    Err(failure.with("checks", objects.into()).with("warnings", warnings.into()).with("wrong", wrong.into()).into())
}

impl Arguments {
    fn facts(&self) -> Result<Facts> {
        let pcrs = self.trust.pcrs.as_deref().map(Pcrs::read).transpose()?;
        let wanted = match self.endpoint {
            Some(_) => None,
            None => Some(self.parent.wanted()?),
        };
        let local = |address: &str| format!("http://{}", address.replacen("0.0.0.0", "127.0.0.1", 1));
        let address = match (&self.endpoint, &wanted) {
            (Some(endpoint), _) => endpoint.clone(),
            (None, Some(wanted)) => local(&wanted.public),
            (None, None) => unreachable!("there is no endpoint, so the parent is looked at"),
        };
        let admin = wanted.as_ref().filter(|wanted| !wanted.admin.is_empty()).map(|wanted| local(&wanted.admin));
        let enclave = enclave::look(&address, admin.as_deref(), &self.cacert, &self.trust);
        let list = allow_list(&self.proxied.endpoints);
        // The list that is in force counts: the enclave dials by it.
        let told = enclave.status.as_ref().and_then(|status| status.as_ref().ok()?["endpoints"].as_array());
        let told = told.map(|list| list.iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>());
        let names = told.or_else(|| list.as_ref().ok().map(|list| list.endpoints.clone())).unwrap_or_default();
        Ok(Facts {
            now: Utc::now(),
            parent: wanted.as_ref().map(parent::look),
            enclave,
            pcrs,
            allow_list: (self.proxied.endpoints.display().to_string(), list),
            endpoints: names.iter().map(|name| parent::place(name)).collect(),
            base_port: self.proxied.base_port,
            keeper: self.keeper.as_deref().map(|url| enclave::page(url, "/metrics")),
        })
    }
}

impl ParentArguments {
    fn wanted(&self) -> Result<parent::Wanted> {
        let settings = parent::settings(&self.parent_root);
        let setting = |name: &str| settings.get(name).cloned();
        let number = |name: &str, default: u64| -> Result<u64> {
            let wrong = |text: &str| Failure::usage(format!("{name}={text} in parent.env is not a number"));
            setting(name).map_or(Ok(default), |text| text.parse().map_err(|_| wrong(&text).into()))
        };
        let text = |given: &Option<String>, name: &str, default: &str| {
            given.clone().or_else(|| setting(name)).unwrap_or_else(|| default.to_owned())
        };
        let eif = self.eif.clone().or_else(|| setting("ENCLAVE_EIF").map(PathBuf::from));
        let cid = match self.enclave {
            Some(cid) => Some(cid),
            None => Some(number("ENCLAVE_CID", 0)?).filter(|cid| *cid > 0).map(u32::try_from).transpose()?,
        };
        Ok(parent::Wanted {
            root: self.parent_root.clone(),
            name: text(&self.name, "ENCLAVE_NAME", "teemark"),
            cid,
            eif: eif.unwrap_or_else(|| self.parent_root.join("usr/local/lib/teemark/teemark.eif")),
            size: Size {
                memory_mib: self.memory.map_or_else(|| number("ENCLAVE_MEMORY", 512), Ok)?,
                cpus: match self.cpus {
                    Some(cpus) => cpus,
                    None => usize::try_from(number("ENCLAVE_CPUS", 2)?)?,
                },
            },
            public: text(&self.public, "EXPOSE_PUBLIC", "0.0.0.0:3000"),
            admin: text(&self.admin, "EXPOSE_ADMIN", "127.0.0.1:3001"),
            logs: self.logs.clone(),
        })
    }
}

/// The allow list of a file.
fn allow_list(path: &Path) -> Found<AllowList> {
    let name = path.display().to_string();
    let text = fs::read(path).map_err(|e| format!("{name}: {e}"))?;
    let list = formats::allow_list::AllowList::parse(&name, &text).map_err(|e| e.to_string())?;
    Ok(AllowList { endpoints: list.iter().map(ToString::to_string).collect(), sha256: list.sha256() })
}

/// A line for each check, and one below it for what to do.
fn as_text(facts: &Facts, checks: &[Check]) -> String {
    let mut text = String::new();
    for Check { name, verdict, found, advice } in checks {
        let _ = writeln!(text, "{:8} {name:12} {}", verdict.name(), printable(found));
        if !advice.is_empty() {
            let _ = writeln!(text, "{:21} {}", "", printable(advice));
        }
    }
    let count = |verdict| checks.iter().filter(|check| check.verdict == verdict).count();
    let (wrong, warnings) = (count(Verdict::Wrong), count(Verdict::Warning));
    let endpoint = &facts.enclave.endpoint;
    let some = if warnings == 1 { "warning" } else { "warnings" };
    let _ = writeln!(text, "{endpoint}: {} lines, {warnings} {some}, {wrong} wrong", checks.len());
    text
}
