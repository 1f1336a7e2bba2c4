//! A hostile parent between the keeper and the enclave: it withholds, makes up, records and replays.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::*;

/// What the parent does to requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Passes them on.
    Honest,
    /// Keeps bundles and says that they are in force.
    SaysYes,
    /// Keeps bundles and refuses them in the enclave's name.
    SaysNo,
    /// Passes bundles on, and loses the answers.
    LosesAnswers,
    /// Sends the first bundle that it recorded in place of each later one.
    Replays,
    /// Answers with the first document that it recorded.
    OldDocument,
    /// Makes up a state.
    OtherState,
    /// Answers that there is no room for bundles, in the enclave's name.
    HasNoRoom,
    /// Accepts connections and closes them.
    Silent,
    /// Waits at a step until it does something else, and then closes the connection.
    Holds(Step),
}

/// What the keeper has done, and what comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Asked for the first document.
    Document,
    /// Asked for the state.
    State,
    /// Sent a bundle, which the enclave has not got.
    Sealed,
    /// Sent a bundle, which is in force, without an answer.
    InForce,
    /// Got the answer, and asked for the document that confirms it.
    Sent,
}

struct Parent {
    port: u16,
    way: Arc<Mutex<Way>>,
    recorded: Arc<Recorded>,
}

/// What has passed: the path, and a bundle or an answer.
type Recorded = Mutex<Vec<(String, Vec<u8>)>>;

impl Parent {
    /// In front of an enclave at this port.
    fn new(enclave: u16) -> Parent {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (way, recorded) = (Arc::new(Mutex::new(Way::Honest)), Arc::default());
        let parent = Parent { port, way, recorded };
        let (way, recorded) = (parent.way.clone(), parent.recorded.clone());
        thread::spawn(move || {
            for client in listener.incoming() {
                // Either side may be killed at any time.
                let _ = relay(client.unwrap(), enclave, &way, &recorded);
            }
        });
        parent
    }

    fn does(&self, way: Way) {
        *self.way.lock().unwrap() = way;
    }

    /// The first recorded message of this path.
    fn recorded(&self, path: &str) -> Vec<u8> {
        first(&self.recorded, path).unwrap()
    }
}

fn first(recorded: &Recorded, path: &str) -> Option<Vec<u8>> {
    recorded.lock().unwrap().iter().find(|(of, _)| of == path).map(|(_, bytes)| bytes.clone())
}

/// The first line, whole head and body of one message.
fn read(mut stream: &TcpStream) -> std::io::Result<(String, String, Vec<u8>)> {
    let head = read_head(&mut stream).ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let mut body = vec![0; content_length(&head).unwrap_or(0)];
    stream.read_exact(&mut body)?;
    Ok((head.lines().next().unwrap().to_owned(), head, body))
}

/// Waits while the parent holds what passes at this step. Returns whether it did.
fn holds(way: &Mutex<Way>, step: Step, recorded: &Recorded) -> bool {
    let held = *way.lock().unwrap() == Way::Holds(step);
    if held {
        recorded.lock().unwrap().push(("held".to_owned(), Vec::new()));
    }
    while *way.lock().unwrap() == Way::Holds(step) {
        thread::sleep(Duration::from_millis(5));
    }
    held
}

