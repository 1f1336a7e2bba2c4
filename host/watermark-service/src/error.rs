//! Every answer that is not a success: its status and its message.

use hyper::StatusCode;

use crate::content::ContentError;
use crate::mark::picture::PictureError;

/// Why a request fails: the status of the answer, and the `message` in its JSON.
#[derive(Debug)]
pub(crate) struct ApiError(pub(crate) StatusCode, pub(crate) String);

impl From<ContentError> for ApiError {
    fn from(error: ContentError) -> Self {
        let status = match &error {
            ContentError::Picture(PictureError::TooSmall { .. }) => StatusCode::UNPROCESSABLE_ENTITY,
            ContentError::Picture(PictureError::TooLarge) => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        };
        ApiError(status, error.to_string())
    }
}
