//! `teemark doctor` on the parent, beside a booted enclave: whole, and with what can break there.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use formats::time::Utc;
use serde_json::Value;
use teemark_vm::{operator, qemu};

use crate::stage::Stage;
use crate::workshop::Workshop;
use crate::world::{SOON, World};

/// What a virtual machine lacks: a device and memory for enclaves, an image on the parent, a module by which the enclave
/// could prove anything, and a clock that somebody keeps: under emulation it is soon off.
const LACKING: [&str; 5] = ["device", "allocator", "image", "attestation", "clock"];

pub(crate) fn what_is_broken_on_the_parent_is_named_and_nothing_else(stage: &Stage, workshop: &Workshop) -> Result<()> {
    // The clock is compared with the document's time. Stock QEMU has no module that makes one.
    let world = match qemu::nitro() {
        Some(_) => World::boot(stage, workshop, workshop.baked()?, 128)?,
        None => World::boot(stage, workshop, &workshop.baked_with_test_nsm()?.taken_apart(), 128)?,
    };
    world.enclave.console.wait_for("teemarkd::boot: ready", teemark_vm::BOOT)?;
    let parent = &world.parent;
    let list = fs::read(teemark_vm::repository().join("allowed_endpoints.yaml"))?;
    parent.put("/tmp/allowed_endpoints.yaml", &list)?;
    parent.sh("teemark keygen --for collector --output /tmp/collector.key >/tmp/collector.pub")?;
    let collect = "teemark log collect --listen tcp:127.0.0.1:9002 --into /tmp/logs --key /tmp/collector.key";
    let relay = "teemark log relay --to tcp:127.0.0.1:9002";
    parent.start("collect", collect, "keeps records in")?;
    parent.start("relay", relay, "leads to")?;
    stage.step("all is ok but for what a virtual machine lacks", || {
        let (told, status) = doctor(&world, "")?;
        let lines = told["checks"].as_array().context("no checks")?;
        let rest: Vec<&Value> =
            lines.iter().filter(|line| !LACKING.map(Value::from).contains(&line["check"])).collect();
        ensure!(rest.len() == 10 && rest.iter().all(|line| line["verdict"] == "ok"), "{rest:#?}");
        ensure!(status == 1, "the device is missing, and the status is {status}");
        Ok(())
    })?;
    stage.step("a proxy that is down", || {
        operator::stop_proxy(parent)?;
        named(&world, "", &[("proxies", "nothing runs for vsock port 8101"), ("endpoints", "does not reach")])?;
        operator::start_proxy(parent)
    })?;
    stage.step("a service that answers 503", || {
        parent.stop("service")?;
        let files = format!("--cert {0}/server.crt --key {0}/server.key --client-ca {0}/ca.crt", operator::CERTS);
        let serve = format!("watermark-service serve --listen 127.0.0.1:8080 {files} --fault unhealthy");
        parent.start("service", &serve, "listening on")?;
        named(&world, "", &[("service", "answers /health with an error, such as 503")])?;
        parent.stop("service")?;
        operator::start_service(parent)
    })?;
    stage.step("a clock that is off by ten minutes", || {
        parent.sh(&format!("date -s @{}", Utc::now().0 + 600))?;
        let (told, _) = doctor(&world, "")?;
        let clock = line(&told, "clock")?;
        let found = clock["found"].as_str().unwrap_or_default();
        ensure!(clock["verdict"] == "wrong" && found.contains("s ahead of the enclave's module"), "{clock}");
        Ok(())
    })?;
    stage.step("a wrong CID", || named(&world, "--enclave 17", &[("enclave", "no enclave has CID 17")]))?;
    stage.step("a log without a relay, and with one and no collector", || {
        parent.stop("relay")?;
        named(&world, "", &[("log", "teemark log relay does not run")])?;
        parent.start("relay", relay, "leads to")?;
        parent.stop("collect")?;
        named(&world, "", &[("log", "the relay leads to tcp:127.0.0.1:9002")])
    })?;
    stage.step("a port that another program has", || {
        parent.stop("expose")?;
        parent.wait_until("! netstat -lnt | grep -q ':3000 '", SOON)?;
        parent.start("other", "socat -d -d TCP-LISTEN:3000,fork,reuseaddr SYSTEM:true", "listening on")?;
        let (told, _) = doctor(&world, "")?;
        let port = line(&told, "public port")?;
        ensure!(port["found"].as_str().is_some_and(|found| found.contains("is taken by socat")), "{port}");
        Ok(())
    })?;
    Ok(())
}

/// What the doctor tells on the parent, and its exit status.
fn doctor(world: &World, arguments: &str) -> Result<(Value, i32)> {
    let output = world.parent.run(&format!("cd /tmp && teemark doctor --development --json {arguments}"))?;
    let told = serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
    Ok((told, output.status))
}

fn line<'a>(told: &'a Value, check: &str) -> Result<&'a Value> {
    let mut lines = told["checks"].as_array().into_iter().flatten();
    lines.find(|line| line["check"] == check).with_context(|| format!("no line {check}: {told}"))
}

/// Waits until exactly these lines, besides what is lacking anyway, are not ok, and checks their words. A health check is
/// kept for 5 s.
fn named(world: &World, arguments: &str, expected: &[(&str, &str)]) -> Result<()> {
    let end = Instant::now() + SOON;
    loop {
        let (told, _) = doctor(world, arguments)?;
        let lines = told["checks"].as_array().context("no checks")?;
        let faulty: Vec<&str> = lines
            .iter()
            .filter(|line| line["verdict"] != "ok")
            .filter_map(|line| line["check"].as_str())
            .filter(|name| !LACKING.contains(name))
            .collect();
        if expected.iter().all(|(check, _)| faulty.contains(check)) && faulty.iter().all(|f| allowed(f, expected)) {
            for (check, words) in expected {
                let found = line(&told, check)?["found"].as_str().unwrap_or_default().to_owned();
                ensure!(found.contains(words), "{check}: {found}");
            }
            return Ok(());
        }
        ensure!(Instant::now() < end, "expected {expected:?}, and found {faulty:?} in {told}");
        sleep(Duration::from_secs(1));
    }
}

/// Whether a line may be faulty where these are: a service behind a proxy that is down cannot be asked either.
fn allowed(line: &str, expected: &[(&str, &str)]) -> bool {
    let is_expected = |name: &str| expected.iter().any(|(check, _)| *check == name);
    is_expected(line) || line == "service" && is_expected("endpoints")
}
