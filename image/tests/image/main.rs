//! The real `teemark-image`, run as image/build.sh runs it, and what it writes, read by programs that are not its own:
//! cpio, xz, sha384sum and openssl.

mod contents;
mod damaged;
mod refused;
mod secrets;
mod signed;
mod size;
mod toolchain;
mod trust;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// A folder with everything that an image is built from. Kernel and programs are stand-ins; the other files are those
/// of the repository.
struct Place(TempDir);

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        place.write("bzImage", kernel());
        place.write("init", program(1));
        place.write("teemarkd", program(50_000));
        for (name, file) in
            [("list.yaml", "allowed_endpoints.yaml"), ("env", "image/teemark.env"), ("run.sh", "run.sh")]
        {
            fs::copy(repository().join(file), place.path(name)).unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        fs::write(self.path(name), contents).unwrap();
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn text(&self, name: &str) -> String {
        String::from_utf8(self.read(name)).unwrap()
    }

    fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.path(name)).unwrap().permissions().mode() & 0o777
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_teemark-image"));
        command.args(arguments).current_dir(self.0.path()).env_remove("SOURCE_DATE_EPOCH");
        command.output().unwrap()
    }

    /// `teemark-image build` with the files of this folder and some more options.
    fn build(&self, more: &[&str]) -> Output {
        let files =
            "build --kernel bzImage --init init --daemon teemarkd --endpoints list.yaml --environment env --output out";
        self.run(&[&files.split(' ').collect::<Vec<_>>(), more].concat())
    }

    /// Builds, and takes the image apart into the folder `parts`.
    fn parts(&self, more: &[&str]) {
        succeeds(self.build(more));
        succeeds(self.run(&["parts", "out/teemark.eif", "parts"]));
    }

    fn json(&self, name: &str) -> serde_json::Value {
        serde_json::from_slice(&self.read(name)).unwrap()
    }

    /// The output of a line of shell that is run in the folder.
    fn shell(&self, line: &str) -> String {
        let mut command = Command::new("sh");
        command.args(["-euc", line]).current_dir(self.0.path()).env("LC_ALL", "C").env("TZ", "UTC");
        stdout(&succeeds(command.output().unwrap()))
    }

    /// Makes NAME.key and NAME.crt, by the CA of that name (itself for a root), valid between two moments.
    fn certificate(&self, name: &str, key: &str, ca: &str, extensions: &str, valid: &str) {
        let config = format!(
            "[ca]\ndefault_ca=this\n[this]\nnew_certs_dir=.\ndatabase={name}.db\nrand_serial=yes\ndefault_md=sha256\n\
             policy=any\n[any]\ncommonName=supplied\n[extensions]\n{extensions}\n"
        );
        self.write(&format!("{name}.cnf"), config);
        self.write(&format!("{name}.db"), "");
        let by = if ca == name { "-selfsign".to_owned() } else { format!("-cert {ca}.crt") };
        self.shell(&format!(
            "exec 2>&1; openssl genpkey {key} -out {name}.key; openssl req -new -key {name}.key -subj /CN={name} -out \
             {name}.csr; openssl ca -batch -notext -config {name}.cnf -extensions extensions {by} -keyfile {ca}.key -in \
             {name}.csr -out {name}.crt {valid}"
        ));
    }

    /// Makes the folder `certs` with client.crt, client.key and ecs-ca.crt, which match.
    fn certs(&self) {
        self.certificate("ca", P_256, "ca", FOR_AUTHORITY, VALID);
        self.certificate("client", P_256, "ca", FOR_CLIENT, VALID);
        self.shell("mkdir -p certs; cp client.crt client.key certs/; cp ca.crt certs/ecs-ca.crt");
    }
}

const P_256: &str = "-algorithm EC -pkeyopt ec_paramgen_curve:P-256";
const P_384: &str = "-algorithm EC -pkeyopt ec_paramgen_curve:P-384";
const RSA: &str = "-algorithm RSA -pkeyopt rsa_keygen_bits:2048";
const FOR_AUTHORITY: &str = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign";
const FOR_CLIENT: &str = "keyUsage=digitalSignature\nextendedKeyUsage=clientAuth";
const VALID: &str = "-startdate 20200101000000Z -enddate 20491231235959Z";
const EXPIRED: &str = "-startdate 20200101000000Z -enddate 20210101000000Z";

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The header of a kernel that calls itself 6.12.1-test, and nothing behind it.
fn kernel() -> Vec<u8> {
    let mut bytes = vec![0x90; 1000];
    bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes[0x20e..0x210].copy_from_slice(&0x80u16.to_le_bytes());
    bytes[0x280..0x294].copy_from_slice(b"6.12.1-test (a@b) #1");
    bytes
}

/// A static program for x86-64 (System V ABI, "Object Files"): its header, one segment with the whole file, and code
/// of `code` bytes, which ends at once.
fn program(code: u32) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let length = 120 + 16 + u64::from(code);
    // type EXEC, machine x86-64; version, entry, where the segments are described, no sections, flags
    bytes.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    bytes.extend([0x400078u64, 64, 0].map(u64::to_le_bytes).concat());
    bytes.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    // type LOAD, readable and executable; offset, two addresses, length in the file and in memory, alignment
    bytes.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    bytes.extend([0, 0x400000u64, 0x400000, length, length, 0x1000].map(u64::to_le_bytes).concat());
    // mov eax, 60; xor edi, edi; syscall: exit(0)
    bytes.extend(b"\xb8\x3c\0\0\0\x31\xff\x0f\x05\x90\x90\x90\x90\x90\x90\x90");
    bytes.extend((0..code).map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()[0] & 0x3f));
    bytes
}

/// The header of an Image for aarch64 that calls itself 6.12.1-test, and nothing behind it.
fn aarch64_kernel() -> Vec<u8> {
    let mut bytes = b"MZ\0\0\0\0\0\0\0\0\x20\0\0\0\0\0".to_vec();
    bytes.resize(56, 0);
    bytes.extend(b"ARM\x64\0\0\0\0Linux version 6.12.1-test (a@b)");
    bytes
}

/// The program, as its header says for aarch64 (EM_AARCH64).
fn for_aarch64(mut program: Vec<u8>) -> Vec<u8> {
    program[18] = 183;
    program
}

/// The image with other bytes at that offset, and with the right CRC.
fn changed(image: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = image.to_vec();
    assert!(image[at..at + bytes.len()] != *bytes);
    image[at..at + bytes.len()].copy_from_slice(bytes);
    let crc = crc32fast::hash(&[&image[..544], &image[548..]].concat());
    image[544..548].copy_from_slice(&crc.to_be_bytes());
    image
}

/// The output of a command that has to succeed.
fn succeeds(output: Output) -> Output {
    assert!(output.status.success(), "{}\n{}{}", output.status, stdout(&output), stderr(&output));
    output
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_stand_in_for_a_program_is_one() {
    let place = Place::new();
    // A copy: a process that a test beside this starts may still have inherited the file as it was written, and what is
    // open for writing cannot be run.
    place.shell("cp init copy; chmod 755 copy; ./copy");
}
