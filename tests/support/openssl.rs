//! Certificates by the openssl command line: every kind of key, every encoding, good ones and bad ones.

use tempfile::TempDir;

use super::{Certs, bash};

/// Commands that write a new key to standard output.
pub(crate) const RSA_2048: &str = "openssl genrsa 2048";
pub(crate) const RSA_3072: &str = "openssl genrsa 3072";
pub(crate) const RSA_4096: &str = "openssl genrsa 4096";
pub(crate) const P_256: &str = "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256";
pub(crate) const P_384: &str = "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384";
pub(crate) const ED25519: &str = "openssl genpkey -algorithm ed25519";

/// What a certificate may be used for, as openssl's extensions.
pub(crate) const FOR_AUTHORITY: &str =
    "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash";
pub(crate) const FOR_CLIENT: &str = "keyUsage=digitalSignature\nextendedKeyUsage=clientAuth";
pub(crate) const FOR_SERVER: &str =
    "keyUsage=digitalSignature\nextendedKeyUsage=serverAuth\nsubjectAltName=DNS:localhost,IP:127.0.0.1";

/// Validity: from, until.
pub(crate) const VALID: (&str, &str) = ("20200101000000Z", "20491231235959Z");
pub(crate) const EXPIRED: (&str, &str) = ("20200101000000Z", "20210101000000Z");
pub(crate) const NOT_YET_VALID: (&str, &str) = ("20480101000000Z", "20491231235959Z");

impl Certs {
    /// A root as `ca`, which may have intermediates, and the service's certificate from it; no client yet.
    pub(crate) fn with_root() -> Certs {
        let certs = Certs(TempDir::new().unwrap());
        certs.issue("ca", P_256, "ca", FOR_AUTHORITY, VALID);
        certs.shell("cp ca.crt ecs-ca.crt");
        certs.issue("server", P_256, "ca", FOR_SERVER, VALID);
        certs
    }

    /// Runs a line of bash in the folder of the files.
    pub(crate) fn shell(&self, line: &str) -> String {
        bash(self.0.path(), line)
    }

    /// A file as text.
    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    /// Makes NAME.key and NAME.crt, issued by ISSUER (itself for a root).
    pub(crate) fn issue(&self, name: &str, key: &str, issuer: &str, extensions: &str, (from, until): (&str, &str)) {
        let config = format!(
            "[ca]\ndefault_ca=this\n[this]\nnew_certs_dir=.\ndatabase={name}.db\nrand_serial=yes\ndefault_md=sha256\n\
             policy=any\n[any]\ncommonName=supplied\n[extensions]\n{extensions}\n"
        );
        std::fs::write(self.path(&format!("{name}.cnf")), config).unwrap();
        let by = if issuer == name { "-selfsign".to_owned() } else { format!("-cert {issuer}.crt") };
        self.shell(&format!(
            "{key} > {name}.key
             openssl req -new -key {name}.key -subj /CN={name} -out {name}.csr
             : > {name}.db
             openssl ca -batch -notext -config {name}.cnf -extensions extensions {by} -keyfile {issuer}.key \
             -in {name}.csr -out {name}.crt -startdate {from} -enddate {until}"
        ));
    }

    /// A client certificate NAME.crt from `ca`, with a P-256 key.
    pub(crate) fn client(&self, name: &str) {
        self.issue(name, P_256, "ca", FOR_CLIENT, VALID);
    }

    /// A certificate's serial number, as the watermark service logs it.
    pub(crate) fn serial(&self, name: &str) -> String {
        self.shell(&format!("openssl x509 -noout -serial -in {name}.crt")).trim().replace("serial=", "")
    }
}
