//! What is refused: the field and the reason are named, and nothing changes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;
use support::openssl::*;

const CERTIFICATE: &str = "MTLS_CLIENT_CERT_JSON.client_cert";
const PRIVATE_KEY: &str = "MTLS_CLIENT_CERT_JSON.client_key";
const AUTHORITY: &str = "MTLS_CLIENT_CERT_JSON.ca_cert";

/// A bundle's bytes, the field that its refusal names, and words of the reason.
type Case = (Vec<u8>, &'static str, &'static str);

/// The files of TEEMARK_CERTS: content, mode, and which file it is (a new one has another inode).
fn files(daemon: &Daemon) -> BTreeMap<String, (Vec<u8>, u32, u64)> {
    let entries = fs::read_dir(daemon.folder.path().join("certs")).unwrap().map(Result::unwrap);
    let seen = entries.map(|entry| {
        let data = entry.metadata().unwrap();
        let content = fs::read(entry.path()).unwrap();
        (entry.file_name().into_string().unwrap(), (content, data.permissions().mode(), data.ino()))
    });
    seen.collect()
}

/// Sends each case to a running daemon. Each must be refused as it says, and afterwards everything must be as it was.
fn are_refused(cases: impl FnOnce(u16) -> Vec<Case>) {
    let certs = &*CERTS;
    let service = Service::start(certs, &[]);
    let daemon = Setup::new(service.port).start();
    let first = client(certs, "client");
    accepted(&daemon, &bundle(service.port, first));
    assert_eq!(decrypts(&daemon), 200);
    let before = files(&daemon);
    assert_eq!(before.len(), 3);

    let cases = cases(service.port);
    for (bytes, field, reason) in &cases {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]);
        let answer = daemon.handshake(bytes);
        let error = answer["error"].as_str().unwrap_or_default();
        assert_eq!(answer, json!({"ok": false, "field": field, "error": error}), "{shown}");
        assert!(error.contains(reason), "{error:?} lacks {reason:?}: {shown}");
        assert!(daemon.process.has_logged(format!("handshake refused, nothing changed: {field}: {error}")));
        assert!(files(&daemon) == before, "files changed after {shown}");
        assert_eq!(decrypts(&daemon), 200, "after {shown}");
    }
    assert_eq!(daemon.metric("teemark_handshakes_refused_total"), as_metric(cases.len()));
    let old = certs.serial("client");
    assert!(serials(&service, cases.len() + 1).iter().all(|serial| *serial == old));
    assert_eq!(service.count("TLS handshake:"), 1, "the agent was made anew");
}

/// A bundle that would change everything: other certificates, and another key under the same id.
fn other_bundle(certs: &Certs, port: u16) -> Value {
    let mut other = bundle(port, client(certs, "new"));
    other["FILE_KEYS"] = json!({"k": STANDARD.encode([7; 32])});
    other
}

/// The same with one value changed, given by its path.
fn with(good: &Value, path: &str, value: Value) -> Vec<u8> {
    let mut bad = good.clone();
    *bad.pointer_mut(path).unwrap() = value;
    bad.to_string().into_bytes()
}

fn without(good: &Value, object: &str, name: &str) -> Vec<u8> {
    let mut bad = good.clone();
    bad.pointer_mut(object).unwrap().as_object_mut().unwrap().remove(name).unwrap();
    bad.to_string().into_bytes()
}

