use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::thread;

use super::*;

/// Two addresses with ports of [`free_port`].
fn free_ports() -> [String; 2] {
    [(), ()].map(|()| format!("127.0.0.1:{}", free_port()))
}

/// With each shell, where teemark is installed and where it is not.
fn parents() -> impl Iterator<Item = Parent> {
    SHELLS.into_iter().flat_map(|shell| [Parent::new(shell), Parent::without_teemark(shell)])
}

fn expose(parent: &Parent, [public, admin]: &[String; 2]) -> Running {
    let mut script = parent.script("expose.sh");
    script.env("EXPOSE_PUBLIC", public).env("EXPOSE_ADMIN", admin);
    Running::start(&mut script, parent.path("words"))
}

fn connected(address: &str) -> TcpStream {
    let stream = wait_for(address, || TcpStream::connect(address).ok());
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

fn get(address: &str, path: &str) -> String {
    let mut stream = connected(address);
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn both_ports_of_the_daemon_are_reached_each_by_its_own() {
    for parent in parents() {
        let _enclave = enclave(&parent, 16);
        parent.running(&[("teemark", 16, "RUNNING")]);
        let ports = free_ports();
        let expose = expose(&parent, &ports);
        assert!(get(&ports[0], "/ready").contains("MTLS_CLIENT_CERT_JSON"));
        assert!(get(&ports[0], "/admin/status").starts_with("HTTP/1.1 404 "));
        let status = get(&ports[1], "/admin/status");
        assert!(status.starts_with("HTTP/1.1 200 ") && status.contains("watermark.internal.staging"), "{status}");
        let said = expose.said();
        assert!(said.contains(&format!("public: http://{} leads to {}\n", ports[0], parent.vsock(16, 3000))), "{said}");
        assert!(said.contains(&format!("admin: http://{} leads to {}\n", ports[1], parent.vsock(16, 3001))), "{said}");
    }
}

/// Neither program is run here, since the ports might be taken; its arguments are checked.
#[test]
fn by_default_only_the_public_port_is_reached_from_elsewhere() {
    for parent in parents() {
        parent.running(&[("teemark", 16, "RUNNING")]);
        let program = if parent.has_teemark { "teemark" } else { "socat" };
        parent.lacks(program);
        // None ends before all have written down their arguments.
        let stand_in = "#!/bin/sh\n[ \"$*\" != 'expose --help' ] || exit 0\ncalls=$STAND_IN/calls-of-it\necho \"$*\" >>\"$calls\"\n\
                        until [ \"$(wc -l <\"$calls\")\" -ge \"$LISTENERS\" ]; do sleep 1; done\n";
        parent.write_script(&format!("bin/{program}"), stand_in);
        let calls = |mut script: Command, listeners: usize| {
            script.env("LISTENERS", listeners.to_string());
            let _ = fs::remove_file(parent.path("calls-of-it"));
            assert!(fails(&mut script).contains("a listener has ended"));
            let mut calls: Vec<_> = parent.read("calls-of-it").lines().map(str::to_owned).collect();
            calls.sort();
            calls
        };
        let mut only_public = parent.script("expose.sh");
        only_public.env("EXPOSE_ADMIN", "");
        if parent.has_teemark {
            let both = calls(parent.script("expose.sh"), 1);
            assert_eq!(both, ["expose --enclave 16 --public 0.0.0.0:3000 --admin 127.0.0.1:3001"]);
            assert_eq!(calls(only_public, 1), ["expose --enclave 16 --public 0.0.0.0:3000 --admin "]);
        } else {
            let both = calls(parent.script("expose.sh"), 2);
            assert!(both[0].contains(" TCP4-LISTEN:3000,bind=0.0.0.0,") && both[0].ends_with(" VSOCK-CONNECT:16:3000"));
            assert!(
                both[1].contains(" TCP4-LISTEN:3001,bind=127.0.0.1,") && both[1].ends_with(" VSOCK-CONNECT:16:3001")
            );
            assert_eq!(calls(only_public, 1), both[..1]);
        }
    }
}

#[test]
fn it_ends_with_the_enclave_and_says_so() {
    for parent in parents() {
        let mut holder = Command::new("sleep").arg("600").spawn().unwrap();
        parent.running_with_process(&[("teemark", 16, "RUNNING")], holder.id());
        let ports = free_ports();
        let mut expose = expose(&parent, &ports);
        drop(connected(&ports[0]));
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert_eq!(expose.ends(), Some(1));
        assert!(expose.said().contains("the enclave, CID 16, has ended"), "{}", expose.said());
        assert_free(&ports);
    }
}

#[track_caller]
fn assert_free(ports: &[String; 2]) {
    for port in ports {
        wait_for("the end of the listeners", || TcpStream::connect(port).is_err().then_some(()));
    }
}

#[test]
fn when_it_is_stopped_so_are_the_listeners() {
    for parent in parents() {
        parent.running(&[("teemark", 16, "RUNNING")]);
        let ports = free_ports();
        let mut expose = expose(&parent, &ports);
        ports.iter().for_each(|port| drop(connected(port)));
        expose.terminate();
        assert_eq!(expose.ends(), Some(0), "{}", expose.said());
        assert_free(&ports);
    }
}

#[test]
fn a_port_that_is_taken_ends_it_with_the_reason_and_leaves_no_other_listener() {
    for parent in parents() {
        parent.running(&[("teemark", 16, "RUNNING")]);
        let [public, admin] = free_ports();
        let _taken = TcpListener::bind(&admin).unwrap();
        let mut expose = expose(&parent, &[public.clone(), admin]);
        assert_eq!(expose.ends(), Some(1));
        let said = expose.said();
        assert!(said.contains("Address already in use") && said.contains("a listener has ended"), "{said}");
        assert_free(&[public.clone(), public]);
    }
}

#[test]
fn a_client_that_has_said_all_still_gets_an_answer_that_takes_its_time() {
    for parent in [Parent::new(Shell::System), Parent::without_teemark(Shell::System)] {
        parent.running(&[("teemark", 16, "RUNNING")]);
        let listener = UnixListener::bind(parent.path("16.3000")).unwrap();
        thread::spawn(move || {
            // The first connection is the test's own, to see whether it listens.
            for stream in listener.incoming().map_while(Result::ok) {
                thread::spawn(move || {
                    let mut stream = stream;
                    let mut said = String::new();
                    stream.read_to_string(&mut said).unwrap();
                    thread::sleep(Duration::from_secs(2));
                    let _ = stream.write_all(said.as_bytes());
                });
            }
        });
        let ports = free_ports();
        let _expose = expose(&parent, &ports);
        let mut client = connected(&ports[0]);
        client.write_all(b"said").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "said");
    }
}

#[test]
fn an_address_that_is_none_is_told_before_anything_listens() {
    for parent in parents() {
        parent.running(&[("teemark", 16, "RUNNING")]);
        for address in ["3000", ":3000", "127.0.0.1:", "127.0.0.1:x", "::1:3000", "a:1,fork", "a b:1"] {
            let mut script = parent.script("expose.sh");
            let said = fails(script.env("EXPOSE_PUBLIC", address).env("EXPOSE_ADMIN", ""));
            let told = if parent.has_teemark { "public" } else { "is not ADDRESS:PORT" };
            assert!(said.contains(told), "{address}: {said}");
        }
        let mut nothing = parent.script("expose.sh");
        assert_eq!(nothing.env("EXPOSE_PUBLIC", "").env("EXPOSE_ADMIN", "").status().unwrap().code(), Some(2));
        assert_eq!(parent.read("socat-calls"), "");
    }
}
