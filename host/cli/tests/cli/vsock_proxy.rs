use formats::allow_list::AllowList;
use yaml_rust2::YamlLoader;

use super::*;

/// Hosts that YAML could take for a number, a truth value or nothing, and others.
const HOSTS: &str = "endpoints:
  - Watermark.internal.staging.zing.you:8080 # the service
  - localhost
  - 127.0.0.1:8443
  - watermark.internal.staging.zing.you:8443
  - true
  - null:1
  - no
  - 1.5
  - 0x1f
  - 1e5
  - 0o17
  - 65535:65535
";

fn printed(place: &Place, more: &[&str]) -> String {
    stdout(&succeeds(place.teemark(&[&["vsock-proxy"], more].concat())))
}

#[test]
fn the_shipped_list_gives_the_parents_files() {
    let place = Place::new();
    place.write("allowed_endpoints.yaml", fs::read(repository().join("allowed_endpoints.yaml")).unwrap());
    let yaml = printed(&place, &[]);
    assert!(
        yaml.ends_with(
            "\nallowlist:\n- {address: watermark.internal.staging.zing.you, port: 8080} # vsock port 8101\n"
        ),
        "{yaml}"
    );
    assert_eq!(printed(&place, &["--format", "list"]), "8101 watermark.internal.staging.zing.you 8080\n");
    let environment = printed(&place, &["--format", "environment"]);
    assert!(environment.ends_with("\nENDPOINT_8101=watermark.internal.staging.zing.you 8080\n"), "{environment}");
    assert_eq!(printed(&place, &["--format", "units"]), "teemark-vsock-proxy@8101.service\n");
}

#[test]
fn vsock_proxy_reads_every_host_and_port_as_the_enclave_does_and_in_its_order() {
    let place = Place::new();
    place.write("list", HOSTS);
    let enclave: Vec<_> = AllowList::parse("list", HOSTS.as_bytes())
        .unwrap()
        .iter()
        .map(|endpoint| (endpoint.host().to_owned(), i64::from(endpoint.port())))
        .collect();

    let documents = YamlLoader::load_from_str(&printed(&place, &["--endpoints", "list"])).unwrap();
    let services = documents[0]["allowlist"].as_vec().unwrap().iter();
    let proxy: Vec<_> = services
        .map(|service| {
            let address = service["address"].as_str().unwrap_or_else(|| panic!("{service:?} is no host"));
            (address.to_owned(), service["port"].as_i64().unwrap())
        })
        .collect();
    assert_eq!(proxy, enclave);

    let lines = |format| printed(&place, &["--endpoints", "list", "--format", format]);
    let of =
        |line: fn(usize, &(String, i64)) -> String| enclave.iter().enumerate().map(move |(i, e)| line(8101 + i, e));
    assert_eq!(lines("list"), of(|at, (host, port)| format!("{at} {host} {port}\n")).collect::<String>());
    assert_eq!(lines("units"), of(|at, _| format!("teemark-vsock-proxy@{at}.service\n")).collect::<String>());
    let environment = lines("environment");
    let assignments: Vec<_> = environment.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(assignments, of(|at, (host, port)| format!("ENDPOINT_{at}={host} {port}")).collect::<Vec<_>>());
}

#[test]
fn the_first_port_can_be_another_and_none_is_past_the_last() {
    let place = Place::new();
    place.write("list", "endpoints:\n- a.example\n- b.example\n");
    let list =
        |port: &str| place.teemark(&["vsock-proxy", "--endpoints", "list", "--format", "list", "--base-port", port]);
    assert_eq!(stdout(&succeeds(list("9000"))), "9000 a.example 443\n9001 b.example 443\n");
    assert_eq!(stdout(&succeeds(list("4294967293"))).lines().count(), 2);
    for first in ["4294967294", "4294967295"] {
        let output = list(first);
        assert!(fails(2, &output).contains("--base-port"), "{first}");
        assert_eq!(stdout(&output), "", "half a list");
    }
    for wrong in ["0", "4294967296", "x"] {
        assert!(fails(2, &list(wrong)).contains("--base-port"), "{wrong}");
    }
}

#[test]
fn a_list_that_the_enclave_would_not_take_gives_nothing_but_its_line() {
    let place = Place::new();
    for (text, words) in [
        ("endpoints:\n- a.example\n- b.example:0\n", "list:3: "),
        ("endpoints:\n- a.example\n- A.EXAMPLE:443\n", "listed twice"),
        ("hosts:\n- a.example\n", "list:1: "),
        ("endpoints:\n", "lists no endpoint"),
    ] {
        place.write("list", text);
        for format in ["yaml", "list", "environment", "units"] {
            let output = place.teemark(&["vsock-proxy", "--endpoints", "list", "--format", format]);
            assert!(fails(2, &output).contains(words), "{text}");
            assert_eq!(stdout(&output), "", "{text}");
        }
    }
    assert!(fails(2, &place.teemark(&["vsock-proxy"])).contains("allowed_endpoints.yaml: cannot be read"));
}

/// Runs the documents' commands unchanged, and checks that they make what the units read.
#[test]
fn the_documents_write_the_files_that_the_units_read_and_not_awss_own() {
    let text = |path: &str| fs::read_to_string(repository().join(path)).unwrap();
    let unit = text("host/deploy/systemd/teemark-vsock-proxy@.service");
    let option = |line: &str, before: &str| {
        let line = unit.lines().find(|text| text.starts_with(line)).unwrap();
        line.split_once(before).unwrap().1.split(' ').next().unwrap().to_owned()
    };
    let (list, environment) = (option("ExecStart=", "vsock-proxy --config "), option("EnvironmentFile=", "="));
    assert_eq!((&*list, &*environment), ("/etc/teemark/vsock-proxy.yaml", "/etc/teemark/vsock-proxy.env"));

    let deploy = text("host/deploy/README.md");
    let help = stdout(&succeeds(Place::new().teemark(&["vsock-proxy", "--help"])));
    for document in [&deploy, &help] {
        let commands: Vec<_> = document.lines().filter(|line| line.contains("| sudo tee ")).map(str::trim).collect();
        assert!(commands.contains(&&*format!("teemark vsock-proxy | sudo tee {list}")), "{commands:?}");
        let environment = format!("teemark vsock-proxy --format environment | sudo tee {environment}");
        assert!(commands.contains(&&*environment), "{commands:?}");
        assert!(commands.iter().all(|command| !command.contains("/etc/nitro_enclaves/")), "{commands:?}");
    }
    for document in ["docs/OPERATOR.md", "docs/OPERATOR.zh.md"] {
        let text = text(document);
        assert!(text.contains(&list) && !text.contains("/etc/nitro_enclaves/vsock-proxy.yaml"), "{document}");
    }
}
