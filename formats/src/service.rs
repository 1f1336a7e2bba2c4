//! ECS_WATERMARK_ENDPOINT: where the watermark service is.

use http::Uri;

/// What an answer of the service may hold: so many times the request, and so many bytes more. Services that write JSON in
/// ASCII only, as Python does by default, make six bytes of two (`\u0434`), and twelve of four.
pub const ANSWER_TIMES: usize = 3;
pub const ANSWER_SLACK: usize = 1 << 20;

/// The port of a URL that names none.
const HTTPS_PORT: u16 = 443;

/// An https URL with a host, and neither a user name, a query nor a fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceUrl {
    text: String,
    host: String,
    port: u16,
}

impl ServiceUrl {
    /// Reads a URL. White space around it does not count: `echo` and files end with a newline.
    ///
    /// # Errors
    /// Why it will not do.
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

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What the service's own paths come after: the URL without a slash at its end.
    pub fn base(&self) -> &str {
        self.text.trim_end_matches('/')
    }

    pub fn host(&self) -> &str {
        &self.host
    }

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
