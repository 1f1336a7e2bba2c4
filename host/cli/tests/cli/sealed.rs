//! `teemark secrets --seal`: only the attested enclave can open what is sent, and it knows the operator.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use formats::attestation::BundleId;
use formats::digest::Sha256;
use formats::signature::VerifyingKey;
use formats::time::now_ms;
use serde_json::Value;

use super::enclave::{Enclave, Reply, TRUST, answer, daemon};
use super::secrets::{ACCEPTED, Meet, REFUSED, listener};
use super::*;

const ENDPOINT: &str = "https://watermark.internal.staging.zing.you:8080";

/// An enclave that accepts bundles of one operator, whose key is in the folder.
struct Scene {
    place: Place,
    enclave: Enclave,
    operator: VerifyingKey,
}

impl Scene {
    fn new() -> Scene {
        let enclave = Enclave::new();
        let place = enclave.place();
        let made = succeeds(place.teemark(&["keygen", "--for", "operator", "--output", "operator.key"]));
        let operator = STANDARD.decode(stdout(&made).trim_end()).unwrap();
        let operator = VerifyingKey::from_slice(&operator).unwrap();
        Scene { place, enclave, operator }
    }

    /// Has a bundle sealed to the enclave.
    fn seals(&self, at: &Enclave, more: &[&str]) -> Output {
        // Attested once more after the bundle is sent.
        let (endpoint, _requests) = daemon(at.is_alone().into_iter().chain([at.attests()]).collect());
        let seal = ["secrets", "--seal", "--attested", &endpoint, "--operator-key", "operator.key"];
        self.place.teemark(&[&seal[..], &TRUST, more].concat())
    }

    /// The enclave accepts a bundle and puts it in force.
    fn takes(&self) -> Meet {
        self.takes_and_answers(ACCEPTED)
    }

    /// The same, but another answer arrives.
    fn takes_and_answers(&self, text: &'static str) -> Meet {
        let (enclave, operator) = (self.enclave.clone(), self.operator);
        Meet::Take(Box::new(move |bundle| enclave.put_in_force(enclave.opens(bundle, operator).unwrap().1)), text)
    }

    /// The bundle in what was sent, and its counter.
    fn opens(&self, sealed: &[u8]) -> (Vec<u8>, u64) {
        let (bundle, id) = self.enclave.opens(sealed, self.operator).unwrap();
        (bundle, id.counter)
    }
}

fn counter(sealed: &[u8]) -> u64 {
    serde_json::from_slice::<Value>(sealed).unwrap()["sealed_bundle"]["counter"].as_u64().unwrap()
}

#[test]
fn a_sealed_bundle_opens_in_the_attested_enclave_and_names_its_operator() {
    let scene = Scene::new();
    let plain = succeeds(scene.place.teemark(&["secrets", "--endpoint", ENDPOINT])).stdout;
    let before = now_ms();
    let sealed = succeeds(scene.seals(&scene.enclave, &["--endpoint", ENDPOINT])).stdout;
    let text = serde_json::from_slice::<Value>(&sealed).unwrap()["sealed_bundle"]["ciphertext"].clone();
    let ciphertext = STANDARD.decode(text.as_str().unwrap()).unwrap();
    let holds = |bytes: &[u8]| bytes.windows(9).any(|part| part == b"watermark");
    assert!(holds(&plain) && !holds(&ciphertext));
    let (bundle, counter) = scene.opens(&sealed);
    assert_eq!(bundle, plain);
    assert!((before..=now_ms()).contains(&counter), "{counter}");

    let another = scene.enclave.opens(&sealed, VerifyingKey::from_bytes([1; 32])).unwrap_err();
    assert!(another.field.contains("signature"), "{another}");
}

#[test]
fn a_finished_bundle_is_sealed_as_it_is_and_written_for_its_owner_under_the_counter_given() {
    let scene = Scene::new();
    scene.place.write("bundle", "{ not even JSON");
    let options = ["--bundle", "bundle", "--counter", "7", "--output", "sealed"];
    succeeds(scene.seals(&scene.enclave, &options));
    assert_eq!(scene.opens(&scene.place.read("sealed")), (b"{ not even JSON".to_vec(), 7));
    assert_eq!(scene.place.mode("sealed"), 0o600);
    assert!(fails(2, &scene.seals(&scene.enclave, &options)).contains("is there already"));
}