#[test]
fn a_certificate_that_will_not_do_is_refused_with_its_reason() {
    let certs = Certs::with_root();
    certs.client("new");
    certs.client("other");
    certs.issue("expired", P_256, "ca", FOR_CLIENT, EXPIRED);
    certs.issue("early", P_256, "ca", FOR_CLIENT, NOT_YET_VALID);
    certs.issue("middle", P_256, "ca", FOR_AUTHORITY, EXPIRED);
    certs.issue("under", P_256, "middle", FOR_CLIENT, VALID);
    certs.issue("foreign", P_256, "foreign", FOR_AUTHORITY, VALID);
    certs.issue("stranger", P_256, "foreign", FOR_SERVER, VALID);
    certs.issue("weak", "openssl genrsa 1024", "ca", FOR_CLIENT, VALID);
    certs.issue("curve", &P_256.replace("P-256", "P-521"), "ca", FOR_CLIENT, VALID);
    certs.issue("inner", P_256, "ca", FOR_AUTHORITY, VALID);
    certs.issue("outer", P_256, "inner", FOR_CLIENT, VALID);
    certs.issue("rsa", RSA_2048, "ca", FOR_CLIENT, VALID);
    // Another CA that shares only the name of the first.
    let namesake = Certs::with_root();
    let bare = |name: &str| certs.shell(&format!("openssl ec -in {name}.key -no_public"));
    are_refused(|port| {
        let good = other_bundle(&certs, port);
        let pair = |certificate: &str, key: &str| {
            let authority = certs.read("ca.crt");
            let pair = parts(&certs.read(certificate), &certs.read(key), &authority);
            with(&good, "/MTLS_CLIENT_CERT_JSON", pair)
        };
        let chain = certs.read("under.crt") + &certs.read("middle.crt");
        let chain = parts(&chain, &certs.read("under.key"), &certs.read("ca.crt"));
        let [leaf, inner, root] = ["outer.crt", "inner.crt", "ca.crt"].map(|name| certs.read(name));
        let ordered = |chain: &[&str]| {
            let parts = parts(&chain.concat(), &certs.read("outer.key"), &root);
            with(&good, "/MTLS_CLIENT_CERT_JSON", parts)
        };
        let keyed = |certificate: &str, key: &str| {
            with(&good, "/MTLS_CLIENT_CERT_JSON", parts(&certs.read(certificate), key, &root))
        };
        vec![
            (ordered(&[&inner, &leaf]), CERTIFICATE, "certificate 1 is not issued by certificate 2: the client's own"),
            (ordered(&[&leaf, &root, &inner]), CERTIFICATE, "certificate 1 is not issued by certificate 2"),
            (ordered(&[&leaf, &inner, &inner]), CERTIFICATE, "certificate 2 is not issued by certificate 3"),
            (
                ordered(&[&leaf, &inner, &namesake.read("ca.crt")]),
                CERTIFICATE,
                "certificate 2 is not issued by certificate 3",
            ),
            (keyed("new.crt", &bare("other")), PRIVATE_KEY, "does not belong to client_cert"),
            (keyed("rsa.crt", &bare("other")), PRIVATE_KEY, "does not belong to client_cert"),
            (keyed("new.crt", &bare("curve")), PRIVATE_KEY, "does not belong to client_cert"),
            (keyed("new.crt", &certs.read("rsa.key")), PRIVATE_KEY, "does not belong to client_cert"),
            (keyed("curve.crt", &bare("curve")), PRIVATE_KEY, "is not of a supported kind"),
            (pair("new.crt", "other.key"), PRIVATE_KEY, "does not belong to client_cert"),
            (pair("expired.crt", "expired.key"), CERTIFICATE, "certificate 1 expired at 2021-01-01T00:00:00Z"),
            (pair("early.crt", "early.key"), CERTIFICATE, "certificate 1 is not valid before 2048-01-01T00:00:00Z"),
            (
                with(&good, "/MTLS_CLIENT_CERT_JSON", chain),
                CERTIFICATE,
                "certificate 2 expired at 2021-01-01T00:00:00Z",
            ),
            (
                pair("server.crt", "server.key"),
                CERTIFICATE,
                "is not for TLS clients: its extendedKeyUsage lacks clientAuth",
            ),
            (
                pair("stranger.crt", "stranger.key"),
                CERTIFICATE,
                "is not for TLS clients: its extendedKeyUsage lacks clientAuth",
            ),
            (pair("weak.crt", "weak.key"), PRIVATE_KEY, "RSA of 2048 to 4096 bits"),
            (pair("curve.crt", "curve.key"), PRIVATE_KEY, "is not of a supported kind"),
        ]
    });
}

