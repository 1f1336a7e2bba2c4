//! Tokens made by other libraries.

use std::io::Write;
use std::process::{Command, Stdio};

use super::*;

/// Has an issuer make tokens of both algorithms, and uses each. `claims` makes their claims.
fn tokens_are_accepted(mut issuer: Command, claims: impl Fn(&str) -> Value) {
    let asks: Vec<Value> = ["EdDSA", "ES256", "EdDSA", "ES256"]
        .iter()
        .enumerate()
        .map(|(i, alg)| {
            let aud = if i < 2 { json!("fleet") } else { json!(["elsewhere", "fleet"]) };
            let mut claims = claims(&format!("token-{i}"));
            claims["aud"] = aud;
            json!({"alg": alg, "claims": claims})
        })
        .collect();
    let mut child = issuer.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(json!(asks).to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{issuer:?}");
    let made: Value = serde_json::from_slice(&output.stdout).unwrap();
    let scene = Scene::new(&made["jwks"]);
    let tokens = made["tokens"].as_array().unwrap();
    assert_eq!(tokens.len(), 4);
    for token in tokens {
        let token = token.as_str().unwrap();
        let answer = scene.ask_with(token, "f", "alice");
        assert_eq!(answer.status, 200, "{token}: {}", String::from_utf8_lossy(&answer.body));
        assert_eq!(extract(&answer.body)["user_id"], "alice");
        assert_eq!(refusal(&scene.ask_with(token, "f", "alice")), is(403, "grant_used"));
    }
}

#[test]
fn tokens_that_pyjwt_makes_are_accepted_once_each() {
    match packages::python("PyJWT[crypto]", "jwt.algorithms, cryptography") {
        Ok(python) => {
            let issuer = || {
                let mut command = Command::new(&python);
                command.arg("-B").arg(repository().join("tests/support/ask_pyjwt.py"));
                command
            };
            tokens_are_accepted(issuer(), claims);
            // With dates as time.time() gives them.
            tokens_are_accepted(issuer(), |jti| {
                let mut claims = claims(jti);
                for date in ["nbf", "exp"] {
                    claims[date] = json!(claims[date].as_f64().unwrap() + 0.7182817);
                }
                claims
            });
        }
        Err(reason) => not_run("tokens by PyJWT", &reason),
    }
}

#[test]
fn tokens_that_jose_makes_are_accepted_once_each() {
    match packages::node("jose") {
        Ok(folder) => {
            let mut command = Command::new("node");
            command.arg(repository().join("tests/support/ask_jose.mjs")).current_dir(folder);
            tokens_are_accepted(command, claims);
        }
        Err(reason) => not_run("tokens by jose", &reason),
    }
}