#[test]
fn for_each_attempt_to_send_it_a_bundle_is_sealed_anew() {
    let scene = Scene::new();
    let (address, bundles) = listener("tcp:127.0.0.1:0", vec![Meet::HangUp, scene.takes()]);
    succeeds(scene.seals(&scene.enclave, &["--endpoint", ENDPOINT, "--send", &address.to_string()]));
    let [first, second]: [Vec<u8>; 2] = bundles.iter().collect::<Vec<_>>().try_into().unwrap();
    let (before, after) = (counter(&first), counter(&second));
    assert!(first != second && before < after, "{before} {after}");
}

#[test]
fn a_bundle_that_was_sent_is_confirmed_by_the_enclave_itself() {
    let scene = Scene::new();
    let (address, _bundles) = listener("tcp:127.0.0.1:0", vec![scene.takes()]);
    let options = ["--endpoint", ENDPOINT, "--counter", "7", "--send", &address.to_string()];
    let output = succeeds(scene.seals(&scene.enclave, &options));
    let told = stdout(&output);
    assert!(told.ends_with("confirmed by the enclave: the bundle of counter 7 is in force\n"), "{told}");
    // The warning of what is not proven is printed once, and its advice fits the purpose.
    let warnings = stderr(&output);
    assert_eq!(warnings.matches("debug mode").count(), 1, "{warnings}");
    assert!(warnings.contains("Only secrets for tests belong there.") && !warnings.contains("Give it"), "{warnings}");
}

#[test]
fn an_answer_that_somebody_on_the_way_made_up_is_found_out() {
    let scene = Scene::new();
    let sends = |at: &Enclave| {
        let (address, _bundles) = listener("tcp:127.0.0.1:0", vec![Meet::Answer(ACCEPTED)]);
        scene.seals(at, &["--endpoint", ENDPOINT, "--counter", "7", "--send", &address.to_string()])
    };
    let words = |counter| {
        format!(
            "refused: the answer was not the enclave's: its attestation document says counter {counter}, not 7; \
             somebody on the way withholds the bundle"
        )
    };
    for counter in [0, 6] {
        scene.enclave.put_in_force(BundleId { counter, ..BundleId::default() });
        let output = sends(&scene.enclave);
        assert!(fails(1, &output).contains(&words(counter)), "{}", stderr(&output));
        assert!(!stdout(&output).contains("confirmed"));
    }
}

#[test]
fn another_bundle_of_the_same_counter_is_not_taken_for_it() {
    let scene = Scene::new();
    let enclave = scene.enclave.clone();
    // The enclave gets another bundle in its place.
    let another = move |_: &[u8]| enclave.put_in_force(BundleId { counter: 7, sha256: Sha256::from_bytes([1; 32]) });
    let (address, _bundles) = listener("tcp:127.0.0.1:0", vec![Meet::Take(Box::new(another), ACCEPTED)]);
    let output =
        scene.seals(&scene.enclave, &["--endpoint", ENDPOINT, "--counter", "7", "--send", &address.to_string()]);
    assert!(fails(1, &output).contains("says counter 7, but for another bundle"), "{}", stderr(&output));
}

#[test]
fn what_is_in_force_is_told_whatever_the_answer_said() {
    let scene = Scene::new();
    let refused = "{\"ok\":false,\"field\":\"sealed_bundle.counter\",\"error\":\"is not above 7\"}\n";
    let (address, _bundles) = listener("tcp:127.0.0.1:0", vec![Meet::Answer(refused)]);
    let options = ["--endpoint", ENDPOINT, "--counter", "7", "--send", &address.to_string()];
    let output = scene.seals(&scene.enclave, &options);
    let told = fails(1, &output);
    let words = "the enclave's attestation document confirms that the bundle is not in force\nrefused: sealed_bundle.counter: is not above 7\n";
    assert!(told.ends_with(words), "{told}");
    assert!(!stdout(&output).contains("confirmed"));

    for (answer, words) in [
        (refused, "the refusal answered a second attempt, or somebody on the way made it up"),
        ("", "the answer was lost, or somebody on the way withholds it: "),
        ("no JSON", "the answer was lost, or somebody on the way withholds it: what answered at"),
    ] {
        let scene = Scene::new();
        let (address, _bundles) = listener("tcp:127.0.0.1:0", vec![scene.takes_and_answers(answer)]);
        let options = ["--endpoint", ENDPOINT, "--counter", "7", "--wait", "0", "--send", &address.to_string()];
        let output = succeeds(scene.seals(&scene.enclave, &options));
        assert!(stdout(&output).contains("confirmed by the enclave: the bundle of counter 7 is in force"));
        assert!(stderr(&output).contains(words), "{}", stderr(&output));
    }
}