#[test]
fn a_ca_file_that_will_not_do_is_refused_with_its_reason() {
    let certs = Certs::with_root();
    certs.client("new");
    certs.issue("old", P_256, "old", FOR_AUTHORITY, EXPIRED);
    certs.issue("early", P_256, "early", FOR_AUTHORITY, NOT_YET_VALID);
    certs.issue("p521", &P_256.replace("P-256", "P-521"), "p521", FOR_AUTHORITY, VALID);
    certs.issue("weak", "openssl genrsa 1024", "weak", FOR_AUTHORITY, VALID);
    certs.issue("nosign", P_256, "nosign", &FOR_AUTHORITY.replace("keyCertSign", "digitalSignature"), VALID);
    certs.issue("noca", P_256, "noca", "basicConstraints=CA:FALSE", VALID);
    certs.shell("openssl req -x509 -newkey ed448 -nodes -keyout ed448.key -subj /CN=ed448 -out ed448.crt");
    certs.shell("openssl req -x509 -new -key p521.key -sha512 -subj /CN=p521 -out p521.crt");
    are_refused(|port| {
        let good = other_bundle(&certs, port);
        let authority = |text: &str| with(&good, "/MTLS_CLIENT_CERT_JSON/ca_cert", json!(text));
        let root = certs.read("ca.crt");
        let (_, second) = root.split_once('\n').unwrap();
        vec![
            (authority(&certs.read("old.crt")), AUTHORITY, "expired at 2021-01-01T00:00:00Z"),
            (authority(&certs.read("early.crt")), AUTHORITY, "is not valid before 2048-01-01T00:00:00Z"),
            (authority(&certs.read("p521.crt")), AUTHORITY, "cannot be verified here: ECDSA P-521 with SHA-512"),
            (authority(&certs.read("ed448.crt")), AUTHORITY, "cannot be verified here: Ed448"),
            (authority(&certs.read("weak.crt")), AUTHORITY, "cannot be verified here: RSA of 1024 bits"),
            (authority(&certs.read("nosign.crt")), AUTHORITY, "may not sign others (basicConstraints, keyUsage)"),
            (authority(&certs.read("noca.crt")), AUTHORITY, "may not sign others (basicConstraints, keyUsage)"),
            (authority(&certs.read("new.crt")), AUTHORITY, "may not sign others (basicConstraints, keyUsage)"),
            (authority(&certs.read("new.key")), AUTHORITY, "holds a PEM block PRIVATE KEY, where certificates belong"),
            (authority(&(root.clone() + &certs.read("new.key"))), AUTHORITY, "holds a PEM block PRIVATE KEY, where"),
            (authority(&root.replace("-----BEGIN", "----BEGIN")), AUTHORITY, "is neither PEM nor base64"),
            (authority(&(root.replace("-----BEGIN", "----BEGIN") + &root)), AUTHORITY, "cut off or damaged"),
            (authority(&(root.clone() + &root.replace("-----BEGIN", "----BEGIN"))), AUTHORITY, "cut off or damaged"),
            (authority(&(root.clone() + &root.replace("-----END", "----END"))), AUTHORITY, "cut off or damaged"),
            (authority(&(root.replace("-----END", "----END") + &root)), AUTHORITY, "cut off or damaged"),
            (authority(""), AUTHORITY, "is empty"),
            (authority("what?"), AUTHORITY, "is neither PEM nor base64"),
            (authority(&root[..root.len() / 2]), AUTHORITY, "cut off or damaged"),
            (
                authority(&STANDARD.encode("0 or one")),
                AUTHORITY,
                "certificate 1 cannot be read as an X.509 certificate",
            ),
            (authority(&format!("{root}-----BEGIN CERTIFICATE-----\n!!{second}")), AUTHORITY, "cut off or damaged"),
        ]
    });
}

