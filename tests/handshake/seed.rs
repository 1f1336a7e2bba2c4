//! The seed's commands exactly as in IMPLEMENTATION_CHECKLIST.md, steps 1 and 2; only socat's address differs, since a
//! test's daemon has no CID.

use std::fs;

use super::*;

/// Step 1: the client's key and certificate, where ca.crt and ca.key are.
const STEP_1: &str = r#"# 1. 生成客户端私钥
openssl genrsa -out client.key 2048

# 2. 生成客户端证书签名请求
openssl req -new -key client.key -out client.csr \
  -subj "/CN=tee-client/O=Zing"

# 3. 使用 CA 签发客户端证书
openssl x509 -req -in client.csr \
  -CA ca.crt \
  -CAkey ca.key \
  -CAcreateserial \
  -out client.crt \
  -days 365 \
  -extensions v3_ext \
  -extfile <(echo "[v3_ext]"; echo "keyUsage=digitalSignature,keyEncipherment"; echo "extendedKeyUsage=clientAuth")

# 4. 验证证书
openssl x509 -in client.crt -text -noout
"#;

/// Step 2, option B: the bundle.
const HEREDOC: &str = r#"# 创建证书 JSON
cat > mtls_certs.json <<EOF
{
  "MTLS_CLIENT_CERT_JSON": "{\"client_cert\":\"$(cat client.crt | base64 -w 0)\",\"client_key\":\"$(cat client.key | base64 -w 0)\",\"ca_cert\":\"$(cat ecs-ca.crt | base64 -w 0)\"}",
  "ECS_WATERMARK_ENDPOINT": "https://watermark.internal.staging.zing.you:8080"
}
EOF
"#;

/// Step 2, option B: the handshake.
const SEND: &str = "cat mtls_certs.json | socat - VSOCK-CONNECT:$ENCLAVE_CID:7777\n";

/// The seed's steps against a daemon with the shipped allow list; `to` gives socat's address in place of VSOCK-CONNECT.
fn delivers(setup: impl FnOnce(Setup) -> Setup, to: impl FnOnce(&Daemon) -> String) {
    let certs = Certs::with_root();
    let service = Service::start(&certs, &[]);
    let mut plan = setup(Setup::new(service.port));
    plan.allowed = fs::read_to_string(repository().join("allowed_endpoints.yaml")).unwrap()
        + &format!("  - localhost:{}\n", service.port);
    let daemon = plan.start();

    let shown = certs.shell(STEP_1);
    assert!(shown.contains("TLS Web Client Authentication"), "{shown}");
    certs.shell(HEREDOC);
    let send = SEND.replace("VSOCK-CONNECT:$ENCLAVE_CID:7777", &to(&daemon));
    assert_ne!(send, SEND);
    // socat waits half a second for the answer after its own end of file, which may be too short on a loaded machine.
    let answer = wait_for("an answer within socat's patience", || Some(certs.shell(&send)).filter(|a| !a.is_empty()));
    assert_eq!(answer.matches('\n').count(), 1);
    let updated = ["MTLS_CLIENT_CERT_JSON", "ECS_WATERMARK_ENDPOINT"];
    assert_eq!(
        serde_json::from_str::<Value>(&answer).unwrap(),
        json!({"ok": true, "updated": updated, "ignored": [], "warnings": [], "missing": ["FILE_KEYS"]})
    );

    // A test cannot reach the staging host: the local service proves the certificates that the seed's bundle brought.
    let mut here = bundle(service.port, Value::Null);
    here.as_object_mut().unwrap().remove("MTLS_CLIENT_CERT_JSON");
    certs.shell(&format!("cat > mtls_certs.json <<'EOF'\n{here}\nEOF"));
    wait_for("an answer within socat's patience", || Some(certs.shell(&send)).filter(|a| a.contains("\"ok\":true")));
    assert_eq!(decrypts(&daemon), 200);
    assert_eq!(serials(&service, 1), [certs.serial("client")]);
    assert_eq!(service.count("TLS handshake: client CN=tee-client, "), 1);
}

#[test]
fn the_seeds_lines_deliver_certificates_over_a_unix_socket() {
    delivers(|setup| setup, |daemon| format!("UNIX-CONNECT:{}", daemon.secrets.display()));
}

#[test]
fn the_seeds_lines_deliver_certificates_over_tcp() {
    delivers(
        |setup| setup.env("TEEMARK_SECRETS", "tcp:127.0.0.1:0"),
        |daemon| {
            let log = daemon.process.log();
            let port = log.lines().find_map(|line| line.split_once("secrets: listening on tcp:127.0.0.1:")).unwrap().1;
            format!("TCP:127.0.0.1:{port}")
        },
    );
}

#[test]
fn these_lines_are_the_seeds() {
    // The seed is beside the repository where teemark is built, not in a clone of it.
    let seed = repository().join("../shared/seed/IMPLEMENTATION_CHECKLIST.md");
    let Ok(text) = fs::read_to_string(&seed) else {
        return eprintln!("not compared: {} is not here", seed.display());
    };
    for lines in [STEP_1, HEREDOC, SEND] {
        assert!(text.contains(lines), "the seed has no\n{lines}");
    }
}
