//! The whole path: a file goes in encrypted and comes out marked for its user.

mod support;

use support::*;

#[test]
fn a_text_comes_back_marked_for_its_user() {
    let certs = Certs::make();
    let service = Service::start(&certs, &[]);
    let daemon = Daemon::ready(&service, &certs);
    let answer = daemon.decrypt(&encrypt(&KEY, "Grüße\nan alle\n".as_bytes()), "file-1", "user-1");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(extract(&answer.body), serde_json::json!({"file_id": "file-1", "user_id": "user-1"}));
}