fn relay(mut client: TcpStream, enclave: u16, ways: &Mutex<Way>, recorded: &Recorded) -> std::io::Result<()> {
    let way = *ways.lock().unwrap();
    if way == Way::Silent {
        return Ok(());
    }
    let (line, _, mut body) = read(&client)?;
    let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let path = target.split('?').next().unwrap_or_default().to_owned();
    let answer = |body: &[u8], status: &str| {
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        [head.as_bytes(), body].concat()
    };
    let made_up = match (way, path.as_str()) {
        (Way::SaysYes, "/sealed-bundle") => Some(answer(br#"{"ok":true,"updated":["FILE_KEYS"]}"#, "200 OK")),
        (Way::SaysNo, "/sealed-bundle") => {
            Some(answer(br#"{"ok":false,"field":"bundle","error":"is not liked"}"#, "400 Bad Request"))
        }
        (Way::HasNoRoom, "/sealed-bundle") => {
            Some(answer(br#"{"error":"too many","code":"busy"}"#, "503 Service Unavailable"))
        }
        (Way::OtherState, "/state") => Some(answer(br#"{"items":{}} "#, "200 OK")),
        (Way::OldDocument, "/get_attestation") => first(recorded, "answer: /get_attestation"),
        _ => None,
    };
    let before = match path.as_str() {
        "/get_attestation" if first(recorded, "/sealed-bundle").is_some() => Step::Sent,
        "/get_attestation" => Step::Document,
        "/state" => Step::State,
        _ => Step::Sealed,
    };
    if path == "/sealed-bundle" {
        recorded.lock().unwrap().push((path.clone(), body.clone()));
        if way == Way::Replays {
            body = first(recorded, "/sealed-bundle").unwrap();
        }
    }
    if holds(ways, before, recorded) {
        return Ok(());
    }
    let bytes = match made_up {
        Some(bytes) => bytes,
        None => {
            let mut daemon = TcpStream::connect(("127.0.0.1", enclave))?;
            let method = line.split(' ').next().unwrap_or_default();
            let length = body.len();
            let head = format!(
                "{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
            );
            daemon.write_all(&[head.as_bytes(), &body].concat())?;
            let mut bytes = Vec::new();
            daemon.read_to_end(&mut bytes)?;
            recorded.lock().unwrap().push((format!("answer: {path}"), bytes.clone()));
            bytes
        }
    };
    if path == "/sealed-bundle" && holds(ways, Step::InForce, recorded) {
        return Ok(());
    }
    if way == Way::LosesAnswers && path == "/sealed-bundle" {
        return Ok(());
    }
    client.write_all(&bytes)
}

/// A keeper, a parent, and an enclave behind it that has nothing.
fn scene() -> (Scene, Parent, u16) {
    let (scene, port) = (Scene::new(&CERTS), free_port());
    let parent = Parent::new(port);
    scene.config_of_files(&[parent.port]);
    (scene, parent, port)
}

#[test]
fn bundles_that_are_withheld_are_found_out_whatever_the_answer_and_are_tried_again() {
    for (way, words) in [
        (Way::SaysYes, "somebody on the way withholds it"),
        (Way::SaysNo, "is not liked"),
        (Way::OtherState, "is not the one that the enclave attests"),
        (Way::OldDocument, "somebody replays an old one"),
        // As often as it is said: it is not what makes the keeper wait.
        (Way::HasNoRoom, "\"attempts\":0,"),
        (Way::Silent, ""),
    ] {
        let (scene, parent, port) = scene();
        let enclave = scene.enclave(port, PCRS);
        if way == Way::OldDocument {
            let told = request(([127, 0, 0, 1], parent.port).into(), "GET /get_attestation HTTP/1.1\r\n\r\n", b"");
            assert_eq!(told.status, 200);
        }
        parent.does(way);
        let mut keeper = scene.keeper();
        let event = match way {
            Way::OtherState => "state_not_attested",
            Way::OldDocument => "not_attested",
            Way::Silent => "unreachable",
            _ => "not_confirmed",
        };
        keeper.tells(event, words);
        has_nothing(&enclave);
        assert_eq!(keeper.count("confirmed"), 0);
        parent.does(Way::Honest);
        is_ready(&enclave);
        keeper.tells("confirmed", "");
    }
}

#[test]
fn a_keeper_that_is_killed_at_any_step_goes_on_when_it_is_started_again() {
    for step in [Step::Document, Step::State, Step::Sealed, Step::InForce, Step::Sent] {
        let (scene, parent, port) = scene();
        let enclave = scene.enclave(port, PCRS);
        parent.does(Way::Holds(step));
        let mut keeper = scene.keeper();
        wait_for("the step", || first(&parent.recorded, "held"));
        let told = ["boot", "sealed", "sent", "confirmed"].map(|event| keeper.count(event));
        let in_force = matches!(step, Step::InForce | Step::Sent);
        match step {
            Step::Document => assert_eq!(told, [0, 0, 0, 0]),
            Step::State => assert_eq!(told, [1, 0, 0, 0]),
            Step::Sealed | Step::InForce => assert_eq!(told, [1, 1, 0, 0]),
            Step::Sent => assert_eq!(told, [1, 1, 1, 0]),
        }
        match in_force {
            true => assert_eq!(enclave.get("/ready").status, 200),
            false => has_nothing(&enclave),
        }
        if told[1] == 1 {
            // What it has seen is written before anything is sent.
            let boot = keeper.tells("boot", "")["boot_nonce"].as_str().unwrap().to_owned();
            assert!(fs::read_to_string(scene.path("history.json")).unwrap().contains(&boot));
        }
        keeper.process.child.kill().unwrap();
        keeper.process.child.wait().unwrap();
        drop(keeper);
        parent.does(Way::Honest);
        let mut keeper = scene.keeper();
        keeper.tells("current", "");
        assert_eq!(keeper.count("sent"), usize::from(!in_force), "{step:?}");
        scene.decrypts(&enclave, "k");
    }
}

#[test]
fn an_answer_that_is_lost_does_no_harm() {
    let (scene, parent, port) = scene();
    let enclave = scene.enclave(port, PCRS);
    parent.does(Way::LosesAnswers);
    let mut keeper = scene.keeper();
    is_ready(&enclave);
    keeper.tells("confirmed", "");
    assert_eq!((keeper.count("sent"), keeper.count("not_confirmed")), (1, 0));
}

#[test]
fn an_old_bundle_in_place_of_a_new_one_takes_nothing_back() {
    let (scene, parent, port) = scene();
    let enclave = scene.enclave(port, PCRS);
    let mut keeper = scene.keeper();
    is_ready(&enclave);
    keeper.tells("current", "");
    parent.does(Way::Replays);
    let before = enclave.get("/state").text();
    succeeds(scene.teemark(&["keygen", "--id", "new", "--output", "keys.json", "--add"]));
    keeper.tells("not_confirmed", "counter");
    assert_eq!(enclave.get("/state").text(), before);
    parent.does(Way::Honest);
    wait_for("the new key", || enclave.get("/state").text().contains("\"new\"").then_some(()));

    // To another boot, none of what was recorded means anything.
    let bundle = parent.recorded("/sealed-bundle");
    drop((keeper, enclave));
    let enclave = scene.enclave(port, PCRS);
    let refused = enclave.post("/sealed-bundle", &bundle);
    assert_eq!((refused.status, &refused.json()["field"]), (400, &"sealed_bundle_v2.boot_nonce".into()));
    has_nothing(&enclave);
}

#[test]
fn what_the_parent_sees_of_a_bundle_is_not_the_keys() {
    let (scene, parent, port) = scene();
    let enclave = scene.enclave(port, PCRS);
    let _keeper = scene.keeper();
    is_ready(&enclave);
    let keys: Value = serde_json::from_slice(&fs::read(scene.path("keys.json")).unwrap()).unwrap();
    let secret = keys["k"].as_str().unwrap().as_bytes();
    let recorded = parent.recorded.lock().unwrap();
    assert!(recorded.iter().any(|(path, _)| path == "/sealed-bundle"));
    for (path, bytes) in recorded.iter() {
        assert!(!bytes.windows(20).any(|part| secret.starts_with(part)), "in {path}");
    }
}
