//! What an image says about itself, and its measurements, in the form of `nitro-cli describe-eif`.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use aws_nitro_enclaves_image_format::defs::EifSectionType;
use aws_nitro_enclaves_image_format::utils::eif_reader::EifReader;
use serde_json::{Value, json};

use crate::eif::InMemory;
use crate::parts::{PartsError, Sections};

/// An image that cannot be described.
#[derive(Debug)]
pub enum DescribeError {
    /// It cannot be read, or is damaged.
    Parts(PartsError),
    /// The system gives no memory for a copy of it.
    Memory(io::Error),
    /// The image is whole, but nitro-cli's crate cannot read what its sections hold.
    Format(String),
}

impl fmt::Display for DescribeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parts(e) => write!(f, "{e}"),
            Self::Memory(e) => write!(f, "cannot be described: {e}"),
            Self::Format(e) => write!(f, "cannot be described: {e}"),
        }
    }
}

impl std::error::Error for DescribeError {}

/// An image's description.
pub struct Description {
    /// What `nitro-cli describe-eif` prints.
    pub json: Value,
    /// Whether its signature matches its PCR0; true for an unsigned image.
    pub genuine: bool,
}

/// Reads an image, checks that it is whole, and measures it anew.
///
/// # Errors
/// [`DescribeError`].
pub fn describe(eif: &Path) -> Result<Description, DescribeError> {
    let bytes = fs::read(eif).map_err(|e| DescribeError::Parts(PartsError::Read(e)))?;
    // The crate trusts the sizes in a damaged file, and expects an entry in the list of signatures: in
    // CBOR (RFC 8949, 3.1) it begins with 0x80 and its length, up to 23.
    let sections = Sections::find(&bytes).map_err(DescribeError::Parts)?;
    if sections.of(EifSectionType::EifSectionSignature).any(|list| !matches!(list.first(), Some(0x81..=0x97))) {
        return Err(DescribeError::Format("its signature section has no signature".into()));
    }
    let copy = InMemory::holding(&bytes).map_err(DescribeError::Memory)?;
    let path = copy.path().to_string_lossy().into_owned();
    let mut reader = EifReader::from_eif(path).map_err(DescribeError::Format)?;
    let measurements = reader.get_measurements().map_err(DescribeError::Format)?;
    let mut json = json!({
        "EifVersion": reader.header.version,
        "Measurements": measurements,
        "IsSigned": reader.signature_section.is_some(),
        "CheckCRC": reader.check_crc(),
    });
    let mut genuine = true;
    if reader.signature_section.is_some() {
        let certificate = reader.get_certificate_info(measurements).map_err(DescribeError::Format)?;
        genuine = reader.sign_check == Some(true);
        json["SigningCertificate"] = json!(certificate);
        json["SignatureCheck"] = json!(genuine);
    }
    if let Some(metadata) = reader.get_metadata() {
        json["ImageName"] = json!(metadata.img_name);
        json["ImageVersion"] = json!(metadata.img_version);
        json["Metadata"] = json!(metadata.build_info);
        json["Metadata"]["CustomMetadata"] = metadata.custom_info;
    }
    Ok(Description { json, genuine })
}