#[test]
fn what_is_not_a_certificate_or_not_a_key_is_refused_with_its_reason() {
    let certs = Certs::with_root();
    certs.client("new");
    certs.issue("rsa", RSA_2048, "ca", FOR_CLIENT, VALID);
    let locked = certs.shell("openssl pkcs8 -topk8 -in new.key -passout pass:secret");
    let locked_ec = certs.shell("openssl ec -aes128 -in new.key -passout pass:secret");
    let locked_rsa = certs.shell("openssl rsa -aes256 -traditional -in rsa.key -passout pass:secret");
    assert!(locked_rsa.starts_with("-----BEGIN RSA PRIVATE KEY-----") && locked_rsa.contains("ENCRYPTED"));
    are_refused(|port| {
        let good = other_bundle(&certs, port);
        let certificate = |text: &str| with(&good, "/MTLS_CLIENT_CERT_JSON/client_cert", json!(text));
        let key = |text: &str| with(&good, "/MTLS_CLIENT_CERT_JSON/client_key", json!(text));
        let (good_certificate, good_key) = (certs.read("new.crt"), certs.read("new.key"));
        vec![
            (certificate(""), CERTIFICATE, "is empty"),
            (certificate("client.crt"), CERTIFICATE, "is neither PEM nor base64 of PEM or DER"),
            (
                certificate("bm90IGEgY2VydGlmaWNhdGU="),
                CERTIFICATE,
                "certificate 1 cannot be read as an X.509 certificate",
            ),
            (certificate(&good_key), CERTIFICATE, "holds a PEM block PRIVATE KEY, where certificates belong"),
            (certificate(&STANDARD.encode(&good_key)), CERTIFICATE, "holds a PEM block PRIVATE KEY"),
            (certificate(&(good_certificate.clone() + &good_key)), CERTIFICATE, "holds a PEM block PRIVATE KEY"),
            (
                certificate(&good_certificate.replace("CERTIFICATE", "SECRET")),
                CERTIFICATE,
                "holds a PEM block of an unknown kind, where certificates belong",
            ),
            (certificate(&good_certificate[..300]), CERTIFICATE, "is PEM that is cut off or damaged"),
            (certificate(&STANDARD.encode(&good_certificate[..300])), CERTIFICATE, "is PEM that is cut off or damaged"),
            (key(""), PRIVATE_KEY, "is empty"),
            (key("client.key"), PRIVATE_KEY, "is neither PEM nor base64 of PEM or DER"),
            (key("bm90IGEga2V5"), PRIVATE_KEY, "is not a private key in PKCS#8, PKCS#1 or SEC1"),
            (key(&good_certificate), PRIVATE_KEY, "holds a PEM block CERTIFICATE, where a private key belongs"),
            (
                key(&certs.shell("openssl pkey -in new.key -pubout")),
                PRIVATE_KEY,
                "holds a PEM block PUBLIC KEY, where a private key belongs",
            ),
            (key(&(good_key.clone() + &good_key)), PRIVATE_KEY, "holds 2 private keys, not one"),
            (key(&certs.shell("openssl ecparam -name prime256v1")), PRIVATE_KEY, "is PEM without a private key"),
            (key(&good_key[..100]), PRIVATE_KEY, "is PEM that is cut off or damaged"),
            (key(&locked), PRIVATE_KEY, "is protected by a passphrase"),
            (key(&STANDARD.encode(&locked)), PRIVATE_KEY, "is protected by a passphrase"),
            (key(&locked_ec), PRIVATE_KEY, "is protected by a passphrase"),
            (key(&locked_rsa), PRIVATE_KEY, "is protected by a passphrase"),
            (without(&good, "/MTLS_CLIENT_CERT_JSON", "client_key"), PRIVATE_KEY, "is missing"),
            (without(&good, "/MTLS_CLIENT_CERT_JSON", "client_cert"), CERTIFICATE, "is missing"),
            (without(&good, "/MTLS_CLIENT_CERT_JSON", "ca_cert"), AUTHORITY, "is missing"),
        ]
    });
}

