//! The origins of web pages (RFC 6454) that may call the public listener.

/// Which pages may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// Pages of these origins, each as a browser writes it in Origin; none if there are none.
    These(Vec<String>),
    /// Every page.
    Any,
}

impl Origins {
    /// Reads the origins. `*` stands for any, which is accepted only where grants are required: otherwise every page that
    /// a user opens could have files decrypted.
    ///
    /// # Errors
    /// What is wrong with which of them.
    pub(super) fn read(items: &[&str], grants: bool) -> Result<Origins, String> {
        match items {
            ["*"] if grants => Ok(Origins::Any),
            ["*"] => Err("\"*\" is accepted only where TEEMARK_GRANTS is required; name the origins".into()),
            items => {
                let wrong = items.iter().find(|item| !is_origin(item));
                match wrong {
                    None => Ok(Origins::These(items.iter().map(|&item| item.to_owned()).collect())),
                    Some(item) => Err(format!(
                        "{item:?} is not an origin: write it as browsers send it, such as https://app.example or \
                         http://localhost:8080, in lower case, without a path and without the scheme's own port"
                    )),
                }
            }
        }
    }
}

/// Whether this is an origin as browsers send it: another spelling would never match.
fn is_origin(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let (host, port) = match rest.rsplit_once(':') {
        // The colons of an IPv6 address are inside its brackets.
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (rest, None),
    };
    let own = match scheme {
        "http" => 80,
        "https" => 443,
        _ => 0,
    };
    let is_port = |text: &str| text.parse::<u16>().is_ok_and(|port| port != own && port.to_string() == text);
    let is_scheme = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'+' | b'-' | b'.');
    let is_host = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.');
    let name = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let good_host = match name {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(is_host),
    };
    !scheme.is_empty() && scheme.bytes().all(is_scheme) && good_host && port.is_none_or(is_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_accepted_only_as_browsers_write_it() {
        for good in [
            "https://app.example",
            "http://localhost:8080",
            "http://127.0.0.1:8080",
            "http://[::1]:3000",
            "https://[2001:db8::1]",
            "chrome-extension://abcdefghij",
        ] {
            assert_eq!(Origins::read(&[good], false), Ok(Origins::These(vec![good.into()])));
        }
        for bad in [
            "app.example",
            "null",
            "https://",
            "https://App.example",
            "https://app.example/",
            "https://app.example:443",
            "http://app.example:80",
            "https://app.example:",
            "https://app.example:080",
            "https://app.example:99999",
            "https://*.example",
            "https://a b",
            "https://user@app.example",
            "https://[::1",
            "https://::1",
            "://app.example",
        ] {
            let reason = Origins::read(&["https://app.example", bad], true).unwrap_err();
            assert!(reason.contains(&format!("{bad:?} is not an origin")), "{bad}: {reason}");
        }
    }

    #[test]
    fn every_page_may_call_only_where_grants_are_required() {
        assert_eq!(Origins::read(&["*"], true), Ok(Origins::Any));
        assert!(Origins::read(&["*"], false).unwrap_err().contains("TEEMARK_GRANTS"));
        assert!(Origins::read(&["*", "https://app.example"], true).unwrap_err().contains("\"*\" is not an origin"));
        assert_eq!(Origins::read(&[], false), Ok(Origins::These(Vec::new())));
    }
}
