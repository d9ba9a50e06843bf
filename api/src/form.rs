//! Bodies that forms of our pages send (`application/x-www-form-urlencoded`): few short fields, read within a limit and a time.
//!
//! By hand on `percent-encoding`, and not by `form_urlencoded`, which puts replacement characters where something is no UTF-8: a password
//! would silently become another one.

use axum::body::Body;
use envforge_domain::secret::Secret;
use http::{HeaderMap, header};
use percent_encoding::percent_decode;

use crate::problem::Problem;
use crate::request_body::collect;

/// An address, a password, and where to go on.
const FORM_BYTES_MAX: usize = 8 * 1024;
const FIELDS_MAX: usize = 16;

/// Fields in the order in which they came. Has no `Debug`: one of them is a password.
pub(crate) struct Form(pub(crate) Vec<(String, Secret)>);

impl Form {
    pub(crate) async fn read(headers: &HeaderMap, body: Body) -> Result<Self, Problem> {
        let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if !kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
            return Err(Problem::new("content_type_unsupported", "Send the form of the page as it is."));
        }
        Self::parse(&collect(body, FORM_BYTES_MAX).await?)
    }

    pub(crate) fn parse(body: &[u8]) -> Result<Self, Problem> {
        let invalid = || Problem::new("body_invalid", "The form could not be read; load its page again.");
        let decode = |text: &[u8]| {
            let spaced: Vec<u8> = text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
            percent_decode(&spaced).decode_utf8().map(|text| text.into_owned()).map_err(|_| invalid())
        };
        let pieces = body.split(|byte| *byte == b'&').filter(|piece| !piece.is_empty());
        let mut fields = Vec::new();
        for piece in pieces {
            if fields.len() == FIELDS_MAX {
                return Err(invalid());
            }
            let (name, value) = match piece.iter().position(|byte| *byte == b'=') {
                Some(at) => (&piece[..at], &piece[at + 1..]),
                None => (piece, &b""[..]),
            };
            fields.push((decode(name)?, Secret::new(decode(value)?)));
        }
        Ok(Self(fields))
    }

    /// A field that came once.
    pub(crate) fn get(&self, name: &str) -> Option<&Secret> {
        let mut found = self.0.iter().filter(|(known, _)| known == name);
        match (found.next(), found.next()) {
            (Some((_, value)), None) => Some(value),
            _ => None,
        }
    }

    /// A field that is no secret.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.get(name).map_or("", Secret::expose)
    }
}

/// A value in a query of ours.
pub(crate) fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn fields_are_decoded_once_and_counted() {
        let form =
            Form::parse(b"email=ada%40acme.test&password=a+b%2Bc%25&return_to=%2Fopen%3Fhost%3Da&twice=1&twice=2")
                .unwrap();
        assert_eq!(form.text("email"), "ada@acme.test");
        assert_eq!(form.get("password").unwrap().expose(), "a b+c%");
        assert_eq!(form.text("return_to"), "/open?host=a");
        assert!(form.get("twice").is_none() && form.get("missing").is_none());
        assert!(Form::parse(b"a=%ff").is_err(), "not UTF-8");
        assert!(Form::parse("a=1&".repeat(17).as_bytes()).is_err());
    }

    #[test]
    fn what_goes_into_a_query_comes_out_again() {
        let target = "/open?host=web--a--b&browser=00&x=ä/";
        let form = Form::parse(format!("return_to={}", encoded(target)).as_bytes()).unwrap();
        assert_eq!(form.text("return_to"), target);
    }
}
