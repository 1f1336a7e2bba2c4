//! ECS_WATERMARK_ENDPOINT: where the watermark service is.

use http::Uri;

/// Limit of the service's answer, as a multiple of the request. Services that write JSON in ASCII only, as Python does
/// by default, turn two bytes into six (`\u0434`), and four into twelve.
pub const ANSWER_TIMES: usize = 3;
/// Bytes that the service's answer may have beyond [`ANSWER_TIMES`] times the request.
pub const ANSWER_SLACK: usize = 1 << 20;

/// The port of a URL without one.
const HTTPS_PORT: u16 = 443;

/// An https URL with a host, and without a user name, query or fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceUrl {
    text: String,
    host: String,
    port: u16,
}

impl ServiceUrl {
    /// Parses a URL. Surrounding white space is ignored: `echo` and files end with a newline.
    ///
    /// # Errors
    /// Why the URL cannot be used.
    pub fn parse(text: &str) -> Result<ServiceUrl, &'static str> {
        let text = text.trim_ascii();
        let Ok(url) = text.parse::<Uri>() else { return Err("is not a URL") };
        let (Some("https"), Some(authority)) = (url.scheme_str(), url.authority()) else {
            return Err("is not an https URL with a host");
        };
        if authority.as_str().contains('@') {
            return Err("has a user name");
        }
        if url.query().is_some() || text.contains('#') {
            return Err("has a query or a fragment");
        }
        let (host, port) = (authority.host().to_owned(), url.port_u16().unwrap_or(HTTPS_PORT));
        Ok(ServiceUrl { text: text.to_owned(), host, port })
    }

    /// The text as it was given.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The prefix of the service's own paths: the URL without a trailing slash.
    pub fn base(&self) -> &str {
        self.text.trim_end_matches('/')
    }

    /// The host: a name, or an IP address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port; 443 if the URL has none.
    pub fn port(&self) -> u16 {
        self.port
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_https_url_with_a_host_and_nothing_secret() {
        for (good, host, port, base) in [
            ("https://watermark.internal.staging.zing.you:8080", "watermark.internal.staging.zing.you", 8080, None),
            (" https://localhost\r\n", "localhost", 443, Some("https://localhost")),
            ("https://[::1]:8/x/", "[::1]", 8, Some("https://[::1]:8/x")),
        ] {
            let url = ServiceUrl::parse(good).unwrap();
            assert_eq!((url.host(), url.port(), url.base()), (host, port, base.unwrap_or(good)), "{good}");
        }
        for bad in ["", "watermark:8080", "http://h:1", "https://", "https://u@h:1", "https://h:1/?q", "https://h#f"] {
            assert!(ServiceUrl::parse(bad).is_err(), "{bad}");
        }
    }
}