#[test]
fn a_refusal_ends_with_1_whether_the_enclave_can_be_attested_once_more_or_not() {
    let scene = Scene::new();
    let (address, _bundles) = listener("tcp:127.0.0.1:0", vec![Meet::Answer(REFUSED)]);
    let (endpoint, _requests) = daemon(scene.enclave.is_alone());
    let seal = ["secrets", "--endpoint", ENDPOINT, "--seal", "--attested", &endpoint];
    let send = ["--operator-key", "operator.key", "--send", &address.to_string()];
    let told = fails(1, &scene.place.teemark(&[&seal[..], &TRUST, &send].concat()));
    assert!(told.contains("refused: ") && !told.contains("in force"), "{told}");
    assert!(!told.contains("waiting for"), "it does not wait for the enclave again: {told}");
}

#[test]
fn a_bundle_that_the_enclave_does_not_confirm_is_not_said_to_be_in_force() {
    let scene = Scene::new();
    let (address, _bundles) = listener("tcp:127.0.0.1:0", vec![scene.takes()]);
    let no_document = Reply::After(answer("404 Not Found", "", ""));
    let (endpoint, _requests) = daemon(scene.enclave.is_alone().into_iter().chain([no_document]).collect());
    let seal = ["secrets", "--endpoint", ENDPOINT, "--seal", "--attested", &endpoint];
    let send = ["--operator-key", "operator.key", "--send", &address.to_string()];
    let output = scene.place.teemark(&[&seal[..], &TRUST, &send].concat());
    assert!(fails(2, &output).contains("sent, but not confirmed by the enclave"), "{}", stderr(&output));
    assert!(!stdout(&output).contains("confirmed"));
}

#[test]
fn a_bundle_is_not_sealed_to_an_enclave_that_is_not_attested() {
    let scene = Scene::new();
    let output = scene.seals(&Enclave::new(), &["--endpoint", ENDPOINT, "--output", "sealed"]);
    assert!(fails(1, &output).contains("refused: root: "), "{}", stderr(&output));
    assert!(!scene.place.names().contains(&"sealed".into()));
}

/// Seals a bundle to the enclave that attests itself so, and sends it to nobody.
fn seals_by(scene: &Scene, attests: Vec<Reply>) -> Output {
    let (endpoint, _requests) = daemon(attests);
    let seal = ["secrets", "--seal", "--attested", &endpoint, "--operator-key", "operator.key"];
    // Nobody listens there: what is sent would end with 3.
    let send = ["--endpoint", ENDPOINT, "--wait", "0", "--send", "tcp:127.0.0.1:1"];
    scene.place.teemark(&[&seal[..], &TRUST, &send].concat())
}

#[test]
fn secrets_go_by_documents_for_their_own_nonce_only() {
    let scene = Scene::new();
    let enclave = &scene.enclave;
    // Of another request; the one that is the same for everyone; and either for the second of the two before the bundle.
    for attests in [
        vec![enclave.replays(Some(&[7; 32]))],
        vec![enclave.replays(None)],
        vec![enclave.attests(), enclave.replays(Some(&[7; 32]))],
        vec![enclave.attests(), enclave.replays(None)],
    ] {
        let told = fails(1, &seals_by(&scene, attests));
        assert!(told.contains("refused: nonce: "), "{told}");
    }
    // For the confirmation too.
    let (address, _bundles) = listener("tcp:127.0.0.1:0", vec![scene.takes()]);
    let (endpoint, _requests) = daemon(enclave.is_alone().into_iter().chain([enclave.replays(None)]).collect());
    let seal = ["secrets", "--seal", "--attested", &endpoint, "--operator-key", "operator.key"];
    let send = ["--endpoint", ENDPOINT, "--send", &address.to_string()];
    let output = scene.place.teemark(&[&seal[..], &TRUST, &send].concat());
    let told = fails(1, &output);
    assert!(told.contains("sent, but not confirmed by the enclave: nonce: "), "{told}");
    assert!(!stdout(&output).contains("confirmed"));
}

#[test]
fn an_address_that_leads_to_several_enclaves_is_told_and_nothing_is_sent() {
    let scene = Scene::new();
    let another = scene.enclave.beside();
    // Wherever the other one answers.
    for at in 1..5 {
        let mut answers = scene.enclave.is_alone();
        answers[at] = another.attests();
        let told = fails(1, &seals_by(&scene, answers));
        assert!(told.contains("leads to several enclaves") && told.contains("nothing was sent"), "{told}");
        assert!(told.contains(&scene.enclave.identity()) && told.contains(&another.identity()), "{told}");
    }
    fails(3, &seals_by(&scene, scene.enclave.is_alone()));
}