#[test]
fn an_endpoint_that_will_not_do_is_refused_with_its_reason() {
    const FIELD: &str = "ECS_WATERMARK_ENDPOINT";
    let certs = Certs::with_root();
    certs.client("new");
    are_refused(|port| {
        let good = other_bundle(&certs, port);
        let endpoint = |text: String| with(&good, "/ECS_WATERMARK_ENDPOINT", json!(text));
        vec![
            (endpoint(format!("http://localhost:{port}")), FIELD, "is not an https URL with a host"),
            (endpoint(format!("localhost:{port}")), FIELD, "is not an https URL with a host"),
            (endpoint("/api".into()), FIELD, "is not an https URL with a host"),
            (endpoint(String::new()), FIELD, "is not a URL"),
            (endpoint("https://".into()), FIELD, "is not a URL"),
            (endpoint(format!("https://local host:{port}")), FIELD, "is not a URL"),
            (endpoint(format!("https://localhost:{port}00000")), FIELD, ""),
            (endpoint("https://localhost".into()), FIELD, "is not on the allow list"),
            (endpoint(format!("https://localhost:{}", port ^ 1)), FIELD, "is not on the allow list"),
            (endpoint(format!("https://127.0.0.1:{port}")), FIELD, "is not on the allow list"),
            (endpoint(format!("https://localhost.evil.example:{port}")), FIELD, "is not on the allow list"),
            (endpoint(format!("https://user@localhost:{port}")), FIELD, "has a user name"),
            (endpoint(format!("https://user:word@localhost:{port}")), FIELD, "has a user name"),
            (endpoint(format!("https://localhost:{port}?a=b")), FIELD, "has a query or a fragment"),
            (endpoint(format!("https://localhost:{port}/mark?a=b")), FIELD, "has a query or a fragment"),
            (endpoint(format!("https://localhost:{port}/#mark")), FIELD, "has a query or a fragment"),
        ]
    });
}

#[test]
fn a_file_key_that_will_not_do_is_refused_with_its_reason() {
    let certs = Certs::with_root();
    certs.client("new");
    are_refused(|port| {
        let good = other_bundle(&certs, port);
        let key = |value: Value| with(&good, "/FILE_KEYS/k", value);
        let keys = |value: Value| with(&good, "/FILE_KEYS", value);
        let full = STANDARD.encode([7; 32]);
        const FIELD: &str = "FILE_KEYS.k";
        vec![
            (key(json!(STANDARD.encode([7; 31]))), FIELD, "is 31 bytes long, not 32"),
            (key(json!(STANDARD.encode([7; 33]))), FIELD, "is 33 bytes long, not 32"),
            (key(json!("")), FIELD, "is 0 bytes long, not 32"),
            (key(json!("07".repeat(32))), FIELD, "is 48 bytes long, not 32"),
            (key(json!(full.replace('=', "?"))), FIELD, "is not base64"),
            (key(json!({"key": STANDARD.encode([7; 16]), "aad": "file_id"})), FIELD, "is 16 bytes long, not 32"),
            (key(json!({"key": full, "aad": "user_id"})), FIELD, "has an aad other than \"file_id\""),
            (key(json!({"aad": "file_id"})), FIELD, "is neither base64 nor an object with a string named key"),
            (key(json!({"key": 7})), FIELD, "is neither base64 nor an object with a string named key"),
            (key(json!(7)), FIELD, "is neither base64 nor an object with a string named key"),
            (keys(json!({"": full})), "FILE_KEYS.", "is not a key id of 1 to 128 bytes"),
            (keys(json!({})), "FILE_KEYS", "holds no key"),
            (keys(json!({"k": null})), "FILE_KEYS", "holds no key"),
            // A restriction must not vanish because a variable is empty.
            (key(json!({"key": full, "aad": null})), FIELD, "has an aad other than \"file_id\""),
            (key(json!([full, "file_id"])), FIELD, "is neither base64 nor an object with a string named key"),
            (key(json!(format!("{}B", &full[..42]))), FIELD, "is not base64"),
        ]
    });
}

