//! The verification checklist, line by line, as far as each can be seen from outside. What needs a shell in the enclave,
//! the modes of the certificates' files, is in the scenario `debug`.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use teemark_vm::operator;

use crate::stage::Stage;
use crate::world::{Answer, SOON, World};

/// After the first files have been served.
pub(crate) fn checklist(stage: &Stage, world: &World) -> Result<()> {
    let endpoint = operator::ENDPOINT.trim_start_matches("https://");
    let health = well(world)?;
    stage.step("checklist 1: the allow list has the endpoint", || {
        let status = world.curl("http://127.0.0.1:3001/admin/status")?.with(200)?.json()?;
        ensure!(status["endpoints"] == json!([endpoint]), "{status}");
        Ok(())
    })?;
    let said = |text: &str| world.enclave.console.wait_for(text, SOON).map(drop);
    stage.step("checklist 1: /etc/hosts has the host", || said("hosts written to /etc/hosts"))?;
    stage.step("checklist 1: the proxy is set up", || {
        ensure!(health.json()?["endpoints_status"] == json!({endpoint: true}), "{}", health.text());
        Ok(())
    })?;
    stage.step("checklist 2: the certificates are deployed", || {
        said("[RUN_SH] mTLS client certificates written to /opt/enclave/certs/")
    })?;
    stage.step("checklist 3: the endpoint is set, and one without https:// or port is refused", || {
        for wrong in ["http://watermark.internal.staging.zing.you:8080", "https://watermark.internal.staging.zing.you"]
        {
            let answer = world.handshake(json!({"ECS_WATERMARK_ENDPOINT": wrong}).to_string().as_bytes())?;
            ensure!(answer["ok"] == false && answer["field"] == "ECS_WATERMARK_ENDPOINT", "{wrong}: {answer}");
        }
        world.get("/ready")?.with(200).map(drop)
    })?;
    stage.step("checklist 4: the mTLS client exists", || said("mTLS client ready, its certificate is valid until"))?;
    stage.step("checklist 4: the health check passes", || {
        ensure!(health.status == 200 && health.json()?["watermark"] == json!({"healthy": true}), "{}", health.text());
        Ok(())
    })?;
    let calls = |code: u16| -> Result<f64> {
        let count = |route| world.metric(&format!("teemark_requests_total{{route=\"{route}\",code=\"{code}\"}}"));
        Ok(count("decrypt")? + count("decrypt_raw")?)
    };
    stage.step("checklist 4: real calls succeed", || {
        ensure!(calls(200)? >= 2.0, "{} calls", calls(200)?);
        Ok(())
    })?;
    stage.step("checklist 5: the enclave's log shows the mTLS connection", || {
        said(&format!("mTLS connection to {endpoint} established (TLSv1.3)"))
    })?;
    stage.step("checklist 5: the service's log shows it", || {
        world.parent.sh("grep 'TLS handshake: client CN=tee-client' /tmp/service.log").map(drop)
    })?;
    stage.step("checklist 5: no certificate was refused on either side", || {
        // The health check's connection to the endpoint has no TLS handshake; and a busy machine may be too
        // slow for one.
        let others = "-e 'tls handshake eof' -e 'not complete after' -e 'onnection reset'";
        let line = &format!("grep 'TLS handshake failed' /tmp/service.log | grep -v {others}");
        let failed = world.parent.run(line)?;
        ensure!(failed.status == 1, "{}", failed.text());
        let refused = world.enclave.console.find("TLS with the watermark service failed");
        ensure!(refused.is_none(), "{refused:?}");
        ensure!(calls(502)? == 0.0, "{} calls ended with 502", calls(502)?);
        Ok(())
    })
}

/// The health check's answer. A busy machine is asked again, since the daemon gives the service 2.5 seconds.
fn well(world: &World) -> Result<Answer> {
    let end = Instant::now() + SOON;
    loop {
        let health = world.get("/health_check?strict=1")?;
        if health.status == 200 || Instant::now() >= end {
            return Ok(health);
        }
        thread::sleep(Duration::from_secs(1));
    }
}