#[test]
fn the_limit_of_1_mib_is_the_sealed_bundles() {
    let scene = Scene::new();
    // Base64 makes four bytes of three; the rest of the envelope takes less than 1 KiB.
    let fits = (((1 << 20) - 1024) / 4) * 3;
    scene.place.write("fits", vec![b' '; fits]);
    scene.place.write("large", vec![b' '; fits + 1024]);
    let sealed = succeeds(scene.seals(&scene.enclave, &["--bundle", "fits"])).stdout;
    assert_eq!(scene.opens(&sealed).0.len(), fits);
    let told = fails(2, &scene.seals(&scene.enclave, &["--bundle", "large"]));
    assert!(told.contains("the sealed bundle has") && told.contains("1 MiB"), "{told}");
    succeeds(scene.place.teemark(&["secrets", "--bundle", "large"]));
}

#[test]
fn a_bundle_that_should_be_sealed_never_goes_out_plain() {
    let scene = Scene::new();
    let seal = ["--seal", "--attested", "http://127.0.0.1:1", "--operator-key", "operator.key", "--pcrs", "image.pcrs"];
    for left_out in ["--attested", "--operator-key", "--pcrs"] {
        let at = seal.iter().position(|&option| option == left_out).unwrap();
        let rest = [&seal[..at], &seal[at + 2..]].concat();
        let told = fails(2, &scene.place.teemark(&[&["secrets", "--endpoint", ENDPOINT], &rest[..]].concat()));
        assert!(told.contains(left_out), "{told}");
    }
    for option in [&seal[1..3], &seal[3..5], &seal[5..7], &["--counter", "7"], &["--development"]] {
        let told = fails(2, &scene.place.teemark(&[&["secrets", "--endpoint", ENDPOINT], option].concat()));
        assert!(told.contains("--seal"), "{told}");
    }
    succeeds(scene.place.teemark(&["keygen", "--for", "reply", "--output", "alice.key"]));
    let wrong = [&seal[..3], &["--operator-key", "alice.key"], &seal[5..], &["--endpoint", ENDPOINT]].concat();
    let told = fails(2, &scene.place.teemark(&[&["secrets"], &wrong[..]].concat()));
    assert!(told.contains("--operator-key alice.key: the key file alice.key: it is a key for replies (keygen --for reply), but an operator's key (keygen --for operator) is needed here"), "{told}");
}

#[test]
fn the_counter_is_above_the_attested_one_though_this_machines_clock_is_behind() {
    let scene = Scene::new();
    // A bundle of an operator whose clock is a day ahead of this one.
    let ahead = now_ms() + 86_400_000;
    scene.enclave.put_in_force(BundleId { counter: ahead, ..BundleId::default() });
    let (address, _bundles) = listener("tcp:127.0.0.1:0", vec![Meet::HangUp, scene.takes()]);
    let output = succeeds(scene.seals(&scene.enclave, &["--endpoint", ENDPOINT, "--send", &address.to_string()]));
    // The first attempt had the first counter above it.
    let words = format!("the bundle of counter {} is in force", ahead + 2);
    assert!(stdout(&output).contains(&words), "{}", stdout(&output));
    let told = fails(2, &scene.seals(&scene.enclave, &["--endpoint", ENDPOINT, "--counter", "7"]));
    assert!(told.contains(&format!("--counter has to be above {}", ahead + 2)), "{told}");
}

#[test]
fn what_an_enclave_of_an_earlier_release_cannot_take_is_not_sent_to_it() {
    let scene = Scene::new();
    let output = scene.seals(&scene.enclave, &["--endpoint", ENDPOINT, "--send", "http://127.0.0.1:1"]);
    assert!(fails(2, &output).contains("sealed in version 2"), "{}", stderr(&output));
    scene.place.keys(&["new"]);
    for change in [
        &["--add-keys", "keys.json"][..],
        &["--remove-key", "old"],
        &["--endpoint", ENDPOINT, "--complete-at", &"ab".repeat(32)],
    ] {
        let output = scene.seals(&scene.enclave, change);
        assert!(fails(2, &output).contains("does not attest its state"), "{change:?}: {}", stderr(&output));
    }
}