#[test]
fn an_item_of_the_wrong_type_is_refused_with_its_reason() {
    let certs = Certs::with_root();
    certs.client("new");
    are_refused(|port| {
        let good = other_bundle(&certs, port);
        let mut good = good;
        good["GRANT_KEYS"] = json!({"keys": []});
        let mut cases = Vec::new();
        for value in [json!(true), json!(7), json!(["a"])] {
            let at = |path| with(&good, path, value.clone());
            let item = "is neither an object nor a string that holds one";
            cases.push((at("/MTLS_CLIENT_CERT_JSON"), "MTLS_CLIENT_CERT_JSON", item));
            cases.push((at("/MTLS_CLIENT_CERT_JSON/client_cert"), CERTIFICATE, "is not a string"));
            cases.push((at("/MTLS_CLIENT_CERT_JSON/client_key"), PRIVATE_KEY, "is not a string"));
            cases.push((at("/MTLS_CLIENT_CERT_JSON/ca_cert"), AUTHORITY, "is not a string"));
            cases.push((at("/ECS_WATERMARK_ENDPOINT"), "ECS_WATERMARK_ENDPOINT", "is not a string"));
            cases.push((at("/FILE_KEYS"), "FILE_KEYS", item));
            cases.push((at("/GRANT_KEYS"), "GRANT_KEYS", item));
            cases.push((at("/FILE_KEYS/k"), "FILE_KEYS.k", "is neither base64 nor an object with a string named key"));
        }
        let string = |text: &str| with(&good, "/MTLS_CLIENT_CERT_JSON", json!(text));
        let whole = good["MTLS_CLIENT_CERT_JSON"].to_string();
        cases.extend([
            (string("[]"), "MTLS_CLIENT_CERT_JSON", "is not a JSON object"),
            (string("client.crt"), "MTLS_CLIENT_CERT_JSON", "is not JSON"),
            (string(""), "MTLS_CLIENT_CERT_JSON", "is cut off"),
            (string(&whole[..whole.len() - 1]), "MTLS_CLIENT_CERT_JSON", "is cut off"),
            (with(&good, "/FILE_KEYS", json!("{}")), "FILE_KEYS", "holds no key"),
            (with(&good, "/FILE_KEYS", json!("[]")), "FILE_KEYS", "is not a JSON object"),
            (with(&good, "/GRANT_KEYS", json!("k")), "GRANT_KEYS", "is not JSON"),
            (with(&good, "/MTLS_CLIENT_CERT_JSON/client_key", json!(null)), PRIVATE_KEY, "is missing"),
        ]);
        cases
    });
}

#[test]
fn what_is_not_a_bundle_at_all_is_refused_with_its_reason() {
    let certs = Certs::with_root();
    certs.client("new");
    are_refused(|port| {
        let good = other_bundle(&certs, port).to_string().into_bytes();
        let mut cases: Vec<Case> = [
            (&b""[..], "is empty"),
            (b" \r\n\t", "is empty"),
            (b"-----BEGIN CERTIFICATE-----", "is not JSON"),
            (b"\xff\xfe{}", "is UTF-16, not UTF-8"),
            (b"{\"COLOUR\":\"\xff\"}", "is not UTF-8 at byte 12"),
            (b"{\"FILE_KEYS\":null}", "has none of"),
            (b"{'FILE_KEYS': {}}", "is not JSON"),
            (b"[]", "is not a JSON object"),
            (b"null", "is not a JSON object"),
            (b"7", "is not a JSON object"),
            (b"\"{}\"", "is not a JSON object"),
            (b"{}", "has none of MTLS_CLIENT_CERT_JSON, ECS_WATERMARK_ENDPOINT, FILE_KEYS, GRANT_KEYS"),
            (b"{\"file_keys\":{}}", "has none of"),
        ]
        .map(|(bytes, reason)| (bytes.to_vec(), "bundle", reason))
        .into();
        cases.extend((1..good.len()).step_by(97).map(|cut| (good[..cut].to_vec(), "bundle", "is cut off")));
        cases.push(([&good[..], b"{}"].concat(), "bundle", "is not JSON"));
        cases.push(("[".repeat(1 << 19).into_bytes(), "bundle", "is cut off"));
        // One byte too long; then so long that the sender is still sending when the daemon has read enough.
        for size in [(1 << 20) + 1, 8 << 20] {
            let mut large = good.clone();
            large.resize(size, b' ');
            cases.push((large, "bundle", "is larger than 1048576 bytes"));
        }
        cases
    });
}
