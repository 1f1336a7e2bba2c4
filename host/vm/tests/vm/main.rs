//! Boots the enclave image beside a parent, and does to it what operators, users, attackers and accidents do.
//!
//! Two virtual machines with a real AF_VSOCK between them: see the crate's own documentation. The tests do nothing to the
//! enclave that the parent of a real one could not do, with two exceptions: times are measured without the parent, and
//! some scenarios change the image's files or command line to see what can only be seen from inside.
//!
//! `cargo test -p teemark-vm --test vm -- baked` runs the scenarios with `baked` in their names.

mod baked;
mod checklist;
mod clock;
mod debug;
mod doctor;
mod expose;
mod failures;
mod graviton;
mod handshake;
mod keeper;
mod limits;
mod log;
mod matrix;
mod memory;
mod outside;
mod sealed;
mod stage;
mod vsock;
mod workshop;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, anyhow};

use stage::Stage;
use workshop::Workshop;

type Scenario = fn(&Stage, &Workshop) -> Result<()>;

const SCENARIOS: &[(&str, Scenario)] = &[
    ("handshake: an enclave gets its secrets by handshake and serves through everything", {
        handshake::an_enclave_gets_its_secrets_by_handshake_and_serves_through_everything
    }),
    ("sealed: a hostile parent relays everything, reads nothing and changes nothing", {
        sealed::a_hostile_parent_relays_everything_reads_nothing_and_changes_nothing
    }),
    ("keeper: two enclaves have their secrets back with nobody, whatever their parents do", {
        keeper::two_enclaves_have_their_secrets_back_with_nobody_whatever_their_parents_do
    }),
    ("clock: an enclave whose clock is behind or runs fast takes fresh grants throughout", {
        clock::an_enclave_whose_clock_is_behind_or_runs_fast_takes_fresh_grants_throughout
    }),
    ("baked: an image with certificates is ready without a handshake", {
        baked::an_image_with_certificates_is_ready_without_a_handshake
    }),
    ("expose: clients are served through teemark expose and through socat", {
        expose::clients_are_served_through_teemark_expose_and_through_socat
    }),
    ("doctor: what is broken on the parent is named, and nothing else", {
        doctor::what_is_broken_on_the_parent_is_named_and_nothing_else
    }),
    ("log: every record comes out over vsock and verifies", log::every_record_comes_out_over_vsock_and_verifies),
    ("log: a sealed log shows nothing of a request, on the console neither", {
        log::a_sealed_log_shows_nothing_of_a_request_on_the_console_neither
    }),
    ("memory: with 64 MiB of memory files of 1 MiB are served", {
        memory::with_64_mib_of_memory_files_of_1_mib_are_served
    }),
    ("limits: an enclave of the shipped size has room for a file of the largest size", {
        limits::an_enclave_of_the_shipped_size_has_room_for_a_file_of_the_largest_size
    }),
    ("limits: a file of 200 MiB goes through an enclave of the shipped size", {
        limits::a_file_of_200_mib_goes_through_an_enclave_of_the_shipped_size
    }),
    ("matrix: small, signed and large enclaves take their secrets and serve", {
        matrix::small_signed_and_large_enclaves_take_their_secrets_and_serve
    }),
    ("vsock: thousands of connections at once from both sides leave it alive", {
        vsock::thousands_of_connections_at_once_from_both_sides_leave_the_vsock_alive
    }),
    ("debug: a debug image starts run.sh, has a shell, and stops on SIGTERM", {
        debug::a_debug_image_starts_run_sh_has_a_shell_and_stops_on_sigterm
    }),
    ("graviton: an image for Graviton boots and serves", graviton::an_image_for_graviton_boots_and_serves),
    ("failures: a boot that fails is named on the console and ends the machine", {
        failures::a_boot_that_fails_is_named_on_the_console_and_ends_the_machine
    }),
];

fn main() -> ExitCode {
    // As in other test programs, an argument that begins with a dash is an option, and any other is a filter.
    let filters: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let chosen = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    let start = Instant::now();
    let workshop = match Workshop::new() {
        Ok(workshop) => workshop,
        Err(e) => {
            println!("FAILED       {e:#}");
            return ExitCode::FAILURE;
        }
    };
    for (name, scenario) in SCENARIOS.iter().filter(|(name, _)| chosen(name)) {
        println!("\n{name}");
        let stage = Stage::new();
        let result = catch_unwind(AssertUnwindSafe(|| scenario(&stage, &workshop)));
        if let Err(why) = result.unwrap_or_else(|_| Err(anyhow!("a panic, told above"))) {
            stage.failed(&why);
            return ExitCode::FAILURE;
        }
    }
    println!("\nall of it in {:.0} s", start.elapsed().as_secs_f64());
    ExitCode::SUCCESS
}
