//! The signer of an image: a private key and its certificate, which PCR8 measures.

use std::path::Path;

use aws_nitro_enclaves_image_format::utils::eif_signer::SignKey;
use aws_nitro_enclaves_image_format::utils::{EifSigner, PcrSignatureChecker, SignKeyData};

use crate::read::{InputError, read};

/// A key and its certificate, both PEM; they match, and the certificate is valid.
pub struct Signer {
    key: Vec<u8>,
    certificate: Vec<u8>,
}

impl Signer {
    /// Reads a key and its certificate, and signs once to check that they match.
    ///
    /// # Errors
    /// A file cannot be read, is not a key or certificate, or does not match the other; or the certificate is not valid
    /// now, and the Nitro hypervisor would refuse the image.
    pub fn read(key: &Path, certificate: &Path) -> Result<Signer, InputError> {
        let signer = Signer { key: read(key)?, certificate: read(certificate)? };
        // OpenSSL would ask for the passphrase on the terminal.
        if signer.key.windows(9).any(|window| window == b"ENCRYPTED") {
            return Err(InputError::refused(key, "is protected by a passphrase; write it without one (openssl pkey)"));
        }
        let eif_signer = signer.for_eif();
        eif_signer.get_cert_der().map_err(|_| InputError::refused(certificate, "is not a certificate in PEM"))?;
        let signature = eif_signer.sign(b"does the key match the certificate?").map_err(|reason| {
            InputError::refused(key, format!("is not a private key in PEM for P-384, P-256 or P-521: {reason}"))
        })?;
        let verified = PcrSignatureChecker::new(&signature).verify();
        verified.map_err(|reason| {
            InputError::refused(certificate, format!("cannot be used with the key {}: {reason}", key.display()))
        })?;
        Ok(signer)
    }

    pub(crate) fn key_data(&self) -> SignKeyData {
        SignKeyData { cert: self.certificate.clone(), key: SignKey::LocalPrivateKey(self.key.clone()) }
    }

    fn for_eif(&self) -> EifSigner {
        EifSigner::new(Some(self.key_data())).expect("a key was given")
    }
}
